"""Commands for a folder of results: results upgrade."""

from __future__ import annotations

from pathlib import Path

import click

from mlbench.cli._common import progress_bar, warn_of


@click.group()
def results() -> None:
    """Look after a folder of results."""


@results.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that holds the data sets, whose labels are needed.",
)
def upgrade(folder: Path, data_root: Path | None) -> None:
    """Add totals by class to the records in FOLDER that were made before records held them.

    They are made from the per-query scores beside a record and the labels of its data set. Records
    that have totals stay as they are, so the command can be repeated.
    """
    from mlbench.records.upgrade import upgrade as add_totals

    with progress_bar() as report:
        done = add_totals(folder, data_root, lambda *counts: report("upgrading", *counts))
    warn_of([f"left as it is: {problem}" for problem in done.left])
    click.echo(
        f"{done.added:,} of {done.records:,} records upgraded; {done.complete:,} need nothing, "
        f"{len(done.left):,} left as they are"
    )
