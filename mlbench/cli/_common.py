"""What the commands share: the group that turns errors into one line, options, plain lists."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli import _complete
from mlbench.cli._executor import EXECUTOR_OPTIONS, gathering_executor
from mlbench.cli._lines import ProgressLines
from mlbench.errors import MlbenchError, printable
from mlbench.system.interrupts import exit_code, install
from mlbench.system.machine import lack
from mlbench.system.streams import drop_output, plain_streams, shows_styles, write

if TYPE_CHECKING:
    from mlbench.comparison.comparison import Comparison
    from mlbench.recipes.plan import Request
    from mlbench.runs.outcomes import Outcome
    from mlbench.runs.tracking import TrackerSpec
    from mlbench.tables.sheet import Sheet


Command = Callable[..., None]


class UserError(click.ClickException):
    exit_code = 2


class Group(click.Group):
    """Turns MlbenchError into one line and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with plain_streams():
            try:
                return super().main(*args, **kwargs)
            except (OSError, RuntimeError) as error:  # such as a full disk below standard output
                problem = _system_problem(error)
                if problem is None:
                    raise
                click.echo(printable(f"Error: {problem}"), err=True)
                sys.exit(UserError.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with install():
                return super().invoke(ctx)
        except MlbenchError as error:
            # File names may hold line breaks and control characters.
            raise UserError(printable(str(error))) from error
        except KeyboardInterrupt as stop:
            click.echo("Stopped.", err=True)
            sys.exit(exit_code(stop))


def _system_problem(error: OSError | RuntimeError) -> str | None:
    """Say in one line what the system refused; None if an error is not of the system."""
    if isinstance(error, OSError) and error.filename is None:
        drop_output()
        return f"input or output failed: {error.strerror or error}"
    lacking = lack(error)
    if lacking is not None or not isinstance(error, OSError):
        return lacking and str(lacking)
    return f"{error.filename}: {error.strerror or error}"


def losses_option(purpose: str) -> Callable[[Command], Command]:
    """Return the option ``--losses`` of a command that has a ``purpose`` for them."""
    return click.option(
        "--losses",
        callback=_loss_names,
        metavar="A,B,...",
        shell_complete=_complete.loss_lists,
        help=f"Losses to {purpose}.",
    )


def _loss_names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (value or "").split(",") if name.strip())
    if value is not None and not names:
        raise MlbenchError("--losses is empty; name at least one (see: mlbench list losses)")
    return names


