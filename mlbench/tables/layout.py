"""Comparison tables as text, Markdown, LaTeX, CSV, JSON or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlbench.comparison.advice import advise
from mlbench.comparison.best import Behind, rope
from mlbench.comparison.comparison import METRIC, Comparison
from mlbench.comparison.estimates import Estimate
from mlbench.comparison.judgement import Scope
from mlbench.comparison.published import LOSS_OF, PublishedRow, published
from mlbench.comparison.rows import Row
from mlbench.errors import MlbenchError, first_few
from mlbench.tables.sheet import Line, Sheet

if TYPE_CHECKING:
    from mlbench.comparison.ladder import Gain, Rung, RungResult

_GAP = f"gap to best, {METRIC}"


def sheet(
    comparison: Comparison, width: float | None = None, columns: Sequence[str] | None = None
) -> Sheet:
    """Lay out a comparison in percent; values not significantly different from the best are marked.

    Args:
        comparison: to be shown.
        width: largest difference that does not matter, in percentage points; None adds no column.
        columns: metrics, ``gap`` and ``n`` to be shown, and nothing else; None shows what is usual.

    Raises:
        MlbenchError: a column that the comparison does not have.
    """
    shown = _shown(comparison, columns)
    ending = _ending(comparison, width, columns)
    footnotes = list(dict.fromkeys(note for row in comparison.rows for note in row.notes))
    lines = []
    for number, row in enumerate(comparison.rows):
        following = comparison.rows[number + 1 : number + 2]
        ends = any(_starts_section(comparison, row, each) for each in following)
        cells = {_GAP: distance(row.behind.get(METRIC)), "n": _count(row)}
        if width is not None:
            cells["practically"] = _practically(row, width)
        lines.append(_line(row, shown, footnotes, [cells[name] for name in ending], ends))
    return Sheet(
        title=comparison.title,
        header=(", ".join([*comparison.named_by, "loss"]), *shown, *ending),
        lines=tuple(lines),
        legend=_legend(comparison),
        notes=(
            *(f"[{number}] {note}" for number, note in enumerate(footnotes, 1)),
            *(f"difference from the first table: {text}" for text in comparison.differences),
            *_explained(comparison, shown, width, gaps=_GAP in ending),
            *comparison.notes,
            *comparison.stamp,
        ),
        settings=tuple(comparison.settings.items()),
        advice=advise(comparison),
    )


def _shown(comparison: Comparison, columns: Sequence[str] | None) -> list[str]:
    """Return the metrics that have a column."""
    if columns is None:
        return [metric for metric in comparison.metrics if metric != "R-Precision"]
    unknown = [name for name in columns if name not in (*comparison.metrics, "gap", "n")]
    if unknown:
        known = ", ".join([*comparison.metrics, "gap", "n"])
        raise MlbenchError(f"columns: no column '{unknown[0]}'; there are: {known}")
    return [name for name in columns if name in comparison.metrics]


def _ending(
    comparison: Comparison, width: float | None, columns: Sequence[str] | None
) -> list[str]:
    """Return the columns behind the metrics; gaps are shown where one is known."""
    gaps = any(METRIC in row.behind for row in comparison.rows)
    gap = [_GAP] if gaps and (columns is None or "gap" in columns) else []
    practice = [] if width is None else ["practically"]
    count = ["n"] if columns is None or "n" in columns else []
    return [*gap, *practice, *count]


def _practically(row: Row, width: float) -> str:
    behind = row.behind.get(METRIC)
    return "-" if behind is None else rope(behind, width / 100)


def _count(row: Row) -> str:
    return f"{row.runs}{f' ({row.diverged} diverged)' if row.diverged else ''}"


def _starts_section(comparison: Comparison, row: Row, following: Row) -> bool:
    """Tell whether a line is drawn between two rows: below baselines, or between varied values."""
    if not comparison.varied:
        return row.baseline and not following.baseline
    several = len({row.values for row in comparison.rows}) < len(comparison.rows)
    return several and row.values != following.values


def _legend(comparison: Comparison) -> str:
    """Say what a mark means; "" if no row is marked in any metric."""
    if not any(row.marked for row in comparison.rows):
        return ""
    return (
        f"not significantly different from the best, for {comparison.scope}; this does not show "
        "that they are equal"
    )


def _explained(
    comparison: Comparison, shown: Sequence[str], width: float | None, *, gaps: bool
) -> list[str]:
    """Say what the figures are, and what their intervals hold for, a line each."""
    lines = ["values in percent" + _over_what(comparison)]
    if gaps:
        lines.append(
            f"{_GAP}: points below the best {'row' if comparison.varied else 'trained loss'} (95 % "
            f"interval); all these intervals hold at once, for {comparison.scope}"
        )
    if comparison.varied and any(row.loss == "features" for row in comparison.rows):
        lines.append(
            "rows of features have the dimension of the backbone, other rows that of head.dim"
        )
    if comparison.scope is Scope.CLASSES:
        lines.append(
            "one seed: the variation between seeds is unknown and not part of these intervals, so "
            "no loss is marked"
        )
    lines += [
        f"{metric}: compared for {scope} only, so no value is marked"
        for metric, scope in comparison.scopes.items()
        if metric in shown and comparison.scope.judged and scope is not comparison.scope
    ]
    lines += [
        f"{name} varies more between seeds than the other losses in {first_few(noisy)}, so "
        "its own variance is used there"
        for name, metrics in comparison.noisy.items()
        if (noisy := [metric for metric in metrics if metric in shown])
    ]
    if width is not None:
        lines.append(
            f"practically: equal if the whole interval of the gap is at most {width:g} points, "
            "behind if all of it is more, else open"
        )
    return lines


def _over_what(comparison: Comparison) -> str:
    known = any(e.half_width is not None for row in comparison.rows for e in row.estimates.values())
    what = "seeds"
    if comparison.identity.random_splits or comparison.recipe.selection.folds:
        what = "splits" if comparison.identity.random_splits else "folds"
    return f"; ±: 95 % interval of the mean over {what}" if known else ""


def _line(
    row: Row, shown: Sequence[str], footnotes: Sequence[str], ending: Sequence[str], ends: bool
) -> Line:
    marks = "".join(f" [{footnotes.index(note) + 1}]" for note in row.notes)
    figures = [percent(row.estimates.get(metric)) for metric in shown]
    return Line(
        cells=(row.label + marks, *figures, *ending),
        bold=(False, *(metric in row.marked for metric in shown), *(False for _ in ending)),
        ends_section=ends,
    )


def percent(value: Estimate | None) -> str:
    """Return a fraction as percent, with its interval if it has one."""
    if value is None:
        return "-"
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{interval}"


def distance(behind: Behind | None) -> str:
    """Return a distance to the best in percent points with its interval, as 2.4 (1.1 to 3.6)."""
    if behind is None:
        return "-"
    low = f"{100 * behind.low:.1f}"
    if float(low) == 0 < behind.low:  # unmarked: what is printed must tell
        low = f"{100 * behind.low:.1g}"
    return f"{_points(behind.gap)} ({low if behind.low else 0} to {_points(behind.high)})"


def _points(fraction: float) -> str:
    """Return percent points; 0 where they are exactly that."""
    return f"{100 * fraction:.1f}" if fraction else "0"


def reference_sheet(comparison: Comparison) -> Sheet | None:
    """Lay out the published rows of a comparison's data set, with ours at the same length beside.

    Returns:
        None if nothing published is known for the data set.
    """
    rows = published(comparison.dataset)
    if not rows:
        return None
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
    lines = []
    for number, row in enumerate(rows):
        ends = any(row.dim != each.dim for each in rows[number + 1 : number + 2])
        cells = (
            row.method,
            str(row.dim),
            row.backbone,
            *(_published(row, metric) for metric in metrics),
            _ours_minus(row, comparison),
        )
        lines.append(Line(cells, (False,) * len(cells), ends))
    return Sheet(
        title=f"published for {comparison.dataset}",
        header=("method", "dim", "backbone", *metrics, "R@1: ours - published"),
        lines=tuple(lines),
        notes=(
            "†: quoted in another public table, which we read; ?: from memory, not yet checked; "
            "no mark: read in the publication",
            f"ours: {comparison.recipe.backbone.name}, recipe {comparison.recipe_id}, "
            f"epoch: {comparison.recipe.selection.rule}; "
            "published: other backbones and recipes, some with the epoch selected on the test "
            "classes. A difference is due to recipe and loss together",
            *dict.fromkeys(f"{row.method} ({row.dim}): {row.source}" for row in rows),
        ),
        texts=(0, 2),
    )


def ladder_sheet(results: Sequence[RungResult], title: str) -> Sheet:
    """Lay out a cumulative ablation: factor, what changed, R@1, gain; or why a step was not run."""
    lines, notes = [], []
    for result in results:
        factor = result.rung.factor or "start"
        changes = "; ".join(f"{k} {a} -> {b}" for k, (a, b) in result.rung.changes.items())
        recall = percent(result.recall) if result.recall else "not run"
        runs = str(result.recall.n) if result.recall else "0"
        cells = (factor, changes or "-", recall, _gain(result.gain), runs)
        lines.append(Line(cells, (False,) * len(cells)))
    notes += not_run({r.rung.factor or "start": r.problem for r in results if r.problem})
    notes.append("R@1 in percent ± 95 % t-interval over seeds")
    scopes = dict.fromkeys(r.gain.scope for r in results if r.gain and r.gain.half_width)
    notes += [f"gain ± 95 % interval of each step, for {' or '.join(scopes)}"] if scopes else []
    header = ("factor", "change", "R@1", "gain", "n")
    return Sheet(title, header, tuple(lines), tuple(notes), texts=(0, 1))


def rungs_sheet(rungs: Sequence[Rung], title: str, cost: Sequence[str]) -> Sheet:
    """Lay out a cumulative ablation before it is run: changes of each step, and ``cost``."""
    lines = []
    for rung in rungs:
        changes = "; ".join(f"{k} {a} -> {b}" for k, (a, b) in rung.changes.items())
        lines.append(Line((rung.factor or "start", changes or "-"), (False, False)))
    return Sheet(title, ("factor", "change"), tuple(lines), tuple(cost), texts=(0, 1))


def not_run(problems: Mapping[str, str]) -> list[str]:
    """Say why some things were not run, each reason once.

    Args:
        problems: reasons by what was not run.
    """
    reasons: dict[str, list[str]] = {}
    for what, problem in problems.items():
        reasons.setdefault(problem, []).append(what)
    return [f"{', '.join(each)} not run: {problem}" for problem, each in reasons.items()]


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    interval = "" if gain.half_width is None else f" ± {100 * gain.half_width:.1f}"
    return f"{100 * gain.mean:+.1f}{interval}"


def _published(row: PublishedRow, metric: str) -> str:
    return f"{row.values[metric]:.1f}{row.marks[metric]}" if metric in row.values else "-"


def _ours_minus(row: PublishedRow, comparison: Comparison) -> str:
    if row.dim != comparison.dim:
        return "-"
    ours = [r for r in comparison.rows if r.loss == LOSS_OF.get(row.method) and r.estimates]
    return (
        ", ".join(
            f"{r.label} {100 * r.estimates['R@1'].mean - row.values['R@1']:+.1f}" for r in ours
        )
        or "-"
    )


def sheets(
    comparisons: Sequence[Comparison],
    *,
    reference: bool = False,
    width: float | None = None,
    columns: Sequence[str] | None = None,
) -> list[Sheet]:
    """Lay out comparisons.

    Args:
        comparisons: to be shown.
        reference: whether the published rows of its data set follow each.
        width: as in ``sheet``.
        columns: as in ``sheet``.
    """
    laid_out: list[Sheet] = []
    for comparison in comparisons:
        laid_out.append(sheet(comparison, width, columns))
        beside = reference_sheet(comparison) if reference else None
        laid_out += [beside] if beside else []
    return laid_out
