"""Read anyone's embeddings from a NumPy ``.npz`` file, which is not trusted."""

from __future__ import annotations

import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mlbench.arrays import Labels
from mlbench.errors import MlbenchError, first_few
from mlbench.system.files import check_path
from mlbench.system.machine import raise_lack
from mlbench.system.regular import open_regular

Array = npt.NDArray[Any]

_SUFFIX = ".npy"
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile, its decompressors and numpy's header reader raise for damaged or unknown content.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, OSError, SyntaxError, MemoryError),
)
_LARGEST_WHOLE = 2**53
# How much longer than packed content can be; numpy writes no other methods.
_MOST_BYTES = 1 << 40
_USUALLY_PACKED, _MOST_REPEATED = 20, 1 << 28
_MOST_PACKED = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


@dataclass(frozen=True)
class Embeddings:
    """The arrays of a file.

    Attributes:
        queries: ``(Q, D)``, any real type.
        labels: ``(Q,)``, names numbered.
        gallery: ``(G, D)``, if there is one.
        gallery_labels: ``(G,)``, numbered as ``labels``.
    """

    queries: Array
    labels: Labels
    gallery: Array | None = None
    gallery_labels: Labels | None = None


def read_embeddings(path: Path) -> Embeddings:
    """Read ``embeddings`` and ``labels``, and ``gallery`` and ``gallery_labels`` if there.

    Nothing is unpickled, and no more memory is taken than the arrays fill that the file holds.
    Labels may be integers, whole floats or strings.

    Raises:
        MlbenchError: the file is missing, damaged or no ``.npz``; an array is missing; it holds
            Python objects or other than numbers (or, as a label, strings); its shape is wrong.
    """
    check_path(path)
    if not path.exists():
        raise MlbenchError(f"no file '{path}'")
    with _naming(path, "the file"), open_regular(path, limit=_MOST_BYTES) as content:
        if not zipfile.is_zipfile(content):
            raise MlbenchError(f"{path} is not an .npz file; write one with numpy.savez")
        with zipfile.ZipFile(content) as file:
            return _read(path, file)


def _read(path: Path, file: zipfile.ZipFile) -> Embeddings:
    there = [name.removesuffix(_SUFFIX) for name in file.namelist() if name.endswith(_SUFFIX)]
    for name in ("embeddings", "labels"):
        if name not in there:
            has = first_few(there) or "none"
            raise MlbenchError(f"{path} has no array '{name}'; its arrays: {has}")
    if ("gallery" in there) != ("gallery_labels" in there):
        raise MlbenchError(f"{path}: gallery and gallery_labels belong together; pass both or none")
    sides = [("embeddings", "labels"), ("gallery", "gallery_labels")]
    sides = sides[: 2 if "gallery" in there else 1]
    rows = [_vectors(path, file, name) for name, _ in sides]
    labels = [_labels(path, file, side[1], part) for side, part in zip(sides, rows, strict=True)]
    return Embeddings(*itertools.chain(*zip(rows, _numbered(path, labels), strict=True)))


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Turn what readers raise into one line that says which part is damaged."""
    try:
        yield
    except _UNREADABLE as error:
        raise_lack(error)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.partition("\n")[0]
        raise MlbenchError(f"{path}: {what} cannot be read ({reason}); write it again") from error


def _vectors(path: Path, file: zipfile.ZipFile, name: str) -> Array:
    rows = _array(path, file, name, kinds="fiu", wanted="real numbers (N, D)", ndim=2)
    return rows.astype(np.float64) if rows.dtype.itemsize > 8 else rows


def _labels(path: Path, file: zipfile.ZipFile, name: str, rows: Array) -> Array:
    labels = _array(path, file, name, kinds="iufUS", wanted="integers or strings (N,)", ndim=1)
    if len(labels) != len(rows):
        raise MlbenchError(f"{path}: {name} has {len(labels)} entries for {len(rows)} rows")
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "backslashreplace")
    if labels.dtype.kind == "f":
        return _whole(path, name, labels)
    return labels


def _whole(path: Path, name: str, labels: Array) -> Array:
    """Return float labels as integers, which some tools save as floats."""
    labels = labels.astype(np.float64)
    wrong = ~((np.abs(labels) < _LARGEST_WHOLE) & (labels == np.floor(labels)))
    if wrong.any():
        row = int(wrong.argmax())
        raise MlbenchError(f"{path}: {name}: entry {row} is {labels[row]:g}, not a whole number")
    return labels.astype(np.int64)


def _numbered(path: Path, labels: list[Array]) -> list[Labels]:
    """Return integers: strings are numbered, alike in all arrays."""
    names = [array.dtype.kind == "U" for array in labels]
    if not any(names):
        return [array.astype(np.int64) for array in labels]
    if not all(names):
        raise MlbenchError(f"{path}: labels and gallery_labels: one has strings, one numbers")
    codes = np.unique(np.concatenate(labels), return_inverse=True)[1].astype(np.int64)
    return np.split(codes, [len(labels[0])])[: len(labels)]


def _array(
    path: Path, file: zipfile.ZipFile, name: str, *, kinds: str, wanted: str, ndim: int
) -> Array:
    """Read one array after its header has been checked against what the archive holds."""
    with _naming(path, f"array '{name}'"), file.open(name + _SUFFIX) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.hasobject:
            raise MlbenchError(f"{path}: {name} contains Python objects; save it as {wanted}")
        if dtype.kind not in kinds or len(shape) != ndim:
            raise MlbenchError(f"{path}: {name} is {dtype} {shape}; expected {wanted}")
        info = file.getinfo(name + _SUFFIX)
        size = math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or size != info.file_size - stream.tell():
            raise ValueError(f"its header says {shape} {dtype}, which is not what follows")
        if info.file_size > info.compress_size * _MOST_PACKED.get(info.compress_type, 0):
            raise ValueError("it is not packed as numpy packs")
        if info.file_size > max(_MOST_REPEATED, info.compress_size * _USUALLY_PACKED):
            raise ValueError(f"it would unpack to {info.file_size:,} bytes")
        return _content(stream, shape[::-1] if fortran else shape, dtype, fortran)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"its format {version} is unknown")
    return _HEADER_READERS[version](stream)


def _content(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool
) -> Array:
    array = np.empty(shape, dtype)
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = stream.readinto(view[done : done + 2**24])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("it ends early")
        done += got
    if stream.read(1):  # also has zipfile check the sum of the content
        raise ValueError("more follows than its header says")
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return native.T if fortran else native
