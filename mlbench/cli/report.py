"""The command that shows results as a page: report."""

from __future__ import annotations

from pathlib import Path

import click

from mlbench.errors import printable


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that holds the data set, for figures by class, gallery and map.",
)
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="Folder for the figures as SVG files as well, such as for a paper.",
)
def report(folder: Path, output: Path, data_root: Path | None, figures: Path | None) -> None:
    """Write the results in FOLDER as one HTML file that works without a network.

    Tables, figures, gallery of retrieved images, map of the embeddings, recipes, provenance.
    Damaged records are named in it and left out.
    """
    from mlbench.report import write_report

    for problem in write_report(folder, output, data_root, figures):
        click.echo(f"Warning: left out: {printable(problem)}", err=True)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB", err=True)
