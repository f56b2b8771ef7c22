"""Tables as text, Markdown, LaTeX, HTML, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations

from tabulate import tabulate

from mlbench.comparison.best import rope
from mlbench.comparison.comparison import Comparison
from mlbench.comparison.judgement import Differences
from mlbench.comparison.rows import Row
from mlbench.errors import printable_lines
from mlbench.tables import text as terminal
from mlbench.tables.escaping import escape_csv, escape_latex, escape_markdown
from mlbench.tables.layout import sheets
from mlbench.tables.sheet import Sheet


def to_text(sheets: Sequence[Sheet], columns: int = 120, *, styled: bool = False) -> str:
    """Return tables as plain text, for a terminal if ``styled``; see ``text.to_text``."""
    return "".join(f"{terminal.to_text(each, columns, styled=styled)}\n" for each in sheets)


def to_markdown(sheets: Sequence[Sheet]) -> str:
    """Return tables as GitHub Markdown."""
    parts = []
    for each in sheets:
        body = _styled(each, escape_markdown, lambda text: f"**{text}**")
        align = ["left" if n in each.texts else "right" for n in range(len(each.header))]
        header = [escape_markdown(name) for name in each.header]
        grid = tabulate(body, header, "github", colalign=align, disable_numparse=True)
        notes = "\n".join(f"- {escape_markdown(note)}" for note in each.lines_below)
        folded = _markdown_settings(each.settings)
        parts.append(f"### {escape_markdown(each.title)}\n\n{grid}\n\n{notes}\n{folded}")
    return "\n".join(parts)


_SETTINGS = "<details><summary>Settings per loss</summary>"


def _markdown_settings(settings: Sequence[tuple[str, str]]) -> str:
    """Return the settings of losses as a list that is folded; "" if there are none."""
    if not settings:
        return ""
    lines = [f"- {escape_markdown(f'{name}: {text}')}\n" for name, text in settings]
    return f"\n{_SETTINGS}\n\n{''.join(lines)}\n</details>\n"


def _html_settings(settings: Sequence[tuple[str, str]]) -> str:
    if not settings:
        return ""
    lines = [
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>\n" for name, text in settings
    ]
    return f"{_SETTINGS}\n<dl>\n{''.join(lines)}</dl>\n</details>\n"


def to_latex(sheets: Sequence[Sheet]) -> str:
    """Return tables as LaTeX for the booktabs package; advice and notes are comments."""
    parts = []
    for each in sheets:
        body = _styled(each, escape_latex, lambda text: f"\\textbf{{{text}}}")
        rows = []
        for line, cells in zip(each.lines, body, strict=True):
            rows += [" & ".join(cells) + r" \\", *([r"\midrule"] if line.ends_section else [])]
        align = "".join("l" if n in each.texts else "r" for n in range(len(each.header)))
        lines = [
            *(f"% {' '.join(text.split())}" for text in (each.title, each.advice) if text),
            *("% " + " ".join(text.split()) for text in each.lines_below),
            *("% " + " ".join(f"{name}: {text}".split()) for name, text in each.settings),
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(map(escape_latex, each.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([_PACKAGES, *parts])


_PACKAGES = "% Put this into the preamble: \\usepackage{booktabs}\n"


def to_html(sheets: Sequence[Sheet]) -> str:
    """Return tables as an HTML fragment without styles or resources."""
    parts = []
    for each in sheets:
        header = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in each.header)
        body = _styled(each, html.escape, lambda text: f"<strong>{text}</strong>")
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in body
        )
        notes = "\n".join(f"<li>{html.escape(note)}</li>" for note in each.lines_below)
        parts.append(
            f"<table>\n<caption>{html.escape(each.title)}</caption>\n<thead><tr>{header}</tr>"
            f"</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n<ul>\n{notes}\n</ul>\n"
            f"{_html_settings(each.settings)}"
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


def to_csv(comparisons: Sequence[Comparison], _width: float | None = None) -> str:
    """Return one line per row of every comparison: fractions, unrounded."""
    metrics = list(dict.fromkeys(m for c in comparisons for m in c.metrics))
    facts = ["title", "recipe_id", "loss", "baseline", "n", "diverged"]
    parts = ("", " half_width", " marked", " behind", " behind_low", " behind_high")
    numbers = [f"{metric}{part}" for metric in metrics for part in parts]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*facts, *numbers, "notes", "holds for", "stamp"])
    for c in comparisons:
        chosen = [f"{name}: {text}" for name, text in c.settings.items()]
        for row in c.rows:
            values = [value for metric in metrics for value in _csv_values(row, metric)]
            texts = [" | ".join(row.notes), str(c.scope), " | ".join((*c.notes, *c.stamp, *chosen))]
            cells = [c.title, c.recipe_id, row.label, row.baseline, row.runs, row.diverged]
            cells += [*values, *texts]
            writer.writerow([escape_csv(v) if isinstance(v, str) else v for v in cells])
    return buffer.getvalue()


def _csv_values(row: Row, metric: str) -> tuple[float | bool | None, ...]:
    value, behind = row.estimates.get(metric), row.behind.get(metric)
    if value is None:
        return (None,) * 6
    distance = (behind.gap, behind.low, behind.high) if behind else (None,) * 3
    return value.mean, value.half_width, metric in row.marked, *distance


def to_json(comparisons: Sequence[Comparison], width: float | None = None) -> str:
    """Return the comparisons as JSON: fractions, unrounded; ``width`` is as in ``render``."""
    return json.dumps([_plain(c, width) for c in comparisons], indent=1) + "\n"


def _plain(comparison: Comparison, width: float | None) -> dict[str, object]:
    return {
        "title": comparison.title,
        "recipe_id": comparison.recipe_id,
        "holds_for": {metric: str(scope) for metric, scope in comparison.scopes.items()},
        "differences": list(comparison.differences),
        "rows": [_plain_row(row, width) for row in comparison.rows],
        "pairs": {metric: _plain_pairs(each) for metric, each in comparison.pairs.items()},
        "noisy": {name: list(metrics) for name, metrics in comparison.noisy.items()},
        "notes": list(comparison.notes),
        "stamp": list(comparison.stamp),
        "settings": comparison.settings,
    }


def _plain_row(row: Row, width: float | None) -> dict[str, object]:
    return {
        "loss": row.label,
        "baseline": row.baseline,
        "n": row.runs,
        "diverged": row.diverged,
        "notes": list(row.notes),
        "metrics": {name: _plain_metric(row, name, width) for name in row.estimates},
    }


def _plain_metric(row: Row, name: str, width: float | None) -> dict[str, object]:
    value = row.estimates[name]
    behind, better = row.behind.get(name), row.better.get(name)
    return {
        "mean": value.mean,
        "half_width": value.half_width,
        "marked": name in row.marked,
        "behind_best": asdict(behind) if behind else None,
        "better_than_next": asdict(better) if better else None,
        "share_of_classes_led": row.leads.get(name),
        "practically": rope(behind, width / 100) if behind and width is not None else None,
    }


def _plain_pairs(found: Differences) -> list[dict[str, object]]:
    columns = (found.difference, found.half_width, found.p)
    return [
        {"a": a, "b": b, "difference": difference, "half_width": half_width, "p": p}
        for (a, b), difference, half_width, p in zip(
            combinations(found.names, 2), *columns, strict=True
        )
    ]


SHEET_FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
}
"""Formats for people."""


DATA_FORMATS: dict[str, Callable[[Sequence[Comparison], float | None], str]] = {
    "csv": to_csv,
    "json": to_json,
}
"""Formats for programs."""


def render(
    comparisons: Sequence[Comparison],
    form: str,
    *,
    reference: bool = False,
    width: float | None = None,
    columns: Sequence[str] | None = None,
) -> str:
    """Return the tables in one of ``SHEET_FORMATS`` or ``DATA_FORMATS``.

    Whatever names hold, control characters do not get through: they could steer a terminal.

    Args:
        comparisons: to be shown.
        form: name of the format.
        reference: add the published rows of each data set (not in CSV and JSON).
        width: of differences that do not matter, in percent points (not in CSV).
        columns: to be shown, as for ``layout.sheet`` (not in CSV and JSON).
    """
    if form in DATA_FORMATS:
        text = DATA_FORMATS[form](comparisons, width)
    else:
        laid_out = sheets(comparisons, reference=reference, width=width, columns=columns)
        text = SHEET_FORMATS[form](laid_out)
    return printable_lines(text)
