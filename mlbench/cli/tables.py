"""Commands that read records: table, plan, diff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlbench.cli import _complete
from mlbench.cli._common import json_option, print_list, print_sheets, write_json
from mlbench.errors import MlbenchError, printable
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.comparison.comparison import Comparison
    from mlbench.tables.planning import Question


_FEW = 3
"""Comparisons that are printed whole; of more there is an overview."""


def _column_names(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    return names or None


def _named(folder: Path) -> tuple[Path, str]:
    """Return the folder and the name of FOLDER:NAME; no name where FOLDER itself is there."""
    parent, _, name = str(folder).rpartition(":")
    if folder.exists() or not parent or not Path(parent).exists():
        return folder, ""
    return Path(parent), name


def _changed(comparison: Comparison) -> float:
    """Return when a comparison's files were last changed: its records, or the pack they are in."""
    paths = map(Path, comparison.files)
    files = {next((p for p in (path, *path.parents) if p.is_file()), None) for path in paths}
    return max((file.stat().st_mtime for file in files if file), default=0.0)


def _print_overview(comparisons: Sequence[Comparison], folder: Path) -> None:
    """Print a line for each comparison, then the ladders that some of them are steps of."""
    from mlbench.records.store import read_results
    from mlbench.report.ladders import ladders
    from mlbench.tables.overview import overview_sheet

    steps = [each for each in comparisons if len({row.loss for row in each.rows}) == 1]
    files = {Path(path) for each in steps for path in each.files}
    records = read_results(folder).records if len(steps) > _FEW else {}
    found = ladders({path: record for path, record in records.items() if path in files})
    print_sheets([overview_sheet(comparisons, folder), *(ladder.sheet for ladder in found)])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex", "csv", "json", "html"]),
    default="text",
    show_default=True,
)
@click.option("--reference", is_flag=True, help="Add the published results of each data set.")
@click.option(
    "--merge", "merged", is_flag=True, help="Print one table; mark rows that are not comparable."
)
@click.option(
    "--rows",
    metavar="FIELD,...",
    help="Let the recipes of one table differ in these fields (backbone.name); compare all rows, "
    "including baselines.",
)
@click.option(
    "--for",
    "statement",
    type=click.Choice(["other-classes", "these-classes"]),
    default="other-classes",
    show_default=True,
    help="Population that intervals and marks hold for: other test classes and seeds, or other "
    "seeds on these test classes.",
)
@click.option(
    "--rope",
    type=click.FloatRange(min=0, max=100),
    metavar="POINTS",
    help="Add a column with the losses that are practically equal to the best: at most this many "
    "percentage points below its R@1.",
)
@click.option(
    "--columns",
    callback=_column_names,
    metavar="A,B,...",
    help="Show these columns only: metrics (R@1,MAP@R), gap, n. For a narrow page.",
)
@click.option("--all", "every", is_flag=True, help="Print every table, also where there are many.")
def table(
    folder: Path,
    form: str,
    reference: bool,
    merged: bool,
    rows: str | None,
    statement: Literal["other-classes", "these-classes"],
    rope: float | None,
    columns: tuple[str, ...] | None,
    every: bool,
) -> None:
    """Print one table for every comparison (recipe and data set) in FOLDER.

    Where there are many, an overview is printed, with the ladders of an ablation. FOLDER:NAME, with
    a recipe's name or id or a folder in FOLDER, prints the tables of that one, --all those of all.
    Damaged records are reported on standard error and skipped.
    """
    if (merged or rows is not None) and reference:
        raise click.UsageError(
            "--reference compares published results with one recipe; omit --merge and --rows"
        )
    if merged and rows is not None:
        raise click.UsageError("pass --merge or --rows, not both")
    if rope is not None and isnan(rope):  # the range of the option lets it through
        raise MlbenchError("--rope nan: expected percentage points, from 0 to 100")
    from mlbench.comparison.cache import summarise
    from mlbench.comparison.comparison import in_order, merge, varied_fields
    from mlbench.tables.formats import render
    from mlbench.tables.layout import sheets

    folder, name = _named(folder)
    summary = summarise(folder, statement, () if rows is None else varied_fields(rows))
    for problem in summary.problems:
        click.echo(f"Warning: skipped: {printable(problem)}", err=True)
    if not summary.comparisons:
        raise MlbenchError(f"no readable record in '{folder}'")
    comparisons = list(summary.comparisons)
    if name:
        from mlbench.tables.overview import chosen

        comparisons = in_order(chosen(comparisons, folder, name))
    if rows is not None and all(len({row.values for row in c.rows}) == 1 for c in comparisons):
        raise MlbenchError(f"--rows {rows}: no two records of '{folder}' differ in it alone")
    if merged:
        comparisons = [merge(comparisons)]
    if form != "text":
        text = render(comparisons, form, reference=reference, width=rope, columns=columns)
        write(text)
        return
    several = len(comparisons) > _FEW
    if several:
        comparisons = in_order(sorted(comparisons, key=_changed, reverse=True))
        _print_overview(comparisons, folder)
    if every or not several:
        print_sheets(sheets(comparisons, reference=reference, width=rope, columns=columns))
    elif several:
        example = comparisons[0].recipe_id
        click.echo(f"A table each: mlbench table {folder}:{example}; all: --all", err=True)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--gap",
    type=float,
    required=True,
    metavar="POINTS",
    help="Difference in R@1 to detect, in percentage points.",
)
@click.option(
    "--rows",
    type=click.IntRange(2, 1000),
    default=2,
    show_default=True,
    help="Number of losses to compare.",
)
@click.option(
    "--classes",
    type=click.IntRange(2, 10_000_000),
    help="Number of test classes. [default: that of the records]",
)
@json_option
def plan(folder: Path | None, gap: float, rows: int, classes: int | None, as_json: bool) -> None:
    """Print how many seeds, or test classes, detect a gap between losses with 80 % power.

    The variances are estimated from the records in FOLDER, with one answer per comparison. Without
    FOLDER they are those of a shipped study of frozen features on CUB-200-2011.
    """
    from mlbench.tables.planning import planning_sheet

    if not 0 < gap <= 100:
        raise MlbenchError(f"--gap {gap:g}: expected percentage points, above 0 and at most 100")
    asked = [replace(q, classes=classes or q.classes) for q in _asked(folder, gap, rows)]
    if as_json:
        write_json([_planned(each) for each in asked])
    else:
        print_sheets([planning_sheet(each) for each in asked])


