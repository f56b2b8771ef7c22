"""Images of a data set that a person should look at: likely mislabels and near-duplicates.

Both are found with what a network makes of the images *before* its head: a head that was trained on
these labels has learned their errors too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from mlbench.arrays import ImageArray, Indices, Labels
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet
from mlbench.metrics.neighbors import nearest, neighbor_blocks, unit_rows
from mlbench.models.model import Model, embed_images
from mlbench.progress import Progress
from mlbench.system.known_state import known_state
from mlbench.training.network import Embedder

VOTERS = 3
"""Images of a class by which it is judged how well an image fits into the class."""

THRESHOLD = 0.75
"""Margin of a likely mislabel, in standard deviations of the margins of all images."""

ALIKE = 0.9
"""Correlation of the thumbnails of near-duplicates."""

_SIDE = 16
_NEIGHBORS = 50
_COPIES = 10
_BLOCK = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mislabel:
    """An image that fits into another class than its own.

    Attributes:
        path: its name in the data set.
        label: its class.
        fits: the class that it fits into.
        like: the image of that class that it is most similar to.
        margin: by how much it fits better, in standard deviations of the margins of all images.
    """

    path: str
    label: str
    fits: str
    like: str
    margin: float


@dataclass(frozen=True)
class Copy:
    """Two images that show the same picture.

    Attributes:
        path: name of the one that comes later in the data set.
        label: its class.
        original: name of the other.
        original_label: its class.
        correlation: of their thumbnails.
    """

    path: str
    label: str
    original: str
    original_label: str
    correlation: float


@dataclass(frozen=True)
class Suspects:
    """What was found, the most suspicious first.

    Attributes:
        images: how many were looked at.
        mislabels: see ``Mislabel``.
        copies: see ``Copy``.
        unreadable: a line for each image that cannot be read.
    """

    images: int
    mislabels: tuple[Mislabel, ...]
    copies: tuple[Copy, ...]
    unreadable: tuple[str, ...]


def all_images(dataset: Dataset) -> ImageSet:
    """Return the images of all sides of a data set as one set, each once."""
    sides = list(dataset.sides.values())
    classes = list(dict.fromkeys(name for side in sides for name in side.class_names))
    number = {name: label for label, name in enumerate(classes)}
    places = {name: (side, i) for side in sides for i, name in enumerate(side.names)}
    where = list(places.values())
    labels = np.array([number[side.class_names[side.labels[i]]] for side, i in where], np.int64)
    groups = None
    if all(side.groups is not None for side in sides):
        groups = np.array(
            [side.groups[i] for side, i in where if side.groups is not None], np.int64
        )

    def read(i: int) -> ImageArray:
        side, position = where[i]
        return side.read(position)

    return ImageSet(tuple(places), labels, tuple(classes), read, groups)


@known_state()
def find_suspects(model: Model, images: ImageSet, progress: Progress | None = None) -> Suspects:
    """Look for likely mislabels and near-duplicates.

    An image fits into a class as well as it is similar, in the mean, to the ``VOTERS`` most similar
    images of the class. It is a likely mislabel if it fits into another class better than into its
    own, by more than ``THRESHOLD`` standard deviations of that margin over all images.
    Near-duplicates of it and images of its group have no vote. A near-duplicate is an image whose
    thumbnail of 16 x 16 grey pixels correlates with another's by at least ``ALIKE``.

    Args:
        model: whose trunk looks at the images.
        images: all images, with their classes.
        progress: called with images done and their number.

    Raises:
        MlbenchError: fewer than four images can be read.
    """
    thumbnails = np.zeros((len(images), _SIDE * _SIDE), np.float32)

    def read(i: int) -> ImageArray:
        image = images.read(i)
        thumbnails[i] = _thumbnail(image)
        return image

    watched = ImageSet(images.names, images.labels, images.class_names, read)
    found = embed_images(trunk_of(model), watched, progress)
    whole = np.array([i for i in range(len(images)) if i not in found.bad], np.int64)
    if len(whole) < 4:
        raise MlbenchError(f"{len(whole)} images can be read; at least 4 are needed")
    labels, names = images.labels[whole], [images.names[i] for i in whole]
    classes = [images.class_names[label] for label in labels]
    copies = _copies(thumbnails[whole])
    groups = None if images.groups is None else images.groups[whole]
    related = _related(len(whole), copies, groups)
    return Suspects(
        images=len(whole),
        mislabels=tuple(_mislabels(found.embeddings, labels, related, names, classes)),
        copies=tuple(
            Copy(names[j], classes[j], names[i], classes[i], value)
            for i, j, value in copies
            if groups is None or groups[i] != groups[j]
        ),
        unreadable=tuple(found.bad.values()),
    )


def trunk_of(model: Model) -> Model:
    """Return a model that gives the features of another one's trunk, of unit length."""
    network = Embedder(model.network.trunk, nn.Identity())
    device = next(model.parameters()).device
    with torch.inference_mode():
        blank = network(torch.zeros(1, 3, model.size, model.size, device=device))
    return Model(network, model.record, blank.shape[1])


