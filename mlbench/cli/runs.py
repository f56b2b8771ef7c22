"""Commands that execute runs: run, tune."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli import _complete
from mlbench.cli._common import (
    losses_option,
    print_sheets,
    recipe_option,
    report_failures,
    request,
    run_options,
    say_where,
    trackers,
)
from mlbench.errors import MlbenchError, first_few, printable

if TYPE_CHECKING:
    from mlbench.cli._live import LiveRuns
    from mlbench.recipes.plan import Plan, Request
    from mlbench.records.record import RunRecord
    from mlbench.runs.executors.options import ExecutorOptions
    from mlbench.runs.tracking import TrackerSpec


@click.command()
@click.argument("benchmark", required=False, type=click.Path(path_type=Path))
@losses_option("train, or baselines to run alone or beside them (features, pca, untrained)")
@recipe_option
@click.option(
    "--select",
    type=click.Choice(["last", "validation", "test-best"]),
    help="Epoch to evaluate. test-best selects on the test classes; use it only to measure that "
    "bias.",
)
@click.option(
    "--splits",
    type=click.IntRange(2, 1000),
    metavar="N",
    help="Also run on N random class-disjoint splits, in addition to the data set's own.",
)
@click.option(
    "--keep-model",
    is_flag=True,
    help="Save each trained network next to its record, for embed, search and export, and those of "
    "baselines if --losses names one. A run that has a record but no saved network is repeated.",
)
@click.option(
    "--track",
    multiple=True,
    callback=trackers,
    metavar="TRACKER",
    shell_complete=_complete.trackers,
    help="Also log each finished run to tensorboard[:DIR] or mlflow[:URI]; may be repeated. "
    "[default: in OUT]",
)
@run_options
def run(
    out: Path,
    device: str,
    executor: ExecutorOptions,
    quiet: bool,
    track: tuple[TrackerSpec, ...],
    **options: Any,
) -> None:
    """Train losses, save a record of each run and print a comparison.

    BENCHMARK is a TOML file with a recipe, losses and seeds; options override it. Runs that
    already have a record are skipped, so re-running a command resumes it. Failed runs are listed
    below the table; the exit code is then 1.
    """
    from mlbench.cli._live import LiveRuns
    from mlbench.comparison.comparison import compare
    from mlbench.tables.layout import sheets

    asked = request(**options)
    plans = _plans(asked)
    if asked.benchmark and not quiet:
        digest = plans[0].digest
        click.echo(f"benchmark {printable(str(asked.benchmark))}: digest {digest}", err=True)
    with LiveRuns(out, device, executor, quiet=quiet, track=track) as matrix:
        records, problems = _run_all(plans, matrix)
    comparisons = compare(records, varied=_varied(plans))
    print_sheets(sheets(comparisons))
    if asked.benchmark:
        for line in _benchmark_lines(asked, plans[0], records.values(), out):
            click.echo(printable(line))
    if records and not quiet:
        say_where(out, comparisons, records, models=asked.keep_model)
    for problem in problems:
        click.echo(f"FAILED {printable(problem)}", err=True)
    report_failures(matrix.failed)
    if problems:
        sys.exit(1)


def _plans(asked: Request) -> list[Plan]:
    """Return a plan for each backbone that was asked for; a benchmark file is of one."""
    from mlbench.recipes.plan import make_plan

    names = [name.strip() for name in (asked.backbone or "").split(",")]
    if len(names) == 1:
        return [make_plan(asked)]
    if asked.benchmark:
        raise MlbenchError("--backbone: a benchmark file has one recipe; pass one backbone")
    return [make_plan(replace(asked, backbone=name)) for name in dict.fromkeys(names)]


def _run_all(
    plans: Sequence[Plan], matrix: LiveRuns
) -> tuple[dict[Path, RunRecord], tuple[str, ...]]:
    """Execute the runs of all plans; the second lists backbones that are not available.

    Raises:
        MlbenchError: the data, or the weights of every backbone, are not there or bad.
    """
    records: dict[Path, RunRecord] = {}
    problems: dict[str, MlbenchError] = {}
    for plan in plans:
        try:
            records |= matrix.run(plan, baselines=True)
        except MlbenchError as error:
            problems[plan.recipe.backbone.name] = error
    if len(problems) == len(plans):
        raise next(iter(problems.values()))
    return records, tuple(f"{name}: {error}" for name, error in problems.items())


def _varied(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Return the fields in which the recipes of plans differ, such as the backbone's name."""
    flat = [plan.recipe.flat() for plan in plans]
    found = [name for name in flat[0] if any(each[name] != flat[0][name] for each in flat)]
    return tuple(sorted(found))