def _asked(folder: Path | None, gap: float, rows: int) -> list[Question]:
    """Return what is asked of the shipped variances, or of each comparison in a folder."""
    from mlbench.comparison.cache import summarise
    from mlbench.comparison.planning import NEEDED, shipped
    from mlbench.tables.planning import Question

    if folder is None:
        own = shipped()
        return [Question(own.what, own.sources, gap / 100, rows, own.classes)]
    summary = summarise(folder)
    for problem in summary.problems:
        click.echo(f"Warning: skipped: {printable(problem)}", err=True)
    asked = [
        Question(f"{c.title}, recipe {c.recipe_id}", c.sources, gap / 100, rows, c.classes)
        for c in summary.comparisons
        if c.sources is not None
    ]
    if not asked:
        raise MlbenchError(f"{folder}: {NEEDED}")
    return asked


def _planned(asked: Question) -> dict[str, Any]:
    from mlbench.tables.planning import answer

    return {
        "what": asked.what,
        "gap": asked.gap,
        "losses": asked.rows,
        "test_classes": asked.classes,
        "variances": asdict(asked.found),
        "seeds": asked.seeds,
        "answer": answer(asked),
    }


@click.command()
@click.argument("a", shell_complete=_complete.recipes)
@click.argument("b", shell_complete=_complete.recipes)
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Print the fields in which two recipes differ; each is a name, a TOML file or a record."""
    from mlbench.comparison.comparison import differences

    changed = differences(*(_fields_of(source) for source in (a, b)))
    if as_json:
        write_json({key: {"a": old, "b": new} for key, (old, new) in changed.items()})
        return
    rows = [(key, str(old), str(new)) for key, (old, new) in changed.items()]
    if rows:
        print_list(("field", a, b), rows, [])
    else:
        click.echo("no difference")


def _fields_of(source: str) -> dict[str, Any]:
    from mlbench.recipes.reading import recipe_fields
    from mlbench.records.store import load

    if not source.endswith(".json"):
        return recipe_fields(source)
    record = load(Path(source))
    params = {f"losses.{record.loss}.{name}": value for name, value in record.params.items()}
    return {**record.recipe.flat(), **params}
