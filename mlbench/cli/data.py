"""Commands about the files of data sets: data list, fetch, verify, path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli._common import print_list
from mlbench.errors import MlbenchError

if TYPE_CHECKING:
    from mlbench.arrays import Labels
    from mlbench.datasets.public import PublicSource
    from mlbench.interfaces import Dataset, ImageSet

_root_option = click.option(
    "--data-root",
    "root",
    type=click.Path(path_type=Path),
    envvar="MLBENCH_DATA_ROOT",
    show_envvar=True,
    help="Folder that contains the data sets. [default: one in the user's cache]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def data() -> None:
    """Fetch and verify public data sets."""


@data.command(name="list")
@_root_option
@_json_option
def list_(root: Path | None, as_json: bool) -> None:
    """List the data sets that can be fetched: size, terms, and their folder."""
    from mlbench.datasets.data_root import data_root
    from mlbench.datasets.public import SOURCES

    facts = [_facts(source, data_root(root)) for source in SOURCES.values()]
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    rows = [
        (f["name"], f"{f['images']:,}", _size(f["bytes"]), f["path"] or "-", f["terms"])
        for f in facts
    ]
    print_list(("name", "images", "download", "folder", "terms"), rows, [])


def _facts(source: PublicSource, root: Path) -> dict[str, Any]:
    found = _found(source.name, root)
    return {
        "name": source.name,
        "images": source.images,
        "bytes": source.size,
        "by_hand": not all(file.urls for file in source.files),
        "path": str(found) if found else None,
        "page": source.page,
        "terms": source.terms,
    }


def _found(name: str, root: Path) -> Path | None:
    try:
        return _locate(name, root)
    except MlbenchError:
        return None


def _size(count: int | None) -> str:
    from rich.filesize import decimal

    return "manual" if count is None else decimal(count)


def _locate(name: str, root: Path | None) -> Path:
    """Return the folder of a public data set; MlbenchError if it is not there."""
    from mlbench.datasets import cars196, cub200, inshop, sop
    from mlbench.datasets.data_root import find

    if name == "inshop":
        return inshop.locate(root)[1]
    module = {"cub200": cub200, "cars196": cars196, "sop": sop}[name]
    return find(name, root, module.FOLDER, module.MARKERS)


@data.command()
@click.argument("name")
@_root_option
def path(name: str, root: Path | None) -> None:
    """Print the folder of a data set."""
    from mlbench.datasets.public import get_source

    click.echo(_locate(get_source(name).name, root))


@data.command()
@click.argument("name")
@_root_option
def fetch(name: str, root: Path | None) -> None:
    """Download a data set, or use the files that you put there; verify and unpack them.

    Re-running the command resumes an interrupted download.
    """
    from mlbench.datasets.data_root import data_root
    from mlbench.datasets.fetch import fetch_source
    from mlbench.datasets.public import get_source

    source, folder = get_source(name), data_root(root)
    _say(f"{name}: {source.page}")
    _say(f"terms: {source.terms}")
    if _found(name, folder):
        _say("its files already exist")
    else:
        files = ", ".join(f"{file.name} ({_size(file.pin.size)})" for file in source.files)
        _say(f"to {folder}: {files}")
        with _bars() as progress:
            fetch_source(source, folder, _say, progress)
    _print_facts(_verified(name, folder))


@data.command()
@click.argument("name")
@_root_option
@_json_option
def verify(name: str, root: Path | None, as_json: bool) -> None:
    """Check files, counts and split of a data set; print its fingerprint.

    NAME may also be folder:PATH or table:FILE.
    """
    facts = _verified(name, root)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _print_facts(facts)


def _verified(name: str, root: Path | None) -> dict[str, Any]:
    """Load a data set, which checks it, and return what it is."""
    from mlbench.datasets.public import SOURCES
    from mlbench.registry import DATASETS

    loaded = DATASETS.get(name).load()(root)
    known = SOURCES[name].fingerprint if name in SOURCES else None
    if known not in (None, loaded.fingerprint):
        raise MlbenchError(
            f"{name}: the counts are right, but the contents are not: the fingerprint is "
            f"{loaded.fingerprint[:12]}, that of the official files is {known[:12]}; these files "
            "were changed: fetch them again into another data root"
        )
    return {
        "name": loaded.name,
        "sides": _sides(loaded),
        "fingerprint": loaded.fingerprint,
        "fingerprint_is_official": None if known is None else True,
    }


def _sides(loaded: Dataset) -> dict[str, dict[str, int]]:
    return {
        name: {"images": len(images), "classes": _count(images.labels), **_groups(images)}
        for name, images in loaded.sides.items()
    }


def _groups(images: ImageSet) -> dict[str, int]:
    return {} if images.groups is None else {"groups": _count(images.groups)}


def _count(numbers: Labels) -> int:
    """Return how many different numbers there are."""
    return len(set(numbers.tolist()))


def _print_facts(facts: dict[str, Any]) -> None:
    for side, counts in facts["sides"].items():
        groups = f", in {counts['groups']:,} groups" if "groups" in counts else ""
        click.echo(f"{side}: {counts['images']:,} images of {counts['classes']:,} classes{groups}")
    official = facts["fingerprint_is_official"]
    note = "that of the official files" if official else "no official fingerprint is known"
    click.echo(f"fingerprint: {facts['fingerprint']} ({note})")


def _say(line: str) -> None:
    click.echo(line, err=True)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show progress on standard error, if that is a terminal: one bar for each thing done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, shown="")
            shown = _size(done) if total else f"{done:,} files"
            bars.update(tasks[what], completed=done, total=total, shown=shown)

        yield progress
