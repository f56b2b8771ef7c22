"""From one recipe to another, factor by factor: what explains a gap between two results."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlbench.comparison.comparison import differences
from mlbench.comparison.estimates import Estimate, estimate
from mlbench.comparison.judgement import Scope, judge
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import LossSpec, Recipe
from mlbench.recipes.validation import build
from mlbench.system.files import atomic_file, check_path

if TYPE_CHECKING:
    from mlbench.records.record import RunRecord

FACTORS: dict[str, tuple[str, ...]] = {
    "input": ("input.normalization", "input.channels"),
    "batch norm": ("backbone.bn_stats", "backbone.bn_affine"),
    "learning rates": ("optimizer.lr", "optimizer.head_lr", "optimizer.loss_lr"),
    "loss parameters": ("loss.",),
    "eps and decay": ("optimizer.",),
    "head": ("head.",),
    "schedule and crop": ("schedule.", "input.", "data.", "batch.", "training."),
    "backbone": ("backbone.",),
    "selection": ("selection.", "evaluation."),
}
"""The factors in the order of the ladder, with the fields (or sections) that each changes.

A field belongs to the first factor that names it. The input comes before batch norm: with frozen
statistics and a wrong input the first layers' outputs are far off, and the two only make sense in
this order.
"""

Mode = Literal["cumulative", "single"]
Changes = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        factor: what changes; "" for the start.
        changes: fields with their old and new values.
        plan: the runs of this rung.
    """

    factor: str
    changes: Changes
    plan: Plan


@dataclass(frozen=True)
class Gain:
    """What a step gained in R@1.

    Attributes:
        mean: of the later runs minus that of the earlier ones.
        half_width: of its 95 % interval; None if nothing is known.
        scope: what the interval holds for.
    """

    mean: float
    half_width: float | None
    scope: Scope


@dataclass(frozen=True)
class RungResult:
    """What came of a rung.

    Attributes:
        rung: the rung.
        recall: R@1 over its runs; None if it could not run.
        gain: over the rung before it (mode ``cumulative``) or over the start (``single``); None
            for the start, or if either could not run.
        problem: why it could not run; "" if it did.
    """

    rung: Rung
    recall: Estimate | None
    gain: Gain | None
    problem: str = ""


def ladder(start: Plan, end: Plan, mode: Mode = "cumulative") -> list[Rung]:
    """Return the rungs from ``start`` to ``end``, both plans of the same single loss.

    Args:
        start: the plan at the foot.
        end: the plan at the top; its fields replace those of ``start``.
        mode: ``cumulative`` keeps each change for the next rung; ``single`` changes one factor of
            ``start`` at a time.

    Raises:
        MlbenchError: they are of two data sets, whose figures say nothing of each other.
    """
    names = start.recipe.data.name, end.recipe.data.name
    if names[0] != names[1]:
        raise MlbenchError(
            f"the recipes are of two data sets, {' and '.join(names)}: choose one with --dataset"
        )
    here, there = _flat(start), _flat(end)
    changed = differences(here, there)
    rungs = [Rung("", {}, start)]
    for factor in FACTORS:
        changes = {key: pair for key, pair in changed.items() if factor_of(key) == factor}
        if not changes:
            continue
        fields = {**here, **{key: new for key, (_, new) in changes.items()}}
        rungs.append(Rung(factor, changes, _plan(fields, start, end)))
        if mode == "cumulative":
            here = fields
    return rungs


def factor_of(key: str) -> str:
    """Return the factor that a field (``section.name``, or ``loss.parameter``) belongs to."""
    exact = [factor for factor, names in FACTORS.items() if key in names]
    section = key.partition(".")[0] + "."
    return (exact or [factor for factor, names in FACTORS.items() if section in names])[0]


def _flat(plan: Plan) -> dict[str, Any]:
    params = {f"loss.{name}": value for name, value in plan.losses[0].params}
    return {**plan.recipe.flat(), **params}


def _plan(fields: Mapping[str, Any], start: Plan, end: Plan) -> Plan:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    params = {name: v for name, v in sections.pop("loss", {}).items() if v is not None}
    recipe = build(Recipe, sections, "ladder")
    same_weights = recipe.backbone.weights == start.recipe.backbone.weights
    files = start.files if same_weights else replace(start.files, weights=end.files.weights)
    loss = LossSpec(start.losses[0].name, tuple(sorted(params.items())))
    return Plan(recipe, (loss,), start.seeds, files)


