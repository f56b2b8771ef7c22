"""Tune losses with equal budgets on validation classes, then compare them with what was chosen.

Every trial of every loss trains with the same recipe, folds and seed, so that no loss gets more
images than another. The test classes have no part in the choice.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mlbench.errors import MlbenchError, MlbenchWarning
from mlbench.losses.baselines import BASELINES
from mlbench.metrics.evaluation import summarize
from mlbench.progress import PhaseProgress
from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec, canonical, digest
from mlbench.records.trials import (
    TRIAL_SEED,
    SearchRange,
    Trial,
    Tuned,
    validation_recipe,
    with_folds,
)
from mlbench.registry import LOSSES
from mlbench.runs.evaluation import has_directions, validate
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import Stopwatch, train
from mlbench.runs.search import (
    check_ranges,
    distributions,
    optuna,
    search_ranges,
    untuned,
    with_params,
)
from mlbench.system.known_state import known_state
from mlbench.system.machine import raise_lack
from mlbench.system.regular import open_regular
from mlbench.training.embed import embed

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

_MOST_BYTES = 1 << 30


Report = Callable[[Trial, int, int], None]
"""Called with each new trial, its number from 1, and the number of trials of its loss."""


def final_plan(plan: Plan, tuned: Sequence[Tuned]) -> Plan:
    """Return the plan of the final runs: all training classes, untuned and chosen parameters."""
    losses = [trial.loss for each in tuned for trial in (each.default, each.chosen)]
    return replace(plan, recipe=with_folds(plan.recipe, 0), losses=tuple(dict.fromkeys(losses)))


def tune(
    plan: Plan,
    trials: int,
    out: Path,
    device: torch.device,
    progress: PhaseProgress,
    report: Report,
    ranges: Sequence[SearchRange] = (),
) -> list[Tuned]:
    """Give every loss of the plan the same number of trials; those in the store are not repeated.

    Trials are kept in ``OUT/tune.sqlite3`` one by one. A trial that was stopped midway does not
    count. One process at a time may tune into a folder. Losses with nothing to search are named in
    a warning before the first trial.

    Args:
        plan: recipe, losses with their untuned parameters, files. Parameters that differ from the
            loss's declared defaults were set on purpose and are not searched.
        trials: of each loss; one with nothing to search gets a single trial.
        out: folder of the store.
        device: to train on.
        progress: as of ``Ingredients``.
        report: called after each new trial.
        ranges: to search beside the losses' declared ones, or in their place.

    Raises:
        MlbenchError: optuna is missing, the data are bad, a search range is wrong, or the store
            cannot be used.
    """
    optuna()
    untrained = [loss.name for loss in plan.losses if loss.name in BASELINES]
    if untrained:
        raise MlbenchError(f"baselines have nothing to tune: {', '.join(untrained)}; omit them")
    ingredients = Ingredients(validation_recipe(plan.recipe), plan.files, device, progress)
    check_ranges(ranges, plan.losses)
    spaces = {loss: search_ranges(loss, plan.recipe, ranges) for loss in plan.losses}
    _name_untuned([loss for loss, space in spaces.items() if not space])
    with known_state(ingredients.recipe.training.precision, TRIAL_SEED):
        ingredients.inputs(
            "train", TRIAL_SEED
        )  # bad data or weights are named before there is a store
    with _open_store(out) as store:
        return [
            _tune(loss, space, trials, ingredients, store, report) for loss, space in spaces.items()
        ]


def _name_untuned(losses: Sequence[LossSpec]) -> None:
    if losses:
        names = ", ".join(loss.name for loss in losses)
        warnings.warn(
            f"nothing to search, so there is one trial with the hyperparameters unchanged: "
            f"{names}; declare "
            "search ranges with the loss, or pass some with --search",
            MlbenchWarning,
            stacklevel=3,
        )


def _tune(
    loss: LossSpec,
    ranges: tuple[SearchRange, ...],
    trials: int,
    ingredients: Ingredients,
    store: RDBStorage,
    report: Report,
) -> Tuned:
    space = distributions(loss, ingredients.recipe, ranges)
    with _naming(store):
        study = _open_study(store, loss, space, ingredients)
        stored = _trials(study, loss, space, ingredients.recipe)
    budget = trials if space else 1
    for number in range(len(stored), budget):
        with _naming(store):
            # A sampler's draws hang on its seed and what is complete: stopping changes no result.
            study.sampler = optuna().samplers.TPESampler(seed=number)
            asked = study.ask(space)
        trial = evaluate(with_params(loss, ingredients.recipe, asked.params), ingredients)
        with _naming(store):
            asked.set_user_attr("diverged", trial.diverged)
            asked.set_user_attr("images_seen", trial.images_seen)
            study.tell(asked, trial.score)
        report(trial, number + 1, budget)
    with _naming(store):
        # Of a study that once had a larger budget only the first trials count.
        made = _trials(study, loss, space, ingredients.recipe)
        return Tuned(tuple(made[:budget]), ranges)


def evaluate(loss: LossSpec, ingredients: Ingredients) -> Trial:
    """Train on each fold's other classes and evaluate the last epoch on the fold's own classes."""
    with known_state(ingredients.recipe.training.precision, TRIAL_SEED):
        runs = [
            _evaluate_fold(RunSpec(ingredients.recipe, loss, TRIAL_SEED, fold), ingredients)
            for fold in range(ingredients.recipe.selection.folds)
        ]
    scores = [score for score, _ in runs if score is not None]
    diverged = len(scores) < len(runs)
    score = 0.0 if diverged else math.fsum(scores) / len(scores)
    return Trial(loss, score, diverged, sum(images for _, images in runs))


def _evaluate_fold(spec: RunSpec, ingredients: Ingredients) -> tuple[float | None, int]:
    """Return MAP@R on the fold's classes (None if training diverged) and the images seen."""
    trained = train(spec, ingredients, Stopwatch())
    if trained.diverged:
        return None, trained.images_seen
    validation = ingredients.validation(trained.part, spec.seed)
    embeddings = embed(trained.network, validation.source)
    if not has_directions(embeddings):
        return None, trained.images_seen
    return float(summarize(validate(embeddings, validation))["MAP@R"]), trained.images_seen


