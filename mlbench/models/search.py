"""Search an index of images with other images."""

from __future__ import annotations

import filecmp
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlbench.errors import MlbenchError, first_few
from mlbench.metrics.neighbors import nearest, unit_rows
from mlbench.models.approximate import find
from mlbench.models.folders import images_below
from mlbench.models.index import FileState, Index
from mlbench.models.model import Model, embed_images, image_set
from mlbench.progress import Progress
from mlbench.records.record import RunRecord
from mlbench.system.files import expanded
from mlbench.system.known_state import known_state

_COPIES = 8
"""How many hits may be the query itself, and be left out, with as many found as are wanted."""
_ALIKE = 0.999
"""Cosine that the embeddings of two copies exceed."""


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: relative to the index's root.
        similarity: cosine of the embeddings.
        state: what has become of its file since it was indexed.
        same_class: whether it is of the query's class; None where that is not known.
    """

    path: str
    similarity: float
    state: FileState
    same_class: bool | None = None


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
            raise MlbenchError(f"no file '{path}'; pass an image or a folder of images")
        files += [path / name for name in images_below(path)] if path.is_dir() else [path]
    return files


@known_state()
def search(
    model: Model, index: Index, queries: Sequence[Path], top: int, progress: Progress | None = None
) -> list[Answer]:
    """Search an index for the images most similar to each query, the query itself left out.

    A query is left out by its path, and as a copy with the same content.

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
    wanted = min(top + _COPIES, len(index.paths))
    gallery = unit_rows(torch.from_numpy(index.embeddings), "index")
    own = unit_rows(found.embeddings, "queries")
    ranked = zip(queries, _ranked(own, gallery, index, wanted), strict=True)
    return [
        Answer(query, tuple(itertools.islice(_others(index, query, *found), top)))
        for query, found in ranked
    ]


def _ranked(
    queries: Tensor, gallery: Tensor, index: Index, top: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows that are found for each query, best first, and their cosines."""
    if index.cells is None:
        found = nearest(queries, gallery, top)
    else:
        found = find(index.cells, gallery.numpy(), queries.numpy(), top)
    for query, rows in zip(queries.double(), torch.from_numpy(found), strict=True):
        rows = rows[rows >= 0]
        yield rows, gallery[rows].double() @ query


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
        raise MlbenchError(f"--threshold: '{text}' is neither a cosine such as 0.6 nor far=0.001")
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


def _others(index: Index, query: Path, rows: Tensor, cosines: Tensor) -> Iterator[Hit]:
    """Yield what was found but for the query itself."""
    known = _class_of(query, index)
    for i, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
        path = index.paths[i]
        if _is_same(query, index.root / path, alike=cosine > _ALIKE):
            continue
        same_class = None if known is None else path.partition("/")[0] == known
        yield Hit(path, cosine, index.states[i], same_class)


def _is_same(query: Path, found: Path, *, alike: bool) -> bool:
    """Tell whether two files are one or, if their embeddings are ``alike``, of the same content."""
    try:
        return query.samefile(found) or (alike and filecmp.cmp(query, found, shallow=False))
    except OSError:  # gone since it was indexed
        return False


def _class_of(query: Path, index: Index) -> str | None:
    """Return the class of a query, its folder, if the index has images of that class."""
    classes = {path.partition("/")[0] for path in index.paths if "/" in path}
    query = query.absolute()
    if query.is_relative_to(index.root):
        name = query.relative_to(index.root).parts[0]
    else:
        name = query.parent.name
    return name if name in classes else None
