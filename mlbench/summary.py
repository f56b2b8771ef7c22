"""The comparisons of a results folder, kept from call to call for as long as no file changes."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from mlbench.comparison import Comparison, compare
from mlbench.errors import MlbenchError
from mlbench.paths import atomic_file, cache_dir
from mlbench.provenance import source_digest
from mlbench.store import files, no_collection, read_results

# A file changed twice within the clock's grain would look unchanged after the second time.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Summary:
    """What a results folder says.

    Attributes:
        comparisons: of its readable records.
        problems: one line for each file that is no readable record.
    """

    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Kept:
    key: str
    summary: Summary


def summarise(folder: Path) -> Summary:
    """Read and compare all records under ``folder``.

    What comes of it is kept in the cache and taken again while every file has the path, size and
    time of change that it had, under the same source of mlbench and the same plugins.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could be a record.
    """
    states = _states(folder)
    key = _key(states)
    place = _place(folder)
    kept = _read(place)
    if kept is not None and kept.key == key:
        return kept.summary
    with no_collection():
        results = read_results(folder)
        summary = Summary(tuple(compare(results.records)), results.problems)
    settled = all(time.time_ns() - changed > _SETTLED_NS for _, _, changed in states)
    if place is not None and settled:
        with suppress(MlbenchError), atomic_file(place) as file:
            file.write(msgspec.json.encode(_Kept(key, summary)))
    return summary


def _states(folder: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of change (ns) of every file that the comparisons come from."""
    found = []
    for entry in files(folder, ".json", ".npz"):
        with suppress(OSError):  # a link to nothing, or removed just now
            status = entry.stat()
            found.append((entry.path, status.st_size, status.st_mtime_ns))
    return found


def _key(states: list[tuple[str, int, int]]) -> str:
    groups = ("mlbench.losses", "mlbench.datasets", "mlbench.backbones")
    plugins = [
        (point.name, point.value, point.dist.version if point.dist else "")
        for group in groups
        for point in sorted(entry_points(group=group))
    ]
    return hashlib.sha256(repr((source_digest(), plugins, states)).encode()).hexdigest()


def _place(folder: Path) -> Path | None:
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
    try:
        return cache_dir("tables") / f"{name}.json"
    except MlbenchError:  # the tables can do without
        return None


def _read(place: Path | None) -> _Kept | None:
    if place is None:
        return None
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Kept)
    except (OSError, ValueError, MlbenchError):
        return None