def _storage(path: Path) -> RDBStorage:
    try:
        return optuna().storages.RDBStorage(f"sqlite:///{path}")
    except Exception as error:  # what damage makes optuna, SQLAlchemy and json raise
        raise _unusable(path, error) from error


@contextmanager
def _open_store(out: Path) -> Iterator[RDBStorage]:
    """Open (or make) the store of a results folder; a fault in it, also later, is a MlbenchError.

    Two processes that tune into one folder take each other's trials for stopped ones.
    """
    from sqlalchemy.exc import SQLAlchemyError

    exceptions, path = optuna().exceptions, out / "tune.sqlite3"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MlbenchError(f"cannot make the folder {out}: {error.strerror or error}") from error
    _check_file(path)
    try:
        store = _storage(path)
        try:
            yield store
        finally:
            store.remove_session()
            store.engine.dispose()
    except (SQLAlchemyError, exceptions.OptunaError) as error:
        raise _unusable(path, error) from error


def _check_file(path: Path) -> None:
    """Refuse what is no file of a bounded size; SQLite would wait for a pipe."""
    if os.path.lexists(path):
        open_regular(path, limit=_MOST_BYTES).close()


@contextmanager
def _naming(store: RDBStorage) -> Iterator[None]:
    """Name the store in whatever damage to it makes optuna, SQLAlchemy and json raise."""
    try:
        yield
    except MlbenchError:
        raise
    except Exception as error:
        raise _unusable(Path(store.engine.url.database or ""), error) from error


def _unusable(path: Path, error: Exception) -> MlbenchError:
    raise_lack(error)
    reason = str(error).partition("\n")[0] or type(error).__name__
    return MlbenchError(
        f"{path}: no usable store of trials, or another process tunes there ({reason}); restore "
        "or remove it"
    )


def _open_study(
    store: RDBStorage,
    loss: LossSpec,
    space: Mapping[str, BaseDistribution],
    ingredients: Ingredients,
) -> Study:
    """Open (or make) the study of a loss; whatever would change a trial's result names it."""
    states = optuna().trial.TrialState
    source = LOSSES.get(loss.name).source
    identity = [canonical(ingredients.recipe), ingredients.dataset.fingerprint, asdict(loss)]
    identity += [source] * (source != "built-in")
    ranges = {name: str(distribution) for name, distribution in space.items()}
    study: Study = optuna().create_study(
        storage=store,
        study_name=f"{loss.name} {digest([*identity, ranges])}",
        direction="maximize",
        load_if_exists=True,
    )
    for stopped in study.get_trials(states=(states.RUNNING,)):
        study.tell(stopped.number, state=states.FAIL)
    if not study.get_trials(states=(states.COMPLETE, states.WAITING)):
        before = untuned(loss, ingredients.recipe)
        study.enqueue_trial({name: before[name] for name in space})
    return study


def _trials(
    study: Study, loss: LossSpec, space: Mapping[str, BaseDistribution], recipe: Recipe
) -> list[Trial]:
    """Return the trials that are complete; ValueError for one that ``tune`` has not stored so."""
    complete = study.get_trials(states=(optuna().trial.TrialState.COMPLETE,))
    return [_trial(loss, stored, space, recipe) for stored in complete]


def _trial(
    loss: LossSpec, stored: FrozenTrial, space: Mapping[str, BaseDistribution], recipe: Recipe
) -> Trial:
    diverged, seen = (stored.user_attrs.get(name) for name in ("diverged", "images_seen"))
    score = stored.value
    if not isinstance(diverged, bool) or not isinstance(seen, int) or score is None:
        raise ValueError(f"trial {stored.number} is incomplete")
    if not 0 <= score <= 1 or seen < 0 or stored.params.keys() != space.keys():
        raise ValueError(f"trial {stored.number} is none that was made with these parameters")
    return Trial(with_params(loss, recipe, stored.params), score, diverged, seen)
