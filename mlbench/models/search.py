"""Embed folders of images, keep them as an index, and search it with other images."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mlbench.datasets.listing import list_images, warn_of_others
from mlbench.errors import MlbenchError, first_few
from mlbench.metrics.neighbors import nearest, unit_rows
from mlbench.models.kept import SUFFIXES
from mlbench.models.model import Model, embed_images, image_set
from mlbench.progress import Progress
from mlbench.records.record import RunRecord
from mlbench.system import npz
from mlbench.system.files import atomic_file, expanded, file_sha256
from mlbench.system.known_state import known_state
from mlbench.system.machine import raise_lack
from mlbench.system.regular import is_regular

FileState = Literal["same", "changed", "gone"]
Stamps = npt.NDArray[np.int64]

_GONE = (-1, -1)


@dataclass(frozen=True, eq=False)
class EmbeddedFolder:
    """The images below a folder, embedded.

    Attributes:
        root: the folder.
        paths: ``N``, with ``/``, relative to ``root``, sorted.
        embeddings: float32 ``(N, D)`` of unit length.
        bad: one line for each image that cannot be read and is not among them.
    """

    root: Path
    paths: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]
    bad: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The folder in ``root`` of each image; None if an image lies in ``root`` itself."""
        if not all("/" in path for path in self.paths):
            return None
        return tuple(path.partition("/")[0] for path in self.paths)


def embed_folder(model: Model, folder: Path, progress: Progress | None = None) -> EmbeddedFolder:
    """Embed all images below a folder.

    Args:
        model: embeds them.
        folder: hidden files and folders in it, and links to folders, are passed over.
        progress: called with images done and their number.

    Raises:
        MlbenchError: no folder, or no image in it that can be read.
    """
    root = _existing_folder(folder)
    listing = list_images(root)
    warn_of_others(str(folder), [listing])
    paths = listing.images
    if not paths:
        raise MlbenchError(f"no images in or below {folder}")
    found = embed_images(model, image_set([root / path for path in paths]), progress)
    if len(found.bad) == len(paths):
        raise MlbenchError(
            f"no image below {folder} can be read: {first_few([*found.bad.values()])}"
        )
    whole = tuple(path for i, path in enumerate(paths) if i not in found.bad)
    return EmbeddedFolder(root, whole, found.embeddings.numpy(), tuple(found.bad.values()))


def _existing_folder(folder: Path) -> Path:
    path = Path(os.path.abspath(expanded(folder)))  # noqa: PTH100 -- links stay as users know them
    if not path.is_dir():
        raise MlbenchError(f"no folder '{folder}'; give one with images")
    return path


def save_embeddings(embedded: EmbeddedFolder, output: Path) -> None:
    """Write ``embeddings``, ``paths`` and, if there are any, ``labels`` to an ``.npz``.

    Raises:
        MlbenchError: it cannot be written.
    """
    labels = {} if embedded.labels is None else {"labels": np.array(embedded.labels)}
    _save(output, embeddings=embedded.embeddings, paths=np.array(embedded.paths), **labels)


def _save(output: Path, **arrays: npt.NDArray[Any]) -> None:
    with atomic_file(output) as file:
        np.savez(file, allow_pickle=False, **arrays)


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
    """

    run: Path
    model_sha256: str
    root: Path
    paths: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]
    stamps: Stamps

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


def make_index(embedded: EmbeddedFolder, run: Path) -> Index:
    """Return the index of a folder that the model of ``run`` (its record) has embedded."""
    stamps = _stamps(embedded.root, embedded.paths)
    sha256 = file_sha256(run.with_suffix(SUFFIXES[0]))
    return Index(run, sha256, embedded.root, embedded.paths, embedded.embeddings, stamps)


def save_index(index: Index, output: Path) -> None:
    """Write an index; it finds its run again if both are moved together.

    Raises:
        MlbenchError: it cannot be written.
    """
    run = os.path.relpath(index.run.resolve(), output.resolve().parent)
    about = {"format": 1, "run": run, "model": index.model_sha256, "root": str(index.root)}
    _save(
        output,
        embeddings=index.embeddings,
        paths=np.array(index.paths),
        stamps=index.stamps,
        index=np.array(json.dumps(about)),
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
        raise MlbenchError(f"{path}: is of {index.run.name}; make one with: mlbench index {source}")
    model = index.run.with_suffix(SUFFIXES[0])
    if not model.is_file():
        raise MlbenchError(f"{path}: the model of its run is not at {model}; make the index again")
    if file_sha256(model) != index.model_sha256:
        raise MlbenchError(f"{path}: made with another model than {model}; make the index again")
    return index


def _read_index(path: Path) -> Index:
    members = npz.read_members(path, ("embeddings", "paths", "stamps", "index"))
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
    return Index(run, about["model"], Path(about["root"]), names, embeddings.copy(), stamps)


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: relative to the index's root.
        similarity: cosine of the embeddings.
        state: what has become of its file since it was indexed.
    """

    path: str
    similarity: float
    state: FileState


