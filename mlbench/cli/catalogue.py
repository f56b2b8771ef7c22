"""Commands about what is registered: list, show, check."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mlbench.cli import _complete
from mlbench.cli._common import json_option, print_list, progress_bar, warn_of, write_json

if TYPE_CHECKING:
    from mlbench.contract import CheckResult
    from mlbench.interfaces import LossEntry


@click.command()
@click.argument(
    "losses",
    nargs=-1,
    metavar="[LOSS|MODULE:ATTRIBUTE]...",
    shell_complete=_complete.losses,
)
@click.option(
    "--statistics",
    is_flag=True,
    help="Test training, evaluation and statistics instead, with runs whose result is known: one "
    "loss under two names, permuted labels, losses made equal. Takes about a minute.",
)
@json_option
def check(losses: tuple[str, ...], statistics: bool, as_json: bool) -> None:
    """Test losses against the loss contract. Without a name, test every registered loss.

    Exits with code 1 if a check fails.
    """
    if statistics:
        if losses:
            raise click.UsageError("--statistics does not test single losses; omit their names")
        _check_statistics(as_json=as_json)
    from mlbench.contract import check_loss
    from mlbench.registry import LOSSES

    names = losses or tuple(e.name for e in LOSSES.entries() if not e.prefix)
    results = {name: check_loss(name) for name in names}
    if as_json:
        write_json(
            [
                {"loss": name, "check": r.name, "result": _outcome(r), "message": r.message}
                for name, checks in results.items()
                for r in checks
            ]
        )
        warn_of(LOSSES.problems)
    elif len(names) == 1:
        rows = [(r.name, _outcome(r), r.message) for r in results[names[0]]]
        print_list(("check", "result", ""), rows, LOSSES.problems)
    else:
        rows = [(name, *_tally(checks)) for name, checks in results.items()]
        print_list(("loss", "passed", "skipped", "failed"), rows, LOSSES.problems)
    sys.exit(0 if all(r.passed for checks in results.values() for r in checks) else 1)


def _check_statistics(*, as_json: bool) -> NoReturn:
    """Run the negative controls; exit with code 1 if one fails."""
    from mlbench.controls import run_controls

    with progress_bar() as report:
        controls = list(run_controls(report))
    if as_json:
        write_json([asdict(each) for each in controls])
    else:
        rows = [(c.name, "passed" if c.passed else "FAILED", c.found) for c in controls]
        print_list(("control", "result", ""), rows, [])
    sys.exit(0 if all(each.passed for each in controls) else 1)


def _outcome(result: CheckResult) -> str:
    return "skipped" if result.skipped else "passed" if result.passed else "FAILED"


def _tally(results: Sequence[CheckResult]) -> tuple[str, str, str]:
    """Return how many checks passed and were skipped, and the names of those that failed."""
    outcomes = [_outcome(result) for result in results]
    failed = ", ".join(result.name for result in results if not result.passed)
    return str(outcomes.count("passed")), str(outcomes.count("skipped")), failed or "none"


@click.command()
@click.argument("loss", shell_complete=_complete.losses)
@json_option
def show(loss: str, as_json: bool) -> None:
    """Print a loss's definition, hyperparameters with defaults, requirements and reference."""
    from mlbench.registry import LOSSES

    entry = LOSSES.get(loss)
    parameters = ", ".join(f"{k} = {v}" for k, v in entry.defaults.items()) or "none"
    facts = {
        "what": entry.summary,
        "definition": entry.formula or "see the reference",
        "parameters": parameters,
        "search": _search(entry),
        "needs": entry.needs,
        "reference": entry.paper,
        "source": entry.source,
    }
    if as_json:
        write_json(
            {"loss": entry.name, **facts, "parameters": entry.defaults, "search": entry.search}
        )
    else:
        print_list(("loss", entry.name), list(facts.items()), [])


def _search(entry: LossEntry) -> str:
    ranges = (f"{name} {low:g} to {high:g}" for name, (low, high) in entry.search.items())
    return ", ".join(ranges) or "none declared"


@click.group(name="list")
def list_() -> None:
    """List losses, recipes, data sets or backbones."""


@list_.command()
@json_option
def losses(as_json: bool) -> None:
    """List losses: name, year, paper, requirements, source."""
    from mlbench.registry import LOSSES

    rows = [(_typed(e), e.year, e.paper or e.summary, e.needs, e.source) for e in LOSSES.entries()]
    _print(("name", "year", "paper", "needs", "source"), rows, LOSSES.problems, as_json=as_json)


@list_.command()
@json_option
def datasets(as_json: bool) -> None:
    """List data sets."""
    from mlbench.registry import DATASETS

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in DATASETS.entries()]
    _print(("name", "what", "paper", "source"), rows, DATASETS.problems, as_json=as_json)


@list_.command()
@json_option
def backbones(as_json: bool) -> None:
    """List backbones."""
    from mlbench.registry import BACKBONES

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in BACKBONES.entries()]
    _print(("name", "what", "paper", "source"), rows, BACKBONES.problems, as_json=as_json)


@list_.command()
@json_option
def recipes(as_json: bool) -> None:
    """List shipped recipes."""
    from mlbench.recipes.reading import load_recipe, recipe_names, recipe_text

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        what = recipe_text(name).partition("\n")[0].removeprefix("# ")
        rows.append((name, recipe.recipe_id, what))
    _print(("name", "recipe_id", "what"), rows, [], as_json=as_json)


def _print(
    header: Sequence[str], rows: Sequence[Sequence[str]], problems: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        write_json([dict(zip(header, row, strict=True)) for row in rows])
        warn_of(problems)
    else:
        print_list(header, rows, problems)


def _typed(entry: Any) -> str:
    return f"{entry.name}:..." if entry.prefix else entry.name