def record_argument(name: str, *, kept: bool = False) -> Callable[[Command], Command]:
    """Return the argument that names one record; see ``choose_record``.

    Args:
        name: of the argument.
        kept: whether its trained network is needed.
    """

    def chosen(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(**options: Any) -> None:
            from mlbench.records.choice import choose_record

            options[name] = choose_record(options[name], kept=kept)
            command(**options)

        return click.argument(name, type=click.Path(path_type=Path))(wrapped)

    return chosen


recipe_option = click.option(
    "--recipe",
    metavar="NAME|FILE",
    shell_complete=_complete.recipes,
    help="Shipped recipe or a TOML file. [default: default]",
)


def trackers(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> tuple[TrackerSpec, ...]:
    """Read each ``--track``."""
    from mlbench.runs.tracking import parse_tracker

    return tuple(parse_tracker(text) for text in value)


_RUN_OPTIONS = (
    click.option(
        "--dataset",
        metavar="NAME",
        shell_complete=_complete.datasets,
        help="Data set, folder:PATH or table:FILE.",
    ),
    click.option(
        "--data-root",
        type=click.Path(path_type=Path),
        envvar="MLBENCH_DATA_ROOT",
        show_envvar=True,
        help="Folder that contains the data set.",
    ),
    click.option(
        "--backbone",
        metavar="NAME",
        shell_complete=_complete.backbones,
        help="Backbone that replaces the recipe's; run accepts A,B,... and prints one table.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a recipe field (schedule.epochs=5) or a loss's hyperparameter (npairs.l2_reg=0).",
    ),
    click.option("--seeds", type=click.IntRange(1, 1000), help="Number of seeds. [default: 1]"),
    click.option(
        "--folds",
        type=click.IntRange(1),
        help="Number of class-disjoint folds of the training classes; each run trains without one. "
        "1 uses the data set's own validation images.",
    ),
    click.option(
        "--on-bad-image",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="If images cannot be read: report them and stop, or skip them.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--compile",
        is_flag=True,
        help="Train with torch.compile, on a GPU with CUDA graphs; compiling takes minutes.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path("results"),
        show_default=True,
        help="Folder for the records.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print only the table and errors."),
    *EXECUTOR_OPTIONS,
)


def run_options(command: Command) -> Command:
    """Add the options that commands share which make runs."""
    wanting = gathering_executor(command)
    return functools.reduce(
        lambda wrapped, option: option(wrapped), reversed(_RUN_OPTIONS), wanting
    )


def request(
    *,
    settings: tuple[str, ...],
    folds: int | None,
    losses: tuple[str, ...],
    select: str | None = None,
    **rest: Any,
) -> Request:
    """Return what the options of a command ask for."""
    from mlbench.recipes.plan import Request, parse_setting

    given = tuple(parse_setting(text) for text in settings)
    if folds is not None:
        given = (*given, ("selection.folds", folds))
    if select is not None:
        given = (*given, ("selection.rule", select))
    return Request(settings=given, losses=losses or None, **rest)


def print_sheets(given: Sequence[Sheet]) -> None:
    """Print tables to standard output: with bold to a terminal, with stars to anything else."""
    from mlbench.tables.formats import to_text

    write(to_text(given, _columns(), styled=shows_styles()))


def _columns() -> int:
    """Return the width of the terminal, which ``COLUMNS`` overrides; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def say_where(
    out: Path, comparisons: Sequence[Comparison], made: Collection[Path], *, models: bool = False
) -> None:
    """Say on standard error where the results are, which record is the best, and what comes next.

    Args:
        out: the results folder.
        comparisons: of the runs.
        made: paths of their records.
        models: whether trained networks were kept.
    """
    folder = shlex.quote(str(out))
    lines = [f"Results: {len(made):,} records in {out}"]
    rows = [row for each in comparisons for row in each.rows if row.estimates]
    rows = [row for row in rows if not row.baseline] or rows
    first = max(rows, key=lambda row: row.estimates["R@1"].mean, default=None)
    if first:
        kind = "Highest R@1" if len(rows) > 1 else "Record"
        lines.append(f"{kind}: {first.label}, {first.files[0]}")
    lines += [f"Next: mlbench table {folder}", f"      mlbench report {folder}"]
    if models and first:
        best = shlex.quote(first.files[0])
        lines += [f"      mlbench index {best} PHOTOS", f"      mlbench search {best} IMAGE"]
    click.echo("\n".join(map(printable, lines)), err=True)


def report_failures(failed: Sequence[Outcome]) -> None:
    """Report failed runs below the table of the others, and exit with code 1 if there are any."""
    from mlbench.runs.outcomes import label

    for outcome in failed:
        click.echo(f"FAILED {label(outcome.spec)}: {printable(outcome.problem)}", err=True)
    if failed:
        sys.exit(1)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar on standard error while something runs, or lines if that is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        lines = ProgressLines(lambda line: click.echo(printable(line), err=True))
        yield functools.partial(lines.show, "")
        return
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("loading", total=None)
        yield lambda phase, done, total: bars.update(
            task, description=phase, completed=done, total=total
        )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def write_json(facts: Any) -> None:
    """Print facts for programs."""
    write(json.dumps(facts, indent=1) + "\n")


def print_list(
    header: Sequence[str], rows: Sequence[Sequence[str]], problems: Sequence[str]
) -> None:
    """Print a plain table, then a warning for each of the problems."""
    from mlbench.tables.text import to_list

    write(to_list(header, rows, _columns()))
    warn_of(problems)


def warn_of(problems: Sequence[str]) -> None:
    """Print a warning for each problem on standard error."""
    for problem in problems:
        click.echo(f"Warning: {printable(problem)}", err=True)
