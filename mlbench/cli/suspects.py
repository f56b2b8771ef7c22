"""The command that names the images of a data set that a person should look at: suspects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlbench.cli._common import print_list, progress_bar, record_argument
from mlbench.errors import printable
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.interfaces import Dataset
    from mlbench.models.suspects import Suspects


@click.command()
@record_argument("run", kept=True)
@click.argument("folder", metavar="FOLDER|DATASET")
@click.option(
    "--html",
    "sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page with the images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    help="Folder that contains the data set, if DATASET is a name.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="File of the backbone's weights, if the backbone is frozen and its recipe names a file.",
)
def suspects(
    run: Path,
    folder: str,
    sheet: Path | None,
    as_json: bool,
    data_root: Path | None,
    device: str,
    weights: Path | None,
) -> None:
    """List likely mislabels and near-duplicates among the images of a folder of class folders.

    RUN is a record made with --keep-model, a folder with one, or FOLDER:LOSS; the features of its
    backbone are compared. Instead of FOLDER, table:FILE or the name of a data set can be used. No
    file is changed: you decide.
    """
    from mlbench.models.model import load_model
    from mlbench.models.suspects import all_images, find_suspects

    with progress_bar() as report:
        model = load_model(run, device=device, weights=weights)
        dataset = _dataset(folder, data_root)
        images = all_images(dataset)
        found = find_suspects(
            model, images, lambda done, total: report("comparing images", done, total)
        )
    if sheet is not None:
        from mlbench.report.suspects import write_suspects

        write_suspects(found, images, run.name, folder, sheet)
        click.echo(f"{sheet}: {sheet.stat().st_size / 1e6:.1f} MB", err=True)
    if as_json:
        write(json.dumps({"run": str(run), "data": folder, **asdict(found)}, indent=1) + "\n")
    else:
        _print(found, folder)


def _dataset(folder: str, data_root: Path | None) -> Dataset:
    from mlbench.datasets.checks import check_dataset
    from mlbench.registry import DATASETS
    from mlbench.system.files import expanded

    here = expanded(Path(folder))
    name, root = (f"folder:{here}", None) if here.is_dir() else (folder, data_root)
    dataset = DATASETS.get(name).load()(root)
    check_dataset(dataset)
    return dataset


def _print(found: Suspects, folder: str) -> None:
    click.echo(printable(f"{found.images:,} images of {folder}"))
    click.echo(f"\n{_count(found.mislabels, 'likely mislabel')}, the most suspicious first")
    if found.mislabels:
        rows = [(f"{m.margin:.2f}", m.path, m.fits, m.like) for m in found.mislabels]
        print_list(("margin", "image", "fits into", "like"), rows, [])
    click.echo(f"\n{_count(found.copies, 'pair')} of near-duplicates, the most alike first")
    if found.copies:
        copies = [
            (f"{c.correlation:.4f}", c.path, c.original, _note(c.label, c.original_label))
            for c in found.copies
        ]
        print_list(("correlation", "image", "same picture as", ""), copies, [])
    if found.unreadable:
        click.echo(f"\n{_count(found.unreadable, 'image')} that cannot be read")
        for line in found.unreadable:
            click.echo(printable(line))


def _count(items: Sequence[object], what: str) -> str:
    return f"{len(items):,} {what}{'s' * (len(items) != 1)}"


def _note(label: str, other: str) -> str:
    return "" if label == other else "of another class"
