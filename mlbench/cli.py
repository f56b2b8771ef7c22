"""The command line. Nothing here imports torch before a run begins."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlbench import __version__
from mlbench.errors import MlbenchError

if TYPE_CHECKING:
    from mlbench.config import Plan, Request
    from mlbench.contract import CheckResult
    from mlbench.record import RunRecord
    from mlbench.table import Sheet


class _UserError(click.ClickException):
    exit_code = 2


class _Group(click.Group):
    """Turns MlbenchError into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MlbenchError as error:
            # File names may hold line breaks and control characters.
            line = "".join(c if c.isprintable() else " " for c in str(error))
            raise _UserError(line) from error
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            sys.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlbench")
def main() -> None:
    # click's mark for "do not rewrap" is a backspace, so the docstring cannot be raw.
    """Train metric-learning losses under one checked recipe and compare them.

    \b
    mlbench run                          the four losses on the embedded data set
    mlbench run --losses softtriple,npairs,triplet
    mlbench table results/               the comparison, again
    """  # noqa: D301
    # OpenMP's threads wait by spinning and starve each other where anything else runs as well: on
    # two shared cores, training was 1.2 to 8.6 times as fast with short spins as with the default.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    if value is not None and not names:
        raise MlbenchError("--losses is empty; name at least one (see: mlbench list losses)")
    return names


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that commands share which make runs."""
    options = (
        click.option("--dataset", metavar="NAME", help="Data set, or folder:PATH."),
        click.option(
            "--data-root",
            type=click.Path(path_type=Path),
            envvar="MLBENCH_DATA_ROOT",
            show_envvar=True,
            help="Folder that holds the data set.",
        ),
        click.option("--backbone", metavar="NAME", help="Backbone, instead of the recipe's."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a recipe field (schedule.epochs=5) or a loss's parameter "
            "(softtriple.tau=0).",
        ),
        click.option("--seeds", type=click.IntRange(1, 1000), help="Number of seeds. [default: 1]"),
        click.option(
            "--folds",
            type=click.IntRange(2),
            help="Class-disjoint folds of the training classes, each left out of a run.",
        ),
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path("results"),
            show_default=True,
            help="Folder for the records.",
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _request(
    *,
    settings: tuple[str, ...],
    folds: int | None,
    losses: tuple[str, ...],
    select: str | None = None,
    **rest: Any,
) -> Request:
    """Return what the options of a command ask for."""
    from mlbench.config import Request, parse_setting

    given = tuple(parse_setting(text) for text in settings)
    if folds is not None:
        given = (*given, ("selection.folds", folds))
    if select is not None:
        given = (*given, ("selection.rule", select))
    return Request(settings=given, losses=losses or None, **rest)


@main.command()
@click.argument("benchmark", required=False, type=click.Path(path_type=Path))
@click.option("--losses", callback=_names, metavar="A,B,...", help="Losses to train.")
@click.option("--recipe", metavar="NAME|FILE", help="Shipped recipe or a TOML. [default: default]")
@click.option(
    "--select",
    type=click.Choice(["last", "validation", "test-best"]),
    help="Epoch to evaluate; test-best is there to show by how much it inflates.",
)
@_run_options
def run(out: Path, device: str, **options: Any) -> None:
    """Train losses, save a record of each run, print the comparison.

    BENCHMARK is a TOML file with a recipe, losses and seeds; options change it. Runs whose record
    is in the folder already are not made again, so the same command continues what was stopped.
    """
    from mlbench.comparison import compare
    from mlbench.config import make_plan
    from mlbench.live import Matrix
    from mlbench.table import sheets

    plan = make_plan(_request(**options))
    with Matrix(out, device) as matrix:
        outcomes = matrix.run(plan, baselines=True)
    _print_sheets(sheets(compare({outcome.path: outcome.record for outcome in outcomes})))


def _print_sheets(given: Sequence[Sheet]) -> None:
    """Print tables to standard output: with bold to a terminal, with stars to anything else."""
    from rich.console import Console

    from mlbench.table import print_sheet, to_text

    console = Console()
    if not console.is_terminal:
        click.echo(to_text(given), nl=False)
        return
    for each in given:
        print_sheet(console, each)
        console.print()


@main.command()
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
    "--merge", "merged", is_flag=True, help="One table, with a note at rows not comparable."
)
def table(folder: Path, form: str, reference: bool, merged: bool) -> None:
    """Print one table for every comparison (recipe and data set) in FOLDER.

    Damaged records are named on standard error and left out.
    """
    from mlbench.comparison import compare, merge
    from mlbench.store import read_results
    from mlbench.table import render, sheets

    results = read_results(folder)
    for problem in results.problems:
        click.echo(f"Warning: left out: {problem}", err=True)
    if not results.records:
        raise MlbenchError(f"no readable record in '{folder}'")
    comparisons = compare(results.records)
    if merged:
        comparisons = [merge(comparisons)]
    if form == "text":
        _print_sheets(sheets(comparisons, reference=reference))
    else:
        click.echo(render(comparisons, form, reference=reference), nl=False)


@main.command()
@click.argument("a")
@click.argument("b")
def diff(a: str, b: str) -> None:
    """Print the fields in which two recipes differ: names, TOML files or records."""
    from mlbench.comparison import differences

    changed = differences(*(_fields_of(source) for source in (a, b)))
    rows = [(key, str(old), str(new)) for key, (old, new) in changed.items()]
    if rows:
        _print_list(("field", a, b), rows, [])
    else:
        click.echo("no difference")


def _fields_of(source: str) -> dict[str, Any]:
    from mlbench.config import recipe_fields
    from mlbench.store import load

    if not source.endswith(".json"):
        return recipe_fields(source)
    record = load(Path(source))
    params = {f"losses.{record.loss}.{name}": value for name, value in record.params.items()}
    return {**record.recipe.flat(), **params}


@main.command()
@click.option("--from", "start", required=True, metavar="RECIPE", help="Foot of the ladder.")
@click.option("--to", "end", required=True, metavar="RECIPE", help="Top of the ladder.")
@click.option("--loss", default="softtriple", show_default=True)
@click.option(
    "--mode",
    type=click.Choice(["cumulative", "single"]),
    default="cumulative",
    show_default=True,
    help="Keep each change for the next rung, or change one factor of the foot at a time.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Waterfall, .png or .svg.")
@_run_options
def ablate(
    start: str,
    end: str,
    loss: str,
    mode: Literal["cumulative", "single"],
    picture: Path | None,
    out: Path,
    device: str,
    **options: Any,
) -> None:
    """Explain a gap: change one recipe into another factor by factor.

    Options that change a recipe (--set, --dataset, --backbone) change both ends. A rung that cannot
    run, such as for lack of weights, is listed with the reason.
    """
    from mlbench.config import make_plan
    from mlbench.ladder import check_picture, climb, ladder, waterfall
    from mlbench.live import Matrix
    from mlbench.table import ladder_sheet

    if picture:
        check_picture(picture)
    plans = [make_plan(_request(recipe=r, losses=(loss,), **options)) for r in (start, end)]
    with Matrix(out, device) as matrix:

        def run(plan: Plan) -> dict[Path, RunRecord]:
            return {each.path: each.record for each in matrix.run(plan, baselines=False)}

        results = climb(ladder(plans[0], plans[1], mode), run, mode)
    title = f"{loss}, {start} to {end}, {mode}"
    _print_sheets([ladder_sheet(results, title)])
    if picture:
        waterfall(results, picture, title)
        click.echo(f"picture: {picture}", err=True)


@main.command()
@click.option("--losses", callback=_names, metavar="A,B,...", help="Losses to tune.")
@click.option("--recipe", metavar="NAME|FILE", help="Shipped recipe or a TOML. [default: default]")
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Of each loss."
)
@_run_options
def tune(trials: int, out: Path, device: str, **options: Any) -> None:
    """Tune losses with equal budgets, then compare them as chosen.

    Each loss gets the same number of trials, judged by MAP@R on class-disjoint validation folds
    (--folds, 2 if not given); the first is its default, and parameters that --set changes are
    kept. Then the default and the chosen parameters are trained on all training classes, with each
    seed. Trials are kept in OUT/tune.sqlite3: the same command continues, more --trials go on.
    """
    from mlbench.comparison import compare
    from mlbench.config import make_plan
    from mlbench.live import Matrix
    from mlbench.table import sheets

    plan = make_plan(_request(**options))
    from mlbench.tune import final_plan, tuning_sheet  # imports torch: after what may be refused

    with Matrix(out, device) as matrix:
        tuned = matrix.tune(plan, trials)
        outcomes = matrix.run(final_plan(plan, tuned), baselines=True)
    records = {outcome.path: outcome.record for outcome in outcomes}
    _print_sheets([*sheets(compare(records)), tuning_sheet(tuned, plan, records.values())])


@main.command()
@click.argument("losses", nargs=-1, metavar="[LOSS|MODULE:ATTRIBUTE]...")
def check(losses: tuple[str, ...]) -> None:
    """Prove that losses keep the contract; without a name, every registered loss.

    Exits with code 1 if a check fails.
    """
    from mlbench.contract import check_loss
    from mlbench.registry import LOSSES

    names = losses or tuple(e.name for e in LOSSES.entries() if not e.prefix)
    results = {name: check_loss(name) for name in names}
    if len(names) == 1:
        rows = [(r.name, _outcome(r), r.message) for r in results[names[0]]]
        _print_list(("check", "result", ""), rows, LOSSES.problems)
    else:
        rows = [(name, *_tally(checks)) for name, checks in results.items()]
        _print_list(("loss", "passed", "skipped", "failed"), rows, LOSSES.problems)
    sys.exit(0 if all(r.passed for checks in results.values() for r in checks) else 1)


def _outcome(result: CheckResult) -> str:
    return "skipped" if result.skipped else "passed" if result.passed else "FAILED"


def _tally(results: Sequence[CheckResult]) -> tuple[str, str, str]:
    """Return how many checks passed and were skipped, and the names of those that failed."""
    outcomes = [_outcome(result) for result in results]
    failed = ", ".join(result.name for result in results if not result.passed)
    return str(outcomes.count("passed")), str(outcomes.count("skipped")), failed or "none"


@main.command()
@click.argument("loss")
def show(loss: str) -> None:
    """Print a loss's definition, parameters with defaults, needs and reference."""
    from mlbench.registry import LOSSES

    entry = LOSSES.get(loss)
    parameters = ", ".join(f"{k} = {v}" for k, v in entry.defaults.items()) or "none"
    facts = {
        "what": entry.summary,
        "definition": entry.formula or "see the reference",
        "parameters": parameters,
        "needs": entry.needs,
        "reference": entry.paper,
        "source": entry.source,
    }
    _print_list(("loss", entry.name), list(facts.items()), [])


