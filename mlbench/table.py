"""Comparison tables: records in, text, Markdown, LaTeX, CSV or JSON out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

from mlbench.baselines import BASELINES
from mlbench.errors import MlbenchError
from mlbench.record import RunRecord
from mlbench.registry import LOSSES
from mlbench.spec import LossSpec
from mlbench.statistics import Estimate, estimate

if TYPE_CHECKING:
    from rich.console import RenderableType

_COUNTS = ("n_query", "n_gallery", "n_lone")


@dataclass(frozen=True)
class Row:
    """One line of a table: a loss with one set of parameters, on one kind of hardware.

    Attributes:
        label: the loss, with the parameters that differ from its defaults.
        baseline: whether nothing was trained.
        estimates: by metric, as fractions; empty if every run diverged.
        runs: finished runs behind the estimates.
        diverged: runs whose loss became NaN or infinite.
    """

    label: str
    baseline: bool
    estimates: dict[str, Estimate]
    runs: int
    diverged: int


@dataclass(frozen=True)
class Comparison:
    """Rows that may be compared: one recipe, data set, protocol and set of initial weights.

    Attributes:
        title: data set, embedding length, backbone.
        metrics: in the order of the columns.
        rows: baselines first, then losses in alphabetical order.
        stamp: what a reader must know to judge the figures, a line each.
    """

    title: str
    recipe_id: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    stamp: tuple[str, ...]

    def best(self, metric: str) -> Row | None:
        """Return the trained row of the highest mean."""
        trained = [row for row in self.rows if metric in row.estimates and not row.baseline]
        return max(trained, key=lambda row: row.estimates[metric].mean, default=None)


def compare(records: Iterable[RunRecord]) -> list[Comparison]:
    """Sort records into comparisons; those of different recipes or data never share a table."""
    groups: dict[tuple[str, str, int, str], list[RunRecord]] = {}
    for r in records:
        key = (r.recipe_id, r.dataset.fingerprint, r.protocol_version, r.weights_id)
        groups.setdefault(key, []).append(r)
    return [_comparison(group) for _, group in sorted(groups.items())]


def _comparison(records: list[RunRecord]) -> Comparison:
    first = records[0]
    places = {_place(r) for r in records}
    rows: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        place = f" [{_place(record)}]" if len(places) > 1 else ""
        rows.setdefault((_label(record) + place, record.loss), []).append(record)
    order = {name: number for number, name in enumerate(BASELINES)}
    ranked = sorted(rows.items(), key=lambda item: (order.get(item[0][1], len(order)), item[0]))
    recipe = first.recipe
    return Comparison(
        title=f"{first.dataset.name}, {recipe.backbone.name}, {recipe.head.dim} dimensions",
        recipe_id=first.recipe_id,
        metrics=_metrics(records),
        rows=tuple(_row(label, loss, group) for (label, loss), group in ranked),
        stamp=_stamp(records),
    )


def _row(label: str, loss: str, records: list[RunRecord]) -> Row:
    finished = [r for r in records if r.status == "ok"]
    names = [name for name in (finished[0].metrics if finished else ()) if name not in _COUNTS]
    return Row(
        label=label,
        baseline=loss in BASELINES,
        estimates={name: estimate([r.metrics[name] for r in finished]) for name in names},
        runs=len(finished),
        diverged=len(records) - len(finished),
    )


def _label(record: RunRecord) -> str:
    if record.loss in BASELINES:
        return record.loss
    spec = LossSpec(record.loss, tuple(sorted(record.params.items())))
    try:
        return spec.label(LOSSES.get(record.loss).defaults)
    except MlbenchError:  # a plugin's record, read where the plugin is not installed
        return spec.label({})


def _place(record: RunRecord) -> str:
    return f"{record.provenance.device}: {record.provenance.hardware}"


def _metrics(records: list[RunRecord]) -> tuple[str, ...]:
    """Return all metrics, recalls first in the order of k."""
    names = {name for r in records for name in r.metrics if name not in _COUNTS}
    recalls = sorted((n for n in names if n.startswith("R@")), key=lambda n: int(n[2:]))
    others = [n for n in ("NMI", "MAP@R", "R-Precision") if n in names]
    return (*recalls, *others, *sorted(names - {*recalls, *others}))


def _stamp(records: list[RunRecord]) -> tuple[str, ...]:
    first, facts = records[0], records[0].dataset
    recipe, versions = first.recipe, first.provenance
    seeds = sorted({r.seed for r in records})
    images = sorted({r.cost.images_seen for r in records if r.cost.images_seen})
    sources = sorted({r.provenance.source for r in records})
    packages = ", ".join(f"{k} {v}" for k, v in versions.packages.items())
    return (
        f"recipe {first.recipe_id}: {recipe.schedule.epochs} epochs, batch {recipe.batch.size}, "
        f"{recipe.input.size} px, trunk {recipe.backbone.trunk}, weights {first.weights_id}, "
        f"selection: {recipe.selection.rule}",
        f"data {facts.name} {facts.fingerprint[:12]}: {_training_counts(records)}; "
        f"test {facts.test_images} images of {facts.test_classes} classes "
        f"({first.metrics.get('n_lone', 0)} lone queries)",
        f"seeds {_span(seeds)}; images seen per run: {', '.join(map(str, images)) or 'none'}; "
        "intervals: 95 % t over runs",
        f"hardware {'; '.join(sorted({_place(r) for r in records}))}",
        f"mlbench {versions.mlbench} source {', '.join(sources)}; {packages}",
    )


def _training_counts(records: list[RunRecord]) -> str:
    trained = [r.dataset for r in records if r.loss not in BASELINES] or [records[0].dataset]
    images = sorted({facts.train_images for facts in trained})
    classes = sorted({facts.train_classes for facts in trained})
    return f"train {_span(images)} images of {_span(classes)} classes"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _text_of(value: Estimate | None) -> str:
    """Return a fraction as percent, with its interval if it has one."""
    if value is None:
        return "-"
    interval = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}{interval}"


def _cells(
    comparison: Comparison, bold: Callable[[str], str], escape: Callable[[str], str]
) -> list[list[str]]:
    """Return the body of the table as texts; R-Precision is left to CSV and JSON."""
    best = {metric: comparison.best(metric) for metric in comparison.metrics}
    body = []
    for row in comparison.rows:
        cells = [escape(row.label)]
        for metric in _shown(comparison):
            text = escape(_text_of(row.estimates.get(metric)))
            cells.append(bold(text) if row is best[metric] else text)
        diverged = f" ({row.diverged} diverged)" if row.diverged else ""
        body.append([*cells, f"{row.runs}{diverged}"])
    return body


def _shown(comparison: Comparison) -> list[str]:
    return [metric for metric in comparison.metrics if metric != "R-Precision"]


def _header(comparison: Comparison) -> list[str]:
    return ["loss", *_shown(comparison), "n"]


def rich_table(comparison: Comparison) -> RenderableType:
    """Return the table for a terminal, percent, best trained row of each column in bold."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(comparison.title), title_justify="left")
    for name in _header(comparison):
        table.add_column(
            name, justify="left" if name == "loss" else "right", no_wrap=name != "loss"
        )
    for number, cells in enumerate(_cells(comparison, lambda t: f"[bold]{t}[/bold]", escape)):
        following = comparison.rows[number + 1 : number + 2]
        last_baseline = comparison.rows[number].baseline and not all(r.baseline for r in following)
        table.add_row(*cells, end_section=last_baseline)
    return Group(table, *(Text(line, style="dim") for line in comparison.stamp))


