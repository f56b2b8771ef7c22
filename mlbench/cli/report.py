"""The command that shows results as a page: report."""

from __future__ import annotations

from pathlib import Path

import click

from mlbench.cli._common import progress_bar
from mlbench.errors import printable


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that contains the data set, for figures by class, gallery and map.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="Also write the figures to this folder as SVG files, for example for a paper.",
)
def report(folder: Path, output: Path, data_root: Path | None, figures: Path | None) -> None:
    """Write the results in FOLDER as one HTML file that works offline.

    Tables, figures, gallery of retrieved images, map of the embeddings, recipes, provenance.
    Damaged records are reported in it and skipped.
    """
    from mlbench.report import write_report

    with progress_bar() as progress:
        problems = write_report(folder, output, data_root, figures, progress)
    for problem in problems:
        click.echo(f"Warning: skipped: {printable(problem)}", err=True)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB", err=True)
