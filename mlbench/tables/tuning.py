"""What tuning brought, as a table."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence

from mlbench.comparison.estimates import Estimate, estimate
from mlbench.interfaces import ParamValue
from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records.record import RunRecord
from mlbench.records.trials import TRIAL_SEED, Tuned, validation_recipe
from mlbench.tables.layout import percent
from mlbench.tables.sheet import Line, Sheet


def tuning_sheet(tuned: Sequence[Tuned], plan: Plan, records: Iterable[RunRecord]) -> Sheet:
    """Lay out what tuning brought: validation and test scores, default and chosen, in percent.

    Args:
        tuned: of all losses.
        plan: as given to ``tune``.
        records: of the final runs.
    """
    finished: dict[LossSpec, list[RunRecord]] = {}
    for record in records:
        if record.status == "ok":
            finished.setdefault(record.spec.loss, []).append(record)
    return Sheet(
        title=f"tuning on validation classes, {plan.recipe.data.name}",
        header=(
            "loss",
            "trials",
            "chosen hyperparameters",
            "validation MAP@R: default",
            "chosen",
            "test MAP@R: default",
            "chosen",
            "test R@1: default -> chosen",
            "gap (validation - test)",
        ),
        lines=tuple(_line(each, plan, finished) for each in tuned),
        notes=_notes(tuned, plan),
        texts=(0, 2),
    )


def _line(tuned: Tuned, plan: Plan, finished: Mapping[LossSpec, Sequence[RunRecord]]) -> Line:
    pair = (tuned.default, tuned.chosen)
    mapr, recall = (
        [_metric(finished.get(trial.loss, ()), name) for trial in pair] for name in ("MAP@R", "R@1")
    )
    diverged = sum(trial.diverged for trial in tuned.trials)
    chosen = _values(tuned, plan)
    cells = (
        tuned.default.loss.name,
        f"{len(tuned.trials)}" + (f" ({diverged} diverged)" if diverged else ""),
        ", ".join(f"{name}={value}" for name, value in chosen.items()) or "nothing to search",
        *(f"{100 * trial.score:.1f}" for trial in pair),
        *map(percent, mapr),
        " -> ".join(map(percent, recall)),
        f"{100 * (tuned.chosen.score - mapr[1].mean):+.1f}" if mapr[1] else "-",
    )
    return Line(cells, (False,) * len(cells))


def _values(tuned: Tuned, plan: Plan) -> dict[str, ParamValue]:
    """Return the chosen value of each hyperparameter that was searched, by name."""
    loss = tuned.chosen.loss
    values = {**RunSpec(plan.recipe, loss, TRIAL_SEED).trained.flat(), **loss.arguments}
    return {each.name: values[each.name] for each in tuned.searched}


def _metric(records: Sequence[RunRecord], name: str) -> Estimate | None:
    return estimate([float(r.metrics[name]) for r in records]) if records else None


def _notes(tuned: Sequence[Tuned], plan: Plan) -> tuple[str, ...]:
    recipe = validation_recipe(plan.recipe)
    folds = recipe.selection.folds
    judged = "the data set's own validation images"
    return (
        f"each trial: {judged if folds == 1 else f'{folds} folds of the training classes'}, "
        f"{recipe.schedule.epochs} epochs, seed {TRIAL_SEED}; the first trial of a loss uses "
        "its defaults",
        *_budgets(tuned),
        *(_searched(each) for each in tuned),
        _at_bounds(tuned, plan),
        "chosen by validation MAP@R alone, without the test classes; then trained on all "
        f"training classes, {plan.seeds} seed(s), ± 95 % t-interval over seeds",
        "validation MAP@R is the best of all trials, and over fewer classes than in the test: both "
        "raise it, so the gap is not due to overfitting alone",
        f"optuna {importlib.metadata.version('optuna')}, TPE",
    )


def _budgets(tuned: Sequence[Tuned]) -> list[str]:
    """Return one line a budget, so one in all if all losses were tuned alike."""
    losses: dict[str, list[str]] = {}
    for each in tuned:
        images = sum(trial.images_seen for trial in each.trials)
        budget = f"{len(each.trials)} trials, trained on {images} images in all"
        losses.setdefault(budget, []).append(each.default.loss.name)
    return [f"{', '.join(names)}: {budget}" for budget, names in losses.items()]


def _searched(tuned: Tuned) -> str:
    """Say which ranges were searched for a loss, and how many trials that is for each of them."""
    name, count = tuned.default.loss.name, len(tuned.searched)
    if not count:
        return f"{name}: nothing to search, so one trial"
    ranges = ", ".join(
        f"{each.name} {each.low:g} to {each.high:g}{' (log)' if each.logarithmic else ''}"
        for each in tuned.searched
    )
    trials = len(tuned.trials)
    return f"{name} searched {ranges}: {trials} trials, {trials / count:.3g} per dimension"


def _at_bounds(tuned: Sequence[Tuned], plan: Plan) -> str:
    """Name every chosen value at a bound: beyond it there may be a better one."""
    found = []
    for each in tuned:
        values = _values(each, plan)
        found += [
            f"{each.default.loss.name} {searched.name}={value}"
            for searched in each.searched
            if isinstance(value := values[searched.name], int | float) and searched.ends_at(value)
        ]
    rule = "in the outer 5 % of its search range"
    if not found:
        return f"no chosen value is {rule}"
    return (
        f"chosen values at a bound ({rule}), where a wider range may give better ones: "
        f"{'; '.join(found)}"
    )