def to_text(comparisons: Sequence[Comparison], width: int = 110) -> str:
    """Return the tables as plain text, as for a terminal ``width`` characters wide."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, no_color=True)
    for comparison in comparisons:
        console.print(rich_table(comparison), end="\n\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the tables as GitHub Markdown."""
    parts = []
    for comparison in comparisons:
        body = _cells(comparison, lambda text: f"**{text}**", _escape_markdown)
        align = ["left", *["right"] * (len(_header(comparison)) - 1)]
        grid = tabulate(body, _header(comparison), "github", colalign=align, disable_numparse=True)
        stamp = "\n".join(f"- {_escape_markdown(line)}" for line in comparison.stamp)
        parts.append(f"### {_escape_markdown(comparison.title)}\n\n{grid}\n\n{stamp}\n")
    return "\n".join(parts)


def to_latex(comparisons: Sequence[Comparison]) -> str:
    """Return the tables as LaTeX for the booktabs package."""
    parts = []
    for comparison in comparisons:
        body = _cells(comparison, lambda text: f"\\textbf{{{text}}}", _escape_latex)
        lines = [" & ".join(cells) + r" \\" for cells in body]
        columns = "l" + "r" * (len(_header(comparison)) - 1)
        header = " & ".join(map(_escape_latex, _header(comparison)))
        parts.append(
            "\n".join(
                [
                    f"% {comparison.title}".replace("\n", " "),
                    *(f"% {line}".replace("\n", " ") for line in comparison.stamp),
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    rf"{header} \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    "",
                ]
            )
        )
    return "\n".join(parts)


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return one line per row of every comparison: fractions, unrounded."""
    metrics = list(dict.fromkeys(m for c in comparisons for m in c.metrics))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = [name for m in metrics for name in (m, f"{m} half_width")]
    writer.writerow(["title", "recipe_id", "loss", "baseline", "n", "diverged", *header, "stamp"])
    for c in comparisons:
        for row in c.rows:
            values = [row.estimates.get(m) for m in metrics]
            numbers = [x for v in values for x in ((v.mean, v.half_width) if v else (None, None))]
            facts = [_escape_csv(c.title), c.recipe_id, _escape_csv(row.label), row.baseline]
            stamp = _escape_csv(" | ".join(c.stamp))
            writer.writerow([*facts, row.runs, row.diverged, *numbers, stamp])
    return buffer.getvalue()


def to_json(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as JSON: fractions, unrounded."""
    return json.dumps([_plain(c) for c in comparisons], indent=1) + "\n"


def _plain(comparison: Comparison) -> dict[str, object]:
    return {
        "title": comparison.title,
        "recipe_id": comparison.recipe_id,
        "rows": [
            {
                "loss": row.label,
                "baseline": row.baseline,
                "n": row.runs,
                "diverged": row.diverged,
                "metrics": {
                    name: {"mean": e.mean, "half_width": e.half_width}
                    for name, e in row.estimates.items()
                },
            }
            for row in comparison.rows
        ],
        "stamp": list(comparison.stamp),
    }


def _escape_markdown(text: str) -> str:
    for character in "\\|*_`<>[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _escape_latex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "\n": " ", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(special.get(character, character) for character in text)


def _escape_csv(text: str) -> str:
    """Keep a spreadsheet from reading a name as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


FORMATS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": to_json,
}
