"""A pack: the records of a results folder in one compressed file.

It is gzip of one line of JSON, ``{"mlbench_pack": 1, "records": [[NAME, BYTES], ...]}``, and behind
it the records' files one after the other, each of so many bytes. As records share most of their
text they are compressed together. Nothing in it can be a link, a device or a program, and no name
in it is ever written to: a pack may come from a stranger.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mlbench.errors import MlbenchError, printable
from mlbench.system.files import atomic_file
from mlbench.system.machine import raise_lack
from mlbench.system.regular import open_regular

SUFFIX = ".mlpack"
_VERSION = 1
_MOST_BYTES = 1 << 32
"""Of the pack, and of what it unpacks to."""
_HEADER_BYTES = 1 << 26
RECORD_BYTES = 1 << 26
"""The most bytes that a record is read with."""


def is_pack(path: Path) -> bool:
    """Tell whether a file is to be a pack, by its name."""
    return path.name.endswith(SUFFIX)


def write_pack(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a pack, whole or not at all; the same contents give the same bytes.

    Args:
        path: of the pack; replaced if it exists.
        contents: of the records, by their path relative to the results folder, with slashes.

    Raises:
        MlbenchError: it cannot be written.
    """
    listed = [[name, len(content)] for name, content in contents.items()]
    header = json.dumps({"mlbench_pack": _VERSION, "records": listed})
    with (
        atomic_file(path) as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        packed.write(header.encode() + b"\n")
        for content in contents.values():
            packed.write(content)


def read_pack(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each record in a pack, in its order.

    What it yields may be damaged until it has come to its end.

    Raises:
        MlbenchError: it is no pack, is damaged, was made by a newer mlbench, or unpacks to more
            than any results do.
    """
    try:
        with open_regular(path, limit=_MOST_BYTES) as file, gzip.GzipFile(fileobj=file) as packed:
            yield from _members(path, packed)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own is an OSError
        raise_lack(error)
        raise MlbenchError(
            f"{path}: cannot be read as a pack ({error}); obtain it again"
        ) from error


def _members(path: Path, packed: gzip.GzipFile) -> Iterator[tuple[str, bytes]]:
    for name, size in _listed(path, packed):
        content = packed.read(size)
        if len(content) < size:
            raise EOFError("it ends before its last record")
        yield name, content
    if packed.read(1):
        raise EOFError("more follows than it lists")


def _listed(path: Path, packed: gzip.GzipFile) -> list[tuple[str, int]]:
    """Read the first line: names and sizes of the records, all of them checked."""
    try:
        header = json.loads(packed.readline(_HEADER_BYTES))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or type(header.get("mlbench_pack")) is not int:
        raise MlbenchError(f"{path}: no pack of mlbench's results; make one with: mlbench pack DIR")
    if header["mlbench_pack"] > _VERSION:
        raise MlbenchError(f"{path}: made by a newer mlbench; upgrade mlbench to read it")
    listed = header.get("records")
    if not isinstance(listed, list) or not all(map(_is_entry, listed)):
        raise MlbenchError(f"{path}: its list of records is damaged; obtain the pack again")
    names = {name for name, _ in listed}
    if len(names) < len(listed) or sum(size for _, size in listed) > _MOST_BYTES:
        raise MlbenchError(
            f"{path}: a record occurs twice, or there is extra content; do not use it"
        )
    return [(name, size) for name, size in listed]


def _is_entry(entry: Any) -> bool:
    """Tell whether this is a name and a size of a record."""
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    name, size = entry
    return is_name(name) and type(size) is int and 0 <= size <= RECORD_BYTES


def is_name(name: object) -> bool:
    """Tell whether this is the path of a record below a results folder, and nothing else."""
    if type(name) is not str or not name.isprintable() or "\\" in name:
        return False
    parts = PurePosixPath(name).parts
    below = "/".join(parts) == name and ".." not in parts and not name.startswith("/")
    return below and name.endswith(".json")


def read_member(path: Path) -> bytes | None:
    """Return the content of a record at a path that leads into a pack; None if it leads into none.

    Raises:
        MlbenchError: as ``read_pack``, or no record of this name is in the pack.
    """
    for pack in path.parents:
        if pack.name.endswith(SUFFIX) and pack.is_file():
            wanted = path.relative_to(pack).as_posix()
            found = next((content for name, content in read_pack(pack) if name == wanted), None)
            if found is None:
                raise MlbenchError(f"{pack}: it contains no record '{printable(wanted)}'")
            return found
    return None