@dataclass(frozen=True)
class Answer:
    """What was found for one query, best first."""

    query: Path
    hits: tuple[Hit, ...]


def query_files(given: Sequence[Path]) -> list[Path]:
    """Return the query images: files as they are given, and those below folders.

    Raises:
        MlbenchError: a file or folder is not there, or a folder has no images.
    """
    files: list[Path] = []
    for path in map(expanded, given):
        if not path.exists():
            raise MlbenchError(f"no file '{path}'; give an image or a folder of images")
        files += _images_in(path) if path.is_dir() else [path]
    return files


def _images_in(folder: Path) -> list[Path]:
    listing = list_images(folder)
    warn_of_others(str(folder), [listing])
    if not listing.images:
        raise MlbenchError(f"no images in or below {folder}")
    return [folder / name for name in listing.images]


@known_state()
def search(
    model: Model, index: Index, queries: Sequence[Path], top: int, progress: Progress | None = None
) -> list[Answer]:
    """Search an index for the images most similar to each query.

    Args:
        model: of the index's run.
        index: to be searched.
        queries: image files, at least one.
        top: hits wanted for each; there are fewer if the index has fewer images.
        progress: called with queries embedded and their number.

    Raises:
        MlbenchError: a query cannot be read.
    """
    found = embed_images(model, image_set(queries), progress)
    if found.bad:
        raise MlbenchError(first_few([*found.bad.values()], "; "))
    top = min(top, len(index.paths))
    rows = nearest(found.embeddings, index.embeddings, top)
    gallery = unit_rows(torch.from_numpy(index.embeddings), "index").double()
    wide = unit_rows(found.embeddings, "queries").double()
    return [
        Answer(
            query,
            tuple(map(functools.partial(_hit, index), row.tolist(), (gallery[row] @ own).tolist())),
        )
        for query, row, own in zip(queries, torch.from_numpy(rows), wide, strict=True)
    ]


def threshold(text: str, record: RunRecord) -> float:
    """Return the cosine from which on two images are taken for the same.

    Args:
        text: a cosine, or ``far=0.001`` for the threshold that the run's verification found at that
            false accept rate.
        record: of the run.

    Raises:
        MlbenchError: neither, or the run has no threshold for that rate.
    """
    name, mark, number = text.partition("=")
    try:
        value = float(number if mark else text)
    except ValueError:
        value = math.nan
    if mark and name.lower() == "far":
        return _threshold_at(value, record)
    if mark or not -1 <= value <= 1:
        raise MlbenchError(f"--threshold: '{text}' is no cosine such as 0.6, and no far=0.001")
    return value


def _threshold_at(far: float, record: RunRecord) -> float:
    points = record.verification.points if record.verification else ()
    for point in points:
        if math.isclose(point.far, far):
            return point.threshold.value
    measured = ", ".join(f"far={point.far:g}" for point in points)
    remedy = "make it with: mlbench run --keep-model --set evaluation.verification=true"
    raise MlbenchError(
        f"--threshold: the run measured no threshold at FAR {far:g}; "
        + (f"there are {measured}" if measured else remedy)
    )


def _hit(index: Index, i: int, cosine: float) -> Hit:
    return Hit(index.paths[i], cosine, index.states[i])
