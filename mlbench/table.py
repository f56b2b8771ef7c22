"""Comparison tables as text, Markdown, LaTeX, CSV, JSON or HTML."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

from mlbench import terminal
from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, Row
from mlbench.comparison.published import LOSS_OF, PublishedRow, published
from mlbench.comparison.statistics import Difference, Estimate
from mlbench.errors import printable_lines
from mlbench.escaping import escape_csv, escape_latex, escape_markdown

if TYPE_CHECKING:
    from mlbench.comparison.ladder import RungResult

_BEHIND = "behind in R@1"


@dataclass(frozen=True)
class Line:
    """A line of a printed table: cells as plain text, and which of them are bold."""

    cells: tuple[str, ...]
    bold: tuple[bool, ...]
    ends_section: bool = False


@dataclass(frozen=True)
class Sheet:
    """A printed table: what every format but CSV and JSON shows.

    Attributes:
        title: of the table.
        header: of its columns, the first one the loss.
        lines: of its body.
        notes: footnotes, then the stamp.
        advice: what to make of it, in a sentence, for the formats read on the spot; may be "".
        texts: numbers of the columns that hold text, which begin at the left.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    advice: str = ""
    texts: tuple[int, ...] = (0,)


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


def to_text(sheets: Sequence[Sheet], columns: int = 120, *, styled: bool = False) -> str:
    """Return tables as plain text, for a terminal if ``styled``; see ``terminal.to_text``."""
    return "".join(f"{terminal.to_text(each, columns, styled=styled)}\n" for each in sheets)


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Return tables as GitHub Markdown."""
    parts = []
    for each in sheets:
        body = _styled(each, escape_markdown, lambda text: f"**{text}**")
        align = ["left" if n in each.texts else "right" for n in range(len(each.header))]
        header = [escape_markdown(name) for name in each.header]
        grid = tabulate(body, header, "github", colalign=align, disable_numparse=True)
        notes = "\n".join(f"- {escape_markdown(note)}" for note in each.notes)
        parts.append(f"### {escape_markdown(each.title)}\n\n{grid}\n\n{notes}\n")
    return "\n".join(parts)


def to_latex(sheets: Sequence[Sheet]) -> str:
    """Return tables as LaTeX for the booktabs package; the notes are comments."""
    parts = []
    for each in sheets:
        body = _styled(each, escape_latex, lambda text: f"\\textbf{{{text}}}")
        rows = []
        for line, cells in zip(each.lines, body, strict=True):
            rows += [" & ".join(cells) + r" \\", *([r"\midrule"] if line.ends_section else [])]
        align = "".join("l" if n in each.texts else "r" for n in range(len(each.header)))
        lines = [
            *("% " + " ".join(text.split()) for text in (each.title, *each.notes)),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(map(escape_latex, each.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def to_html(sheets: Sequence[Sheet]) -> str:
    """Return tables as an HTML fragment without styles or resources."""
    parts = []
    for each in sheets:
        header = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in each.header)
        body = _styled(each, html.escape, lambda text: f"<strong>{text}</strong>")
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body
        )
        notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in each.notes)
        parts.append(
            f"<table>\n<caption>{html.escape(each.title)}</caption>\n<thead><tr>{header}</tr>"
            f"</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n<ul>\n{notes}\n</ul>\n"
        )
    return "\n".join(parts)


def _styled(
    given: Sheet, escape: Callable[[str], str], bold: Callable[[str], str]
) -> list[list[str]]:
    return [
        [
            bold(escape(cell)) if is_bold else escape(cell)
            for cell, is_bold in zip(line.cells, line.bold, strict=True)
        ]
        for line in given.lines
    ]


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return one line per row of every comparison: fractions, unrounded."""
    metrics = list(dict.fromkeys(m for c in comparisons for m in c.metrics))
    facts = ["title", "recipe_id", "loss", "baseline", "n", "diverged"]
    numbers = [name for m in metrics for name in (m, f"{m} half_width", f"{m} tied")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*facts, *numbers, "notes", "stamp"])
    for c in comparisons:
        for row in c.rows:
            values = [_csv_values(row, metric) for metric in metrics]
            texts = [" | ".join(row.notes), " | ".join(c.stamp)]
            cells = [c.title, c.recipe_id, row.label, row.baseline, row.runs, row.diverged]
            cells += [value for triple in values for value in triple] + texts
            writer.writerow([escape_csv(v) if isinstance(v, str) else v for v in cells])
    return buffer.getvalue()


def _csv_values(row: Row, metric: str) -> tuple[float | None, float | None, bool | None]:
    value = row.estimates.get(metric)
    if value is None:
        return None, None, None
    return value.mean, value.half_width, metric in row.tied


def to_json(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as JSON: fractions, unrounded."""
    return json.dumps([_plain(c) for c in comparisons], indent=1) + "\n"


def _plain(comparison: Comparison) -> dict[str, object]:
    return {
        "title": comparison.title,
        "recipe_id": comparison.recipe_id,
        "differences": list(comparison.differences),
        "rows": [_plain_row(row) for row in comparison.rows],
        "stamp": list(comparison.stamp),
    }


def _plain_row(row: Row) -> dict[str, object]:
    return {
        "loss": row.label,
        "baseline": row.baseline,
        "n": row.runs,
        "diverged": row.diverged,
        "notes": list(row.notes),
        "metrics": {
            name: {"mean": e.mean, "half_width": e.half_width, "tied": name in row.tied}
            | _plain_difference(row.behind.get(name))
            for name, e in row.estimates.items()
        },
    }


def _plain_difference(behind: Difference | None) -> dict[str, object]:
    if behind is None:
        return {}
    names = ("mean", "half_width", "p", "effect")
    return {"behind_best": {name: getattr(behind, name) for name in names}}


SHEET_FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
}
"""Formats for people."""

DATA_FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {"csv": to_csv, "json": to_json}
"""Formats for programs."""


def render(comparisons: Sequence[Comparison], form: str, *, reference: bool = False) -> str:
    """Return the tables in one of ``SHEET_FORMATS`` or ``DATA_FORMATS``.

    Whatever names hold, control characters do not get through: they could steer a terminal.

    Args:
        comparisons: to be shown.
        form: name of the format.
        reference: add the published rows of each data set (not in CSV and JSON).
    """
    if form in DATA_FORMATS:
        text = DATA_FORMATS[form](comparisons)
    else:
        text = SHEET_FORMATS[form](sheets(comparisons, reference=reference))
    return printable_lines(text)


def sheets(comparisons: Sequence[Comparison], *, reference: bool = False) -> list[Sheet]:
    """Lay out comparisons, each followed by the published rows of its data set if asked for."""
    laid_out: list[Sheet] = []
    for comparison in comparisons:
        laid_out.append(sheet(comparison))
        beside = reference_sheet(comparison) if reference else None
        laid_out += [beside] if beside else []
    return laid_out
