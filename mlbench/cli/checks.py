"""Commands that check: verify a record, show the environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlbench.cli._common import print_list, progress_bar, record_argument
from mlbench.errors import printable

if TYPE_CHECKING:
    from mlbench.runs.verify import Finding, Verification

_ON_A_GPU = (
    "on a GPU some sums are added in another order each time, so that a run may differ from itself "
    "in the last digits, and training amplifies that: compare the differences with those between "
    "two seeds, or verify with --device cpu a record that was made on a CPU"
)


@click.command()
@record_argument("record")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that contains the data set.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights file, if the record's recipe names one.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
def verify(record: Path, data_root: Path | None, weights: Path | None, device: str) -> None:
    """Repeat the run of RECORD, including training, and compare the results bit for bit.

    RECORD is a record's file, a folder or pack with one record, or FOLDER:LOSS. Writes nothing.
    Exits with code 0 if data, loss and every result are identical, 1 if not, 2 if the run cannot be
    repeated here. Times are not compared; versions and hardware are shown only. Expect identical
    results on a CPU, with the same hardware, versions and number of threads.
    """
    from mlbench.records import store

    known = store.load(record)
    from mlbench.runs.verify import files_for, verify
    from mlbench.training.device import resolve_device  # imports torch: after what may be refused

    files, place = files_for(known, data_root, weights), resolve_device(device)
    with progress_bar() as report:
        done = verify(known, files, place, report)
    _print_verification(done, place.type)
    sys.exit(0 if done.identical else 1)


def _print_verification(done: Verification, device: str) -> None:
    rows = [(each.what, each.recorded, each.now, _verdict(each)) for each in done.findings]
    print_list(("what", "recorded", "now", ""), rows, [])
    if done.identical:
        click.echo("identical")
    elif done.made:
        if device == "cuda":
            click.echo(_ON_A_GPU)
        click.echo("different")
    else:
        click.echo("different data, weights, loss or protocol; the run was not repeated")


def _verdict(finding: Finding) -> str:
    if finding.same:
        return "identical"
    verdict = "DIFFERENT" if finding.judged else "other (not compared)"
    return f"{verdict} {finding.remark}".rstrip()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env(as_json: bool) -> None:
    """Print the information needed in a bug report: versions, machine, plugins, variables."""
    from mlbench.cli._environment import environment, flat

    facts = environment()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        for name, text in flat(facts):
            click.echo(printable(f"{name:<42} {text}"))