def _benchmark_lines(
    asked: Request, plan: Plan, records: Iterable[RunRecord], out: Path
) -> Iterator[str]:
    """Say which benchmark was run, whether whole and as it stands, and what else is in ``out``."""
    from mlbench.recipes.plan import declared_digest
    from mlbench.records.store import other_records
    from mlbench.runs.outcomes import with_baselines

    runs, made = plan.runs(), {record.spec.run_id for record in records}
    done = sum(spec.run_id in made for spec in runs)
    count = f"all {done} runs" if done == len(runs) else f"{done} of {len(runs)} runs"
    yield f"benchmark {asked.benchmark}: digest {plan.digest}, fixed before the first run; {count}"
    declared = declared_digest(asked)
    if declared != plan.digest:
        yield (
            f"  overridden by options: the file itself has the digest {declared or 'of no plan'}"
        )
    others = other_records(out, with_baselines(plan))
    if others:
        names = first_few([str(path.relative_to(out)) for path in others])
        yield f"  {len(others)} record(s) in {out} do not belong to this benchmark: {names}"


@click.command()
@losses_option("tune")
@recipe_option
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Number of trials per loss.",
)
@click.option(
    "--search",
    multiple=True,
    metavar="KEY=LOW:HIGH",
    help="Search a hyperparameter of a loss (softtriple.la=5:80), or epochs and learning rates of "
    "every loss (schedule.epochs=5:50), in addition to or instead of the declared ranges; may be "
    "repeated.",
)
@run_options
def tune(
    trials: int,
    search: tuple[str, ...],
    out: Path,
    device: str,
    executor: ExecutorOptions,
    quiet: bool,
    **options: Any,
) -> None:
    """Tune losses with equal budgets, then compare the chosen settings with the defaults.

    Each loss gets the same number of trials, judged by MAP@R on class-disjoint validation folds
    (--folds, 2 by default). The first trial uses the loss's defaults; hyperparameters set with
    --set are kept. The search ranges are those that the losses declare (mlbench show LOSS) and
    those of --search. Then the default and the chosen hyperparameters are trained on all training
    classes, with each seed. Trials are stored in OUT/tune.sqlite3: re-running the command resumes;
    a larger --trials adds trials.
    """
    from mlbench.cli._live import LiveRuns
    from mlbench.comparison.comparison import compare
    from mlbench.recipes.plan import make_plan
    from mlbench.tables.layout import sheets

    plan = make_plan(request(**options))
    from mlbench.runs.search import parse_range

    ranges = tuple(map(parse_range, search))
    from mlbench.runs.tune import final_plan
    from mlbench.tables.tuning import tuning_sheet  # imports torch: after what may be refused

    with LiveRuns(out, device, executor, quiet=quiet) as matrix:
        tuned = matrix.tune(plan, trials, ranges)
        records = matrix.run(final_plan(plan, tuned), baselines=True)
    comparisons = compare(records)
    print_sheets([*sheets(comparisons), tuning_sheet(tuned, plan, records.values())])
    if records and not quiet:
        say_where(out, comparisons, records, models=plan.files.keep_model)
    report_failures(matrix.failed)