def climb(
    rungs: Sequence[Rung],
    run: Callable[[Plan], Mapping[Path, RunRecord]],
    mode: Mode = "cumulative",
) -> list[RungResult]:
    """Run the rungs.

    Args:
        rungs: from ``ladder``.
        run: makes (or finds) the runs of a plan and returns their records by path.
        mode: as the rungs were built: what each gain is measured from.

    Returns:
        one result a rung; one that cannot run (such as for lack of weights) says why.
    """
    results: list[RungResult] = []
    base: Mapping[Path, RunRecord] = {}
    for rung in rungs:
        finished, problem = _finished(rung.plan, run)
        figures = [float(r.metrics["R@1"]) for r in finished.values()]
        recall = estimate(figures) if figures else None
        gain = _gain(base, finished) if base and finished else None
        results.append(RungResult(rung, recall, gain, problem))
        if mode == "cumulative" or rung is rungs[0]:
            base = finished
    return results


def _finished(
    plan: Plan, run: Callable[[Plan], Mapping[Path, RunRecord]]
) -> tuple[dict[Path, RunRecord], str]:
    """Return the finished runs of a plan, or none and the reason."""
    try:
        records = run(plan)
    except MlbenchError as error:
        return {}, str(error)
    finished = {path: record for path, record in records.items() if record.status == "ok"}
    if finished:
        return finished, ""
    return {}, "every run diverged" if records else "every run failed"


def _gain(before: Mapping[Path, RunRecord], after: Mapping[Path, RunRecord]) -> Gain | None:
    """Return the difference in R@1; None if they were tested on different queries."""
    runs = {"before": list(before.values()), "after": list(after.values())}
    try:
        judged = judge(runs, ["R@1"])["R@1"]
    except MlbenchError:
        return None
    old, new = (estimate([float(r.metrics["R@1"]) for r in each]).mean for each in runs.values())
    if judged.differences is None:
        return Gain(new - old, None, judged.scope)
    (behind,), (half_width,) = judged.differences.difference, judged.differences.half_width
    return Gain(-behind, half_width, judged.scope)


def check_picture(path: Path) -> None:
    """Raise MlbenchError if no picture can be written to ``path``."""
    check_path(path)
    if path.suffix not in (".png", ".svg") or not path.parent.is_dir():
        raise MlbenchError(f"cannot write the picture {path}: give a .png or .svg in a folder")


def waterfall(results: Sequence[RungResult], path: Path, title: str) -> None:
    """Draw the ladder as a waterfall, to PNG or SVG by the suffix of ``path``.

    Raises:
        MlbenchError: the file cannot be written, or its suffix is of no picture.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 * len(results) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    reached: float | None = None
    for number, result in enumerate(results):
        if result.recall is None:
            axes.text(0.5, number, "not run", transform=axes.get_yaxis_transform(), va="center")
            continue
        mean = 100 * result.recall.mean
        left = mean if reached is None else min(mean, reached)
        width = abs(mean - (mean if reached is None else reached))
        colour = "#888888" if reached is None else "#2a7f62" if mean >= reached else "#b3432b"
        axes.barh(number, width or 0.15, left=left, color=colour)
        half_width = 100 * (result.recall.half_width or 0)
        axes.errorbar(mean, number, xerr=half_width, color="black", capsize=3, linestyle="none")
        beside = (max(left + width, mean + half_width), number)
        axes.annotate(f"{mean:.1f}", beside, (6, -3), textcoords="offset points")
        reached = mean
    axes.set_yticks(range(len(results)), [r.rung.factor or "start" for r in results])
    axes.invert_yaxis()
    axes.use_sticky_edges = False
    axes.margins(x=0.12)
    axes.set_xlabel("R@1, percent")
    axes.set_title(title, fontsize=10, loc="left")
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=path.suffix[1:] or "png", dpi=150)
    except ValueError as error:
        raise MlbenchError(f"cannot write the picture {path}: {error}") from error
    with atomic_file(path) as file:
        file.write(picture.getbuffer())
