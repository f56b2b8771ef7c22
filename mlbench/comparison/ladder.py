"""From one recipe to another, factor by factor: what explains a gap between two results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlbench.comparison.comparison import differences
from mlbench.comparison.estimates import Estimate, estimate
from mlbench.comparison.factors import Changes, check_data, flat, grouped, plan_of
from mlbench.comparison.judgement import Scope, judge
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Plan

if TYPE_CHECKING:
    from mlbench.records.record import RunRecord

Mode = Literal["cumulative", "single"]


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


def ladder(
    start: Plan,
    end: Plan,
    mode: Mode = "cumulative",
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[Rung]:
    """Return the rungs from ``start`` to ``end``, both plans of the same single loss.

    Args:
        start: the plan at the foot.
        end: the plan at the top; its fields replace those of ``start``.
        mode: ``cumulative`` keeps each change for the next rung; ``single`` changes one factor of
            ``start`` at a time.
        groups: fields that are to change together, by the name of their factor; the others are
            grouped as in ``FACTORS``.

    Raises:
        MlbenchError: they are of two data sets, whose figures say nothing of each other.
    """
    check_data(start, end)
    here = flat(start)
    rungs = [Rung("", {}, start)]
    for factor in grouped(differences(here, flat(end)), groups):
        fields = {**here, **{key: new for key, (_, new) in factor.changes.items()}}
        rungs.append(Rung(factor.name, factor.changes, plan_of(fields, start, end)))
        if mode == "cumulative":
            here = fields
    return rungs


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
        finished, problem = finished_runs(rung.plan, run)
        figures = [float(r.metrics["R@1"]) for r in finished.values()]
        recall = estimate(figures) if figures else None
        gain = _gain(base, finished) if base and finished else None
        results.append(RungResult(rung, recall, gain, problem))
        if mode == "cumulative" or rung is rungs[0]:
            base = finished
    return results


def finished_runs(
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
