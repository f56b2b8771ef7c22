"""The comparisons of a results folder, each kept from call to call while no file of it changes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mlbench.comparison.comparison import Comparison, Identity, compare, told_apart
from mlbench.comparison.judgement import Statement
from mlbench.errors import MlbenchError
from mlbench.records.packs import SUFFIX
from mlbench.records.provenance import source_digest
from mlbench.records.store import no_collection, read_records, record_files
from mlbench.registry import LOSSES
from mlbench.system.files import atomic_file, cache_dir
from mlbench.system.regular import read_regular

# A file changed twice within the clock's grain would look unchanged after the second time.
_SETTLED_NS = 2_000_000_000
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Summary:
    """What a results folder says.

    Attributes:
        comparisons: of its readable records.
        problems: one line for each file that is no readable record.
    """

    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]


FileStamp = tuple[int, int]
"""Size and time of change (ns) of a file with records; 0 if it is not there."""

_NOTHING = (0, 0)


@dataclass(frozen=True)
class _Part:
    """A comparison, and the states that its records' files were in."""

    comparison: Comparison
    states: dict[str, FileStamp]


@dataclass(frozen=True)
class _Kept:
    """What came of the records of a folder, by a source of mlbench."""

    source: str
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Asked:
    """What comparisons are to be made, as arguments of ``compare``."""

    statement: Statement
    varied: tuple[str, ...]


def summarise(
    folder: Path, statement: Statement = "other-classes", varied: Sequence[str] = ()
) -> Summary:
    """Read and compare all records under ``folder``.

    Each comparison of built-in losses is kept in the cache and taken again while its records are
    the same and their files have the size and time of change that they had, under the same source
    of mlbench. What a plugin says of its loss may change without a new version.

    Args:
        folder: of records.
        statement: what is to be said of differences.
        varied: recipe fields in which recipes of one comparison may differ, as for ``compare``.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could be a record.
    """
    asked = _Asked(statement, tuple(varied))
    started, source, place = time.time_ns(), source_digest(), _place(folder, asked)
    states = _states(folder)
    kept = _read(place, source)
    with no_collection():
        found, problems = _renewed(kept, states, asked)
    passing = [part for part in found if not (_is_settled(part, started) and _is_built_in(part))]
    damaged = {
        pack for pack in states if pack.endswith(SUFFIX) and any(f"{pack}/" in p for p in problems)
    }
    lasting = tuple(_without(found, _files(passing) | damaged))
    if place is not None and lasting != kept:
        # A file name may hold bytes that are no text.
        with suppress(MlbenchError, UnicodeError):
            content = msgspec.json.encode(_Kept(source, lasting))
            with atomic_file(place) as file:
                file.write(content)
    return Summary(tuple(told_apart(part.comparison for part in found)), problems)


def _renewed(
    kept: Sequence[_Part], states: Mapping[str, FileStamp], asked: _Asked
) -> tuple[list[_Part], tuple[str, ...]]:
    """Return the comparisons, those with a change made anew, and what cannot be read.

    A pack may hold records of several comparisons, so that one of them is never made anew alone.
    """
    changed = {p for part in kept for p, state in part.states.items() if states.get(p) != state}
    same = _without(kept, changed)
    held = _files(same)
    new = read_records(Path(path) for path in states if path not in held)
    identities = {Identity.of(record, asked.varied) for record in new.records.values()}
    joined = _files(part for part in same if part.comparison.identity in identities)
    rest = _without(same, joined)
    old = read_records(map(Path, held - _files(rest)))
    number = {path: n for n, path in enumerate(states)}
    read = [(_file(p, states), p, r) for p, r in (new.records | old.records).items()]
    read.sort(key=lambda each: number[each[0]])
    fresh = compare({path: record for _, path, record in read}, asked.statement, asked.varied)
    parts = [
        _Part(each, {file: states[file] for file in (_file(Path(p), states) for p in each.files)})
        for each in fresh
    ]
    return [*rest, *parts], new.problems + old.problems


def _files(parts: Iterable[_Part]) -> set[str]:
    return {path for part in parts for path in part.states}


def _without(parts: Sequence[_Part], files: Collection[str]) -> list[_Part]:
    """Return the parts that have none of the files, nor share one with a part that has."""
    touched, last = set(files), -1
    while len(touched) > last:
        last = len(touched)
        touched |= _files(part for part in parts if not part.states.keys().isdisjoint(touched))
    return [part for part in parts if part.states.keys().isdisjoint(touched)]


def _file(path: Path, states: Container[str]) -> str:
    """Return the file that a record lies in: its own, or a pack."""
    own = str(path)
    return own if own in states else next(str(p) for p in path.parents if str(p) in states)


def _states(folder: Path) -> dict[str, FileStamp]:
    """Return the state of each file with records by its path."""
    here = f".{os.sep}"  # which names have in the folder that is called so, and paths never
    states: dict[str, FileStamp] = {}
    for file in record_files(folder):
        states[path := file.path.removeprefix(here)] = _NOTHING
        with suppress(OSError):  # a link to nothing, or removed just now
            status = file.stat()
            states[path] = status.st_size, status.st_mtime_ns
    return states


def _is_settled(part: _Part, now: int) -> bool:
    """Return whether no file changed so lately that another change could look the same."""
    return all(now - changed > _SETTLED_NS for _, changed in part.states.values())


def _is_built_in(part: _Part) -> bool:
    names = {row.loss for row in part.comparison.rows if not row.baseline}
    try:
        return all(LOSSES.get(name).source == "built-in" for name in names)
    except MlbenchError:  # of a plugin that is not installed
        return False


def _place(folder: Path, asked: _Asked) -> Path | None:
    kind = " ".join([asked.statement, *asked.varied, ""])
    names = kind.encode() + os.fsencode(folder.absolute())
    name = hashlib.sha256(names).hexdigest()[:32]
    try:
        return cache_dir("tables") / f"{name}.json"
    except MlbenchError:  # the tables can do without
        return None


def _read(place: Path | None, source: str) -> tuple[_Part, ...]:
    if place is None:
        return ()
    try:
        kept = msgspec.json.decode(read_regular(place, limit=_MOST_BYTES), type=_Kept)
    except (OSError, ValueError, RecursionError, MlbenchError):
        return ()
    return kept.parts if kept.source == source else ()
