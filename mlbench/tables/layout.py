"""Comparison tables as text, Markdown, LaTeX, CSV, JSON or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, Row
from mlbench.comparison.published import LOSS_OF, PublishedRow, published
from mlbench.comparison.statistics import Difference, Estimate
from mlbench.tables.sheet import Line, Sheet

if TYPE_CHECKING:
    from mlbench.comparison.ladder import RungResult

_BEHIND = "behind in R@1"


def sheet(comparison: Comparison) -> Sheet:
    """Lay out a comparison: percent, bold where a row cannot be told apart from the best."""
    shown = [metric for metric in comparison.metrics if metric != "R-Precision"]
    footnotes = list(dict.fromkeys(note for row in comparison.rows for note in row.notes))
    lines = []
    for number, row in enumerate(comparison.rows):
        following = comparison.rows[number + 1 : number + 2]
        ends = row.baseline and any(not each.baseline for each in following)
        lines.append(_line(row, shown, footnotes, ends))
    finished = [row for row in comparison.rows if row.runs]
    judged = [row for row in finished if not row.baseline] or finished
    several = min((row.runs for row in judged), default=0) > 1
    return Sheet(
        title=comparison.title,
        header=("loss", *shown, _BEHIND, "n"),
        lines=tuple(lines),
        notes=(
            *(f"[{number}] {note}" for number, note in enumerate(footnotes, 1)),
            *(f"differs from the first: {text}" for text in comparison.differences),
            "percent; bold: not told apart from the best trained loss (paired over "
            f"{'seeds and ' if several else ''}queries, Holm over all pairs, 5 %)"
            + ("" if several else "; one seed: the noise between seeds is unknown")
            + _untested(comparison, shown),
            *comparison.stamp,
        ),
        advice=advise(comparison),
    )


def _untested(comparison: Comparison, shown: Sequence[str]) -> str:
    trained = [row for row in comparison.rows if row.runs and not row.baseline]
    untested = [name for name in shown if trained and not any(name in r.tied for r in trained)]
    return f"; too few runs to test {', '.join(untested)}: no bold there" if untested else ""


def _line(row: Row, shown: Sequence[str], footnotes: Sequence[str], ends: bool) -> Line:
    marks = "".join(f" [{footnotes.index(note) + 1}]" for note in row.notes)
    diverged = f" ({row.diverged} diverged)" if row.diverged else ""
    figures = [percent(row.estimates.get(metric)) for metric in shown]
    return Line(
        cells=(row.label + marks, *figures, _behind(row), f"{row.runs}{diverged}"),
        bold=(False, *(metric in row.tied for metric in shown), False, False),
        ends_section=ends,
    )


def percent(value: Estimate | None) -> str:
    """Return a fraction as percent, with its interval if it has one."""
    if value is None:
        return "-"
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{interval}"


def _behind(row: Row) -> str:
    if "R@1" not in row.behind:
        return "-"
    difference = row.behind["R@1"]
    if difference is None:
        return "best"
    return f"{100 * difference.mean:.1f} ± {100 * difference.half_width:.1f}"


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
            "† quoted by another public table that was read; ? recalled, not yet checked; "
            "no mark: read first-hand",
            f"ours: {comparison.recipe.backbone.name}, recipe {comparison.recipe_id}, "
            f"epoch: {comparison.recipe.selection.rule}; "
            "theirs: their own backbone and recipe, some with the epoch chosen on test classes. "
            "A difference is of recipe and loss together",
            *dict.fromkeys(f"{row.method} ({row.dim}): {row.source}" for row in rows),
        ),
        texts=(0, 2),
    )


def ladder_sheet(results: Sequence[RungResult], title: str) -> Sheet:
    """Lay out a ladder: factor, what changed, R@1, gain; what could not run says why."""
    lines, notes = [], []
    for result in results:
        factor = result.rung.factor or "start"
        changes = "; ".join(f"{k} {a} -> {b}" for k, (a, b) in result.rung.changes.items())
        recall = percent(result.recall) if result.recall else "not run"
        runs = str(result.recall.n) if result.recall else "0"
        cells = (factor, changes or "-", recall, _gain(result.gain), runs)
        lines.append(Line(cells, (False,) * len(cells)))
        notes += [f"{factor} not run: {result.problem}"] if result.problem else []
    notes.append(
        "R@1 in percent ± 95 % t-interval over runs; gain ± 95 %, paired over queries and seeds "
        "(with one seed over queries alone)"
    )
    header = ("factor", "change", "R@1", "gain", "n")
    return Sheet(title, header, tuple(lines), tuple(notes), texts=(0, 1))


def _gain(gain: Difference | None) -> str:
    return "-" if gain is None else f"{100 * gain.mean:+.1f} ± {100 * gain.half_width:.1f}"


def _published(row: PublishedRow, metric: str) -> str:
    return f"{row.values[metric]:.1f}{row.marks[metric]}" if metric in row.values else "-"


def _ours_minus(row: PublishedRow, comparison: Comparison) -> str:
    if row.dim != comparison.dim:
        return "-"
    ours = [r for r in comparison.rows if r.loss == LOSS_OF.get(row.method) and r.estimates]
    return (
        ", ".join(f"{100 * r.estimates['R@1'].mean - row.values['R@1']:+.1f}" for r in ours) or "-"
    )


def sheets(comparisons: Sequence[Comparison], *, reference: bool = False) -> list[Sheet]:
    """Lay out comparisons, each followed by the published rows of its data set if asked for."""
    laid_out: list[Sheet] = []
    for comparison in comparisons:
        laid_out.append(sheet(comparison))
        beside = reference_sheet(comparison) if reference else None
        laid_out += [beside] if beside else []
    return laid_out