@main.group(name="list")
def list_() -> None:
    """List what can be named in a run."""


@list_.command()
def losses() -> None:
    """List losses: name, paper, needs, source."""
    from mlbench.registry import LOSSES

    rows = [(_typed(e), e.paper or e.summary, e.needs, e.source) for e in LOSSES.entries()]
    _print_list(("name", "paper", "needs", "source"), rows, LOSSES.problems)


@list_.command()
def datasets() -> None:
    """List data sets."""
    from mlbench.registry import DATASETS

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in DATASETS.entries()]
    _print_list(("name", "what", "paper", "source"), rows, DATASETS.problems)


@list_.command()
def backbones() -> None:
    """List backbones."""
    from mlbench.registry import BACKBONES

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in BACKBONES.entries()]
    _print_list(("name", "what", "paper", "source"), rows, BACKBONES.problems)


@list_.command()
def recipes() -> None:
    """List shipped recipes."""
    from mlbench.config import load_recipe, recipe_names, recipe_text

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        what = recipe_text(name).partition("\n")[0].removeprefix("# ")
        rows.append((name, recipe.recipe_id, what))
    _print_list(("name", "recipe_id", "what"), rows, [])


def _typed(entry: Any) -> str:
    return f"{entry.name}:..." if entry.prefix else entry.name


def _print_list(
    header: Sequence[str], rows: Sequence[Sequence[str]], problems: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
