"""The cells of a plan: make one, or take the record that is there, or say why it failed."""

from __future__ import annotations

import functools
import os
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlbench.errors import MlbenchError, MlbenchWarning, first_few
from mlbench.losses.baselines import BASELINES
from mlbench.models import kept
from mlbench.progress import PhaseProgress
from mlbench.recipes.plan import Files, Plan
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES
from mlbench.runs import keep
from mlbench.runs.claims import run_claim
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import run_one
from mlbench.system.machine import lack
from mlbench.training import checkpoint
from mlbench.training.device import device_lost, out_of_memory

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """A cell of the plan after its turn.

    Attributes:
        spec: the run.
        record: of the run; None if it failed.
        path: of the record's file.
        reused: whether the record was there before.
        problem: one line that says why it failed; "" if it did not.
        where: the process or node that made it; "" for this process.
        device_lost: whether the GPU failed so that this process can make no further run.
    """

    spec: RunSpec
    record: RunRecord | None
    path: Path
    reused: bool = False
    problem: str = ""
    where: str = ""
    device_lost: bool = False


def label(spec: RunSpec) -> str:
    """Return what a person calls a run among those of one recipe."""
    fold = "" if spec.fold is None else f" fold {spec.fold}"
    fold += "" if spec.split is None else f" split {spec.split}"
    return f"{spec.loss.name} seed {spec.seed}{fold}"


def with_baselines(plan: Plan) -> list[RunSpec]:
    """Return the plan's runs, those of the baselines first; all of them, if the plan trains any."""
    trained = [loss for loss in plan.losses if loss.name not in BASELINES]
    if not trained:
        return plan.runs()
    return replace(plan, losses=(*map(LossSpec, BASELINES), *trained)).runs()


def open_plan(
    plan: Plan, specs: Sequence[RunSpec], out: Path, device: torch.device, progress: PhaseProgress
) -> tuple[Ingredients, list[Outcome]]:
    """Load what the runs need, and look which of ``specs`` (of the plan's recipe) are there.

    Returns:
        the ingredients, and the outcomes of the runs whose records are under ``out``.

    Raises:
        MlbenchError: the data or the weights are not there or bad; not of the weights if
            all runs are there.
    """
    store.check_writable(out)
    ingredients = Ingredients(plan.recipe, plan.files, device, progress)
    for split in dict.fromkeys(spec.split for spec in specs):
        ingredients.of_split(split)  # so that a data set without random splits is named here
    found = [(spec, find_record(spec, ingredients, out)) for spec in specs]
    _tell_of_missing_models([spec for spec, record in found if record is None], ingredients, out)
    if any(record is None for _, record in found):
        ingredients.prepare()
    return ingredients, [
        Outcome(spec, record, store.record_path(out, spec), reused=True)
        for spec, record in found
        if record is not None
    ]


def find_record(spec: RunSpec, ingredients: Ingredients, out: Path) -> RunRecord | None:
    """Return the record of a run under ``out``, if it was made with the same data and loss.

    Where models are to be kept, one without its model is not taken. Checkpoints of a run whose
    record is taken are removed: its process may have been killed before it could.
    """
    record = _find(spec, ingredients, out)
    if record is None or not _has_its_model(record, ingredients, out):
        return None
    checkpoint.remove(out, spec)
    return record


def _find(spec: RunSpec, ingredients: Ingredients, out: Path) -> RunRecord | None:
    source = "built-in" if spec.loss.name in BASELINES else LOSSES.get(spec.loss.name).source
    return store.find(out, spec, ingredients.dataset.fingerprint, source)


def _has_its_model(record: RunRecord, ingredients: Ingredients, out: Path) -> bool:
    """Tell whether the model lies beside a record, if it is to be kept."""
    if not _keeps_model(record.spec, ingredients.files) or kept.has_none(record):
        return True
    return kept.is_kept(store.record_path(out, record.spec), record)


def _keeps_model(spec: RunSpec, files: Files) -> bool:
    return files.keep_baselines if spec.loss.name in BASELINES else files.keep_model


def _tell_of_missing_models(todo: Sequence[RunSpec], ingredients: Ingredients, out: Path) -> None:
    bare = [
        label(spec)
        for spec in todo
        if _keeps_model(spec, ingredients.files) and _find(spec, ingredients, out)
    ]
    if bare:
        warnings.warn(
            f"runs repeated, because their records exist without the saved model: "
            f"{first_few(bare)}",
            MlbenchWarning,
            stacklevel=2,
        )


def make_run(
    spec: RunSpec, ingredients: Ingredients, out: Path, checkpoints: Path | None = None
) -> Outcome | None:
    """Make a run, or take the record that is there.

    Args:
        spec: the run, of the ingredients' recipe.
        ingredients: what it needs.
        out: the results folder.
        checkpoints: the results folder that holds its checkpoints; None for ``out``.

    Returns:
        None if another process is making this run just now.

    Raises:
        MlbenchError: the run cannot be made, or its record not be saved.
    """
    path = store.record_path(out, spec)
    with run_claim(out, spec) as mine:
        if not mine:
            return None
        known = find_record(spec, ingredients, out)
        if known is None:
            save_model = (
                functools.partial(keep.keep, path, ingredients)
                if _keeps_model(spec, ingredients.files)
                else None
            )
            made, queries = run_one(spec, ingredients, checkpoints or out, save_model)
            kept.set_aside(path, made)
            store.save(out, made, queries)
            checkpoint.remove(checkpoints or out, spec)
        return Outcome(spec, known or store.load(path), path, reused=known is not None)


def made_or_awaited(spec: RunSpec, ingredients: Ingredients, out: Path) -> RunRecord:
    """Make a run, or wait for the process that is making it; raises as ``make_run``."""
    while True:
        outcome = make_run(spec, ingredients, out)
        if outcome is not None and outcome.record is not None:
            return outcome.record
        time.sleep(_POLL_SECONDS)


def attempt(
    spec: RunSpec, ingredients: Ingredients, out: Path, checkpoints: Path | None = None
) -> Outcome | None:
    """Do as ``make_run`` does, but return a failed outcome where the run cannot be made.

    With ``MLBENCH_DEBUG`` set, the traceback goes to standard error.
    """
    try:
        return make_run(spec, ingredients, out, checkpoints)
    except Exception as error:
        if os.environ.get("MLBENCH_DEBUG"):
            traceback.print_exc()
        problem, lost = _problem(error, spec.recipe), device_lost(error)
    if ingredients.device.type == "cuda" and not lost:
        torch.cuda.empty_cache()  # outside of the handler, where the run's tensors are gone
    return replace(failed(spec, out, problem), device_lost=lost)


def failed(spec: RunSpec, out: Path, problem: str) -> Outcome:
    """Return the outcome of a run that cannot be made, for the reason ``problem``."""
    return Outcome(spec, None, store.record_path(out, spec), problem=problem)


def _problem(error: Exception, recipe: Recipe) -> str:
    """Say in one line why a run failed and what to do."""
    if isinstance(error, MlbenchError):
        return str(error)
    lacking = lack(error)
    if lacking is not None:
        return str(lacking)
    text = " ".join(str(error).split())
    if device_lost(error):
        return f"the GPU failed, and this process cannot use it any longer ({text})"
    if out_of_memory(error):
        return (
            f"out of memory with batch.size {recipe.batch.size} and input.size "
            f"{recipe.input.size}; lower one of them, such as "
            f"--set batch.size={max(1, recipe.batch.size // 2)}"
        )
    return (
        f"{type(error).__name__}: {text} (a bug in mlbench or a plugin: please report it; "
        "MLBENCH_DEBUG=1 shows where)"
    )
