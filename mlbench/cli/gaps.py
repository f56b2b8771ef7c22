"""Commands that explain a gap between two recipes: ablate, effects."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlbench.cli import _complete
from mlbench.cli._common import print_sheets, report_failures, request, run_options
from mlbench.errors import MlbenchError, printable, printable_lines
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.cli._live import LiveRuns
    from mlbench.comparison.factorial import Factorial
    from mlbench.comparison.ladder import Mode, RungResult
    from mlbench.recipes.plan import Plan
    from mlbench.report.ladders import Ladder
    from mlbench.runs.executors.options import ExecutorOptions

_END_SEEDS = 3
"""Runs at each end of a factorial where --seeds does not say."""


def _groups(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Read each ``--group``."""
    groups = {}
    for text in value:
        name, equals, fields = (part.strip() for part in text.partition("="))
        named = tuple(field.strip() for field in fields.split(",") if field.strip())
        if not equals or not name or not named:
            raise MlbenchError(f"--group {text}: expected NAME=FIELD,FIELD,...")
        if name in groups:
            raise MlbenchError(f"--group {name} is set twice; put all its fields into one --group")
        groups[name] = named
    return groups


picture_option = click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Draw a chart of the result to this .png or .svg file.",
)


@click.command()
@click.option(
    "--from",
    "start",
    required=True,
    metavar="RECIPE",
    shell_complete=_complete.recipes,
    help="Recipe to start from.",
)
@click.option(
    "--to",
    "end",
    required=True,
    metavar="RECIPE",
    shell_complete=_complete.recipes,
    help="Recipe to arrive at.",
)
@click.option("--loss", default="softtriple", show_default=True, shell_complete=_complete.losses)
@click.option(
    "--design",
    type=click.Choice(["ladder", "factorial"]),
    default="ladder",
    show_default=True,
    help="ladder: an ablation, which changes one factor after the other; factorial: a two-level "
    "factorial design, which measures each factor over the settings of all others.",
)
@click.option(
    "--mode",
    type=click.Choice(["cumulative", "single"]),
    default="cumulative",
    show_default=True,
    help="ladder: accumulate the changes, or apply each one on its own to the --from recipe.",
)
@click.option(
    "--runs",
    type=click.IntRange(4, 1024),
    default=16,
    show_default=True,
    help="factorial: largest number of settings to run. Both ends are run with several seeds "
    f"(--seeds, {_END_SEEDS} by default).",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    callback=_groups,
    metavar="NAME=FIELD,...",
    help="Treat these fields as one factor; may be repeated. The other fields keep their groups.",
)
@click.option("--dry-run", is_flag=True, help="Print the planned runs and their cost, and stop.")
@picture_option
@run_options
def ablate(
    start: str,
    end: str,
    loss: str,
    design: Literal["ladder", "factorial"],
    mode: Literal["cumulative", "single"],
    runs: int,
    groups: dict[str, tuple[str, ...]],
    dry_run: bool,
    picture: Path | None,
    out: Path,
    device: str,
    executor: ExecutorOptions,
    quiet: bool,
    **options: Any,
) -> None:
    """Explain the gap between two recipes by changing one group of settings at a time.

    The default (--design ladder) is a cumulative ablation: it starts from one recipe and changes
    one factor after the other until it arrives at the target. A factorial runs combinations of all
    factors, so that each effect is a mean over the settings of the others and has an interval; its
    plan and cost are printed first. Options that change a recipe (--set, --dataset, --backbone)
    apply to both recipes. Steps that cannot run, for example for lack of weights, are listed with
    the reason.
    """
    from mlbench.recipes.plan import make_plan

    if picture:
        from mlbench.report.drawings import check_picture

        check_picture(picture)
    if design == "factorial":
        options["seeds"] = options["seeds"] or _END_SEEDS
    plans = [make_plan(request(recipe=r, losses=(loss,), **options)) for r in (start, end)]
    title = f"{loss}, {start} to {end}"
    live = functools.partial(_live, out, device, executor, quiet)
    if design == "factorial":
        _factorial(plans, runs, groups, title, device, None if dry_run else live, picture)
    else:
        _ladder(plans, mode, groups, title, device, None if dry_run else live, picture)


def _live(out: Path, device: str, executor: ExecutorOptions, quiet: bool) -> LiveRuns:
    from mlbench.cli._live import LiveRuns

    return LiveRuns(out, device, executor, quiet=quiet)


def _cost(plans: Sequence[Plan], device: str) -> tuple[str, ...]:
    from mlbench.runs.cost import cost_in_words
    from mlbench.training.device import resolve_device

    return cost_in_words(plans, resolve_device(device))


