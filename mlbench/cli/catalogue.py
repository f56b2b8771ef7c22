"""Commands about what is registered: list, show, check."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli._common import print_list

if TYPE_CHECKING:
    from mlbench.contract import CheckResult


@click.command()
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
        print_list(("check", "result", ""), rows, LOSSES.problems)
    else:
        rows = [(name, *_tally(checks)) for name, checks in results.items()]
        print_list(("loss", "passed", "skipped", "failed"), rows, LOSSES.problems)
    sys.exit(0 if all(r.passed for checks in results.values() for r in checks) else 1)


def _outcome(result: CheckResult) -> str:
    return "skipped" if result.skipped else "passed" if result.passed else "FAILED"


def _tally(results: Sequence[CheckResult]) -> tuple[str, str, str]:
    """Return how many checks passed and were skipped, and the names of those that failed."""
    outcomes = [_outcome(result) for result in results]
    failed = ", ".join(result.name for result in results if not result.passed)
    return str(outcomes.count("passed")), str(outcomes.count("skipped")), failed or "none"


@click.command()
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
    print_list(("loss", entry.name), list(facts.items()), [])


@click.group(name="list")
def list_() -> None:
    """List what can be named in a run."""


@list_.command()
def losses() -> None:
    """List losses: name, paper, needs, source."""
    from mlbench.registry import LOSSES

    rows = [(_typed(e), e.paper or e.summary, e.needs, e.source) for e in LOSSES.entries()]
    print_list(("name", "paper", "needs", "source"), rows, LOSSES.problems)


@list_.command()
def datasets() -> None:
    """List data sets."""
    from mlbench.registry import DATASETS

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in DATASETS.entries()]
    print_list(("name", "what", "paper", "source"), rows, DATASETS.problems)


@list_.command()
def backbones() -> None:
    """List backbones."""
    from mlbench.registry import BACKBONES

    rows = [(_typed(e), e.summary, e.paper, e.source) for e in BACKBONES.entries()]
    print_list(("name", "what", "paper", "source"), rows, BACKBONES.problems)


@list_.command()
def recipes() -> None:
    """List shipped recipes."""
    from mlbench.config import load_recipe, recipe_names, recipe_text

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        what = recipe_text(name).partition("\n")[0].removeprefix("# ")
        rows.append((name, recipe.recipe_id, what))
    print_list(("name", "recipe_id", "what"), rows, [])


def _typed(entry: Any) -> str:
    return f"{entry.name}:..." if entry.prefix else entry.name
