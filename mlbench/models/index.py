"""Embedded images kept as an index, which can be searched and brought up to date."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlbench.errors import MlbenchError
from mlbench.models.approximate import LARGE, Cells, assign, make_cells
from mlbench.models.folders import (
    EmbeddedFolder,
    embed_paths,
    existing_folder,
    images_below,
    save_arrays,
)
from mlbench.models.kept import SUFFIXES
from mlbench.models.model import Model
from mlbench.progress import Progress
from mlbench.system import npz
from mlbench.system.files import file_sha256
from mlbench.system.machine import raise_lack
from mlbench.system.regular import is_regular

FileState = Literal["same", "changed", "gone"]
Stamps = npt.NDArray[np.int64]

Kind = Literal["auto", "exact", "ivf"]

_GONE = (-1, -1)
_MEMBERS, _CELLS = ("embeddings", "paths", "stamps", "index"), ("centroids", "cells")


@dataclass(frozen=True, eq=False)
class Index:
    """Embedded images to be searched.

    Attributes:
        run: the record of the model that embedded them.
        model_sha256: of that model's file.
        root: folder that holds the images.
        paths: ``N``, relative to ``root``.
        embeddings: float32 ``(N, D)``.
        stamps: ``(N, 2)`` int64, size and time of change (ns) of each file when it was indexed.
        cells: of an approximate index; None if the search is exact.
    """

    run: Path
    model_sha256: str
    root: Path
    paths: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]
    stamps: Stamps
    cells: Cells | None = None

    @functools.cached_property
    def states(self) -> tuple[FileState, ...]:
        """What has become of each file since it was indexed."""
        now = _stamps(self.root, self.paths)
        pairs = zip(self.stamps.tolist(), now.tolist(), strict=True)
        return tuple(_state(before, after) for before, after in pairs)

    def in_state(self, state: FileState) -> list[str]:
        """Return the paths of the files in one state."""
        return [p for p, now in zip(self.paths, self.states, strict=True) if now == state]


def _stamps(root: Path, paths: Sequence[str]) -> Stamps:
    return np.array([_stamp(root / path) for path in paths], np.int64).reshape(-1, 2)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return _GONE
    return found.st_size, found.st_mtime_ns


def _state(before: list[int], now: list[int]) -> FileState:
    if tuple(now) == _GONE:
        return "gone"
    return "same" if now == before else "changed"


def default_index(run: Path) -> Path:
    """Return where the index of a run lies if nothing else is said: beside its record."""
    return run.with_suffix(".index.npz")


def make_index(embedded: EmbeddedFolder, run: Path, kind: Kind) -> Index:
    """Return the index of a folder that the model of ``run`` (its record) has embedded.

    Args:
        embedded: the folder.
        run: the record.
        kind: ``exact``; ``ivf``, approximate; or ``auto``: approximate from 100,000 images on, if
            the recall that is wanted leaves it faster than the exact search.
    """
    stamps = _stamps(embedded.root, embedded.paths)
    sha256 = file_sha256(run.with_suffix(SUFFIXES[0]))
    index = Index(run, sha256, embedded.root, embedded.paths, embedded.embeddings, stamps)
    if kind == "exact" or (kind == "auto" and len(index.paths) < LARGE):
        return index
    cells = make_cells(index.embeddings)
    return replace(index, cells=cells) if kind == "ivf" or cells.pays else index


@dataclass(frozen=True)
class Update:
    """What became of an index: numbers of images, and a line for each that cannot be read."""

    added: int
    removed: int
    bad: tuple[str, ...]


def update_index(
    model: Model, index: Index, progress: Progress | None = None
) -> tuple[Index, Update]:
    """Embed the images that are new or changed, and leave out those that are gone.

    The cells of an approximate index stay: each new image goes to the nearest one.

    Raises:
        MlbenchError: the folder is gone, or has no image left.
    """
    now = set(images_below(existing_folder(index.root)))
    pairs = zip(index.paths, index.states, strict=True)
    kept = [i for i, (path, state) in enumerate(pairs) if state == "same" and path in now]
    new = sorted(now - {index.paths[i] for i in kept})
    embedded = embed_paths(model, index.root, new, progress)
    paths = [*(index.paths[i] for i in kept), *embedded.paths]
    if not paths:
        raise MlbenchError(f"no image below {index.root} can be read")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    cells = index.cells
    if cells:
        of = np.concatenate((cells.of[kept], assign(cells.centroids, embedded.embeddings)))
        cells = replace(cells, of=of[order])
    updated = replace(
        index,
        paths=tuple(paths[i] for i in order),
        embeddings=np.concatenate((index.embeddings[kept], embedded.embeddings))[order],
        stamps=np.concatenate((index.stamps[kept], _stamps(index.root, embedded.paths)))[order],
        cells=cells,
    )
    change = Update(len(embedded.paths), len(index.paths) - len(kept), embedded.bad)
    return updated, change


def save_index(index: Index, output: Path) -> None:
    """Write an index; it finds its run again if both are moved together.

    Raises:
        MlbenchError: it cannot be written.
    """
    run = os.path.relpath(index.run.resolve(), output.resolve().parent)
    about = {"format": 1, "run": run, "model": index.model_sha256, "root": str(index.root)}
    cells: dict[str, npt.NDArray[Any]] = {}
    if index.cells:
        about["probes"] = index.cells.probes
        cells = {"centroids": index.cells.centroids, "cells": index.cells.of}
    save_arrays(
        output,
        embeddings=index.embeddings,
        paths=np.array(index.paths),
        stamps=index.stamps,
        index=np.array(json.dumps(about)),
        **cells,
    )


def open_index(source: Path) -> Index:
    """Read an index by its own path, or by that of its run's record.

    Raises:
        MlbenchError: there is none, it is damaged, or it was made with another model than its run
            has now.
    """
    path = default_index(source) if source.suffix == ".json" else source
    if not is_regular(path):
        raise MlbenchError(f"no index '{path}'; make one with: mlbench index RUN FOLDER")
    try:
        index = _read_index(path)
    except Exception as error:  # what foreign bytes make numpy and zlib raise has no common type
        raise_lack(error)
        raise MlbenchError(
            f"{path}: damaged, or not an index; make it with mlbench index"
        ) from error
    if source.suffix == ".json" and index.run.name != source.name:
        raise MlbenchError(
            f"{path}: is an index of {index.run.name}; make one with: mlbench index {source}"
        )
    model = index.run.with_suffix(SUFFIXES[0])
    if not model.is_file():
        raise MlbenchError(
            f"{path}: the model {model} of this index no longer exists; rebuild the index"
        )
    if file_sha256(model) != index.model_sha256:
        raise MlbenchError(f"{path}: made with another model than {model}; rebuild the index")
    return index


def _read_index(path: Path) -> Index:
    members = npz.read_members(path, _MEMBERS)
    embeddings, paths, stamps, facts = map(npz.array, members)
    about = json.loads(facts.item())
    count = len(paths)
    shapes = embeddings.shape[:1] + paths.shape + stamps.shape == (count, count, count, 2)
    kinds = (embeddings.dtype, paths.dtype.kind, stamps.dtype) == (np.float32, "U", np.int64)
    if not (shapes and kinds and embeddings.ndim == 2 and count and about["format"] == 1):
        raise ValueError("arrays of other shapes or types")
    names = tuple(paths.tolist())
    if any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
        raise ValueError("paths that leave the folder")
    # Beside the index itself, the run is named without "..", also where links lead to both.
    run = path.resolve().parent / about["run"]
    cells = _read_cells(path, about["probes"], embeddings.shape) if "probes" in about else None
    return Index(run, about["model"], Path(about["root"]), names, embeddings.copy(), stamps, cells)


def _read_cells(path: Path, probes: object, shape: tuple[int, ...]) -> Cells:
    members = npz.read_members(path, (*_MEMBERS, *_CELLS))[len(_MEMBERS) :]
    centroids, of = map(npz.array, members)
    kinds = (centroids.dtype, of.dtype, of.shape) == (np.float32, np.int32, shape[:1])
    if not (kinds and centroids.ndim == 2 and centroids.shape[1:] == shape[1:] and len(centroids)):
        raise ValueError("cells of other shapes or types")
    if not (np.isfinite(centroids).all() and of.min() >= 0 and of.max() < len(centroids)):
        raise ValueError("cells that are not there")
    if type(probes) is not int or not 1 <= probes <= len(centroids):
        raise ValueError("more probes than cells")
    return Cells(centroids.copy(), of.copy(), probes)