Live = functools.partial["LiveRuns"]


def _ladder(
    plans: Sequence[Plan],
    mode: Literal["cumulative", "single"],
    groups: dict[str, tuple[str, ...]],
    title: str,
    device: str,
    live: Live | None,
    picture: Path | None,
) -> None:
    from mlbench.comparison.ladder import climb, ladder
    from mlbench.tables.layout import ladder_sheet, rungs_sheet

    rungs = ladder(plans[0], plans[1], mode, groups)
    title = f"{title}, {mode}"
    if live is None:
        print_sheets([rungs_sheet(rungs, title, _cost([rung.plan for rung in rungs], device))])
        return
    with live() as matrix:
        results = climb(rungs, functools.partial(matrix.run, baselines=False), mode)
    print_sheets([ladder_sheet(results, title)])
    _draw_ladder(results, title, mode, picture)
    report_failures(matrix.failed)


def _factorial(
    plans: Sequence[Plan],
    runs: int,
    groups: dict[str, tuple[str, ...]],
    title: str,
    device: str,
    live: Live | None,
    picture: Path | None,
) -> None:
    from mlbench.comparison.design import as_factorial, carry_out, factorial_design
    from mlbench.tables.effects import Study, design_sheet, effects_sheet, rows_sheet

    design = factorial_design(plans[0], plans[1], runs, groups)
    print_sheets([design_sheet(design, title, _cost(design.plans, device))])
    if live is None:
        return
    with live() as matrix:
        results = carry_out(design, functools.partial(matrix.run, baselines=False))
    factorial = as_factorial(design, results)
    if factorial is None:
        print_sheets([rows_sheet(design, results, title)])
        report_failures(matrix.failed)
        sys.exit(1)
    study = Study.of(factorial)
    print_sheets([effects_sheet(study)])
    _draw(study, picture)
    report_failures(matrix.failed)


def _draw(study: Any, picture: Path | None) -> None:
    if picture:
        from mlbench.report.drawings import effects_picture, save_picture

        save_picture(effects_picture(study, title=study.title), picture)
        click.echo(f"picture: {picture}", err=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex", "csv", "json", "html"]),
    default="text",
    show_default=True,
)
@picture_option
def effects(folder: Path, form: str, picture: Path | None) -> None:
    """Print the effect of each factor in the finished ablation in FOLDER, without running any.

    A factorial study is recognised from the recipes of its records. If there is none, cumulative
    ablations are printed. If a study is incomplete, the missing runs are reported. --picture draws
    the first study, which is the largest factorial.
    """
    from mlbench.comparison.factorial import factorials, the_factorials
    from mlbench.records.store import read_results
    from mlbench.report.ladders import ladders

    if picture:
        from mlbench.report.drawings import check_picture

        check_picture(picture)
    results = read_results(folder)
    for problem in results.problems:
        click.echo(f"Warning: skipped: {printable(problem)}", err=True)
    if not results.records:
        raise MlbenchError(f"no readable record in '{folder}'")
    records = results.records.values()
    if not factorials(records) and (found := ladders(results.records)):
        _print_ladders(found, form, picture)
    else:
        _print_factorials(the_factorials(records), form, picture)


def _print_factorials(found: Sequence[Factorial], form: str, picture: Path | None) -> None:
    from mlbench.tables.effects import Study, effects_sheet, render

    studies = [Study.of(each) for each in found]
    if form == "text":
        print_sheets([effects_sheet(study) for study in studies])
    else:
        write(render(studies, form))
    _draw(studies[0], picture)


def _print_ladders(found: Sequence[Ladder], form: str, picture: Path | None) -> None:
    from mlbench.tables.formats import SHEET_FORMATS

    sheets = [ladder.sheet for ladder in found]
    if form == "text":
        print_sheets(sheets)
    elif form in SHEET_FORMATS:
        write(printable_lines(SHEET_FORMATS[form](sheets)))
    else:
        raise MlbenchError(
            f"--format {form} is not available for a cumulative ablation; use one of "
            f"{', '.join(SHEET_FORMATS)}"
        )
    _draw_ladder(found[0].results, found[0].title, "cumulative", picture)


def _draw_ladder(
    results: Sequence[RungResult], title: str, mode: Mode, picture: Path | None
) -> None:
    if picture:
        from mlbench.report.drawings import save_picture, waterfall

        save_picture(waterfall(results, title, mode), picture)
        click.echo(f"picture: {picture}", err=True)
