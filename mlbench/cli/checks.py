"""Commands that check: verify a record, show the environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlbench.cli._common import print_list, progress_bar
from mlbench.errors import printable

if TYPE_CHECKING:
    from mlbench.runs.verify import Finding, Verification


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that holds the data set.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="The weights file, if the record's recipe names one.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
def verify(record: Path, data_root: Path | None, weights: Path | None, device: str) -> None:
    """Make the run of RECORD again, training included, and compare. Nothing is written.

    Exits with code 0 if data, loss and every result are identical (times are no results, and
    versions and hardware are shown but not judged), 1 if not, 2 if the run cannot be made here.
    """
    from mlbench.records import store

    known = store.load(record)
    from mlbench.runs.verify import files_for, verify
    from mlbench.training.device import resolve_device  # imports torch: after what may be refused

    files = files_for(known, data_root, weights)
    with progress_bar() as report:
        done = verify(known, files, resolve_device(device), report)
    _print_verification(done)
    sys.exit(0 if done.identical else 1)


def _print_verification(done: Verification) -> None:
    rows = [(each.what, each.recorded, each.now, _verdict(each)) for each in done.findings]
    print_list(("what", "recorded", "now", ""), rows, [])
    if done.identical:
        click.echo("identical")
    elif done.made:
        click.echo("different")
    else:
        click.echo("different: not of the same data, weights, loss and protocol, so not made again")


def _verdict(finding: Finding) -> str:
    if finding.same:
        return "identical"
    verdict = "DIFFERENT" if finding.judged else "other (not judged)"
    return f"{verdict} {finding.remark}".rstrip()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def env(as_json: bool) -> None:
    """Print what a bug report needs: versions, machine, threads, plugins, cache, variables."""
    from mlbench.cli._environment import environment, flat

    facts = environment()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        for name, text in flat(facts):
            click.echo(printable(f"{name:<42} {text}"))