def _thumbnail(image: ImageArray) -> npt.NDArray[np.float32]:
    grey = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float32).reshape(-1)


def _copies(thumbnails: npt.NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Return pairs of near-duplicates with their correlation, the most alike first."""
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    # An image of one colour correlates with nothing.
    rows = np.flatnonzero(centred.std(axis=1) > 1)
    if len(rows) < 2:
        return []
    unit = unit_rows(torch.from_numpy(centred[rows]), "thumbnails")
    found = nearest(unit, unit, min(_COPIES, len(rows) - 1), exclude_self=True)
    values = {}
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosines = torch.einsum("qd,qnd->qn", unit[part], unit[found[part]])
        for i, n in (cosines >= ALIKE).nonzero().tolist():
            pair = sorted((int(rows[start + i]), int(rows[found[start + i, n]])))
            values[pair[0], pair[1]] = float(cosines[i, n])
    return sorted(((i, j, value) for (i, j), value in values.items()), key=lambda c: (-c[2], c))


def _related(count: int, copies: Sequence[tuple[int, int, float]], groups: Labels | None) -> Labels:
    """Return a number of each image, one for near-duplicates and for images of a group."""
    pairs = [(i, j) for i, j, _ in copies]
    if groups is not None:
        first = np.unique(groups, return_index=True, return_inverse=True)
        pairs += zip(range(count), first[1][first[2]].tolist(), strict=True)
    ends = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _mislabels(
    features: Tensor, labels: Labels, related: Labels, names: list[str], classes: list[str]
) -> Iterator[Mislabel]:
    # A blank image may have no feature at all; any direction does for it.
    features = features.masked_fill(~features.any(dim=1, keepdim=True), 1.0)
    unit = unit_rows(features, "features")
    own = _fit_into_own(unit, labels, related)
    other, like = _fit_into_others(unit, labels, related)
    margins = other - own
    spread = margins[np.isfinite(margins)]
    if len(spread) < 2 or not spread.std():
        return
    scores = np.where(np.isfinite(margins), margins, 0) / spread.std()
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] <= THRESHOLD:
            return
        there = like[i]
        yield Mislabel(names[i], classes[i], classes[there], names[there], float(scores[i]))


def _fit_into_own(unit: Tensor, labels: Labels, related: Labels) -> Floats:
    """Return how well each image fits into its class; NaN where nobody of it has a vote."""
    fits = np.full(len(labels), np.nan)
    kin = torch.from_numpy(related)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        theirs = torch.from_numpy(members)
        for part in theirs.split(_BLOCK):
            cosines = (unit[part] @ unit[theirs].T).double()
            cosines[kin[part, None] == kin[theirs]] = torch.nan
            best = cosines.nan_to_num(-2).topk(min(VOTERS, len(theirs)), dim=1)[0]
            fits[part] = best.masked_fill(best == -2, torch.nan).nanmean(dim=1)
    return fits


def _fit_into_others(unit: Tensor, labels: Labels, related: Labels) -> tuple[Floats, Indices]:
    """Return how well each image fits into the best other class, and the image there most like it.

    Classes are judged by the 50 nearest images; NaN where no other class has its voters there.
    """
    fits, like = np.full(len(labels), np.nan), np.zeros(len(labels), np.int64)
    kin, classes = torch.from_numpy(related), torch.from_numpy(labels)
    voters = classes.bincount().clamp(max=VOTERS)
    blocks = neighbor_blocks(
        unit, unit, min(_NEIGHBORS, len(unit)), exclude_self=True, memory_mb=256, groups=(kin, kin)
    )
    for block, rows in blocks:
        for part in torch.arange(len(unit))[block].split(_BLOCK):
            found = torch.from_numpy(rows)[part - block.start]
            there = classes[found]
            cosines = torch.einsum("qd,qnd->qn", unit[part], unit[found]).double()
            # Neighbours before each one, and itself, that are of its class.
            before = (there[:, :, None] == there[:, None, :]).tril().double()
            complete = before.sum(2) == voters[there]
            complete &= (found >= 0) & (there != classes[part, None])
            means = (before @ cosines[:, :, None])[:, :, 0] / voters[there]
            best, place = means.masked_fill(~complete, -2).max(dim=1)
            fits[part] = best.masked_fill(best == -2, torch.nan)
            first = before[torch.arange(len(part)), place].argmax(dim=1)
            like[part] = found[torch.arange(len(part)), first]
    return fits, like
