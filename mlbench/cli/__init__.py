"""The command line. Nothing here imports torch before a run begins."""

from __future__ import annotations

import atexit

import click

from mlbench._version import __version__
from mlbench.cli._common import Group
from mlbench.cli.catalogue import check, list_, show
from mlbench.cli.checks import env, verify
from mlbench.cli.data import data
from mlbench.cli.embeddings import evaluate
from mlbench.cli.gaps import ablate, effects
from mlbench.cli.models import COMMANDS as MODEL_COMMANDS
from mlbench.cli.report import report
from mlbench.cli.results import pack, results
from mlbench.cli.runs import run, tune
from mlbench.cli.suspects import suspects
from mlbench.cli.tables import diff, plan, table
from mlbench.system.interrupts import leave


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlbench")
def main() -> None:
    # click's mark for "do not rewrap" is a backspace, so the docstring cannot be raw.
    """Train and compare metric-learning losses under identical conditions.

    \b
    mlbench run                          four losses on the built-in data set
    mlbench run --losses softtriple,npairs,triplet
    mlbench table results/               the comparison of saved results
    """  # noqa: D301


for _command in (
    run,
    table,
    plan,
    diff,
    ablate,
    effects,
    tune,
    check,
    show,
    list_,
    report,
    results,
    pack,
    data,
    verify,
    env,
    evaluate,
    *MODEL_COMMANDS,
    suspects,
):
    main.add_command(_command)


def entry() -> None:
    """Run the command line as a process of its own."""
    atexit.register(leave)  # registered first, it is called last
    main(prog_name="mlbench")
