"""Commands for a folder of results: results upgrade, pack."""

from __future__ import annotations

from pathlib import Path

import click

from mlbench.cli._common import progress_bar, warn_of


@click.group()
def results() -> None:
    """Maintain a folder of results."""


@results.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that contains the data sets, whose labels are needed.",
)
def upgrade(folder: Path, data_root: Path | None) -> None:
    """Add totals by class to the records in FOLDER of earlier versions, which lack them.

    They are computed from the per-query scores next to a record and the labels of its data set.
    Records that have totals are not changed, so the command can be repeated.
    """
    from mlbench.records.upgrade import upgrade as add_totals

    with progress_bar() as report:
        done = add_totals(folder, data_root, lambda *counts: report("upgrading", *counts))
    warn_of([f"not changed: {problem}" for problem in done.left])
    click.echo(
        f"{done.added:,} of {done.records:,} records upgraded; {done.complete:,} had totals, "
        f"{len(done.left):,} not changed"
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="File to write; its name ends with .mlpack. [default: FOLDER.mlpack]",
)
def pack(folder: Path, output: Path | None) -> None:
    """Write the records in FOLDER as one small compressed file.

    table, report, diff, verify and mlbench.load_results read it like a folder. It does not contain
    per-query results, trained networks and trials; no table needs them.
    """
    from mlbench.records.packing import pack_results

    packed = pack_results(folder, output)
    warn_of([f"skipped: {problem}" for problem in packed.problems])
    if packed.without_totals:
        click.echo(
            f"Warning: {packed.without_totals:,} records have no totals by class, and their "
            "per-query results are not packed; add them first with: mlbench results upgrade",
            err=True,
        )
    size = packed.path.stat().st_size
    click.echo(f"{packed.path}: {packed.records:,} records, {size / 1e6:.2f} MB")
