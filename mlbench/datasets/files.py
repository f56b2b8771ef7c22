"""What data sets made of image files share: their image sets and the fingerprint."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import decode
from mlbench.datasets.formats import IMAGE_BYTES
from mlbench.errors import DataWarning
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system.regular import IrregularFileError, open_regular

_UNREADABLE = bytes(32)
"""In place of the digest of a file that cannot be read."""

_Contained = tuple[ImageSet, Sequence[bytes]]
"""A side of a split, with the digest of each of its files."""


class _Content(NamedTuple):
    name: str
    label: int
    digest: bytes


def image_files(
    folder: Path, names: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
) -> ImageSet:
    """Return the images of one side of a split.

    Args:
        folder: where the files are.
        names: ``N`` paths relative to ``folder``.
        labels: ``N`` indices into ``class_names``.
        class_names: the classes of this side.
    """
    read = functools.partial(_read, folder, tuple(names))
    return ImageSet(tuple(names), np.array(labels, np.int64), tuple(class_names), read)


def file_dataset(
    name: str, folder: Path, train: ImageSet, test: ImageSet, gallery: ImageSet | None = None
) -> Dataset:
    """Return the data set of sides of files under ``folder``, fingerprinted.

    A file that cannot be read is named where its pixels are, with all other bad ones. Images whose
    very content is another's are warned of: test images, and training images of two classes.
    """
    sides = [images for images in (train, test, gallery) if images is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = [
            list(pool.map(_digest, [folder / name for name in images.names])) for images in sides
        ]
    contained = list(zip(sides, contents, strict=True))
    _warn_of_copies(name, contained[0], contained[1:])
    return Dataset(name, train, test, fingerprint(contained), gallery)


def _warn_of_copies(name: str, train: _Contained, evaluated: Sequence[_Contained]) -> None:
    trained = list(_contents(train))
    tested = list(itertools.chain.from_iterable(map(_contents, evaluated)))
    first = {image.digest: image.name for image in reversed(trained)}
    leaked = [f"{each.name} = {first[each.digest]}" for each in tested if each.digest in first]
    alike, unlike = _copies(tested)
    kinds = (
        ("a test and a training image", leaked, "this makes results too good"),
        ("two test images of one class", alike, "this makes results too good"),
        ("two test images of different classes", unlike, "this makes results worse"),
        (
            "two training images of different classes",
            _copies(trained)[1],
            "their labels contradict each other",
        ),
    )
    found = [
        f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of {kind}, such as {pairs[0]} ({effect})"
        for kind, pairs, effect in kinds
        if pairs
    ]
    if found:
        warnings.warn(
            f"{name}: the same content in {'; in '.join(found)}; keep one of each",
            DataWarning,
            stacklevel=3,
        )


def _copies(images: Iterable[_Content]) -> tuple[list[str], list[str]]:
    """Pair each image with the first of its content in its own class, and in another class."""
    first: dict[bytes, dict[int, str]] = {}
    alike, unlike = [], []
    for image in images:
        by_label = first.setdefault(image.digest, {})
        others = [name for label, name in by_label.items() if label != image.label]
        if by_label.setdefault(image.label, image.name) != image.name:
            alike.append(f"{image.name} = {by_label[image.label]}")
        if others:
            unlike.append(f"{image.name} = {others[0]}")
    return alike, unlike


def _contents(side: _Contained) -> Iterator[_Content]:
    """Yield name, label and digest of each file with content."""
    images, digests = side
    without = (_UNREADABLE, hashlib.sha256().digest())
    rows = map(_Content, images.names, images.labels.tolist(), digests)
    return (row for row in rows if row.digest not in without)


def fingerprint(sides: Iterable[tuple[ImageSet, Iterable[bytes]]]) -> str:
    """Return the SHA-256 (hex) over names, labels and contents of the sides of a split.

    Args:
        sides: each side with the SHA-256 digests of its images' contents, in order.
    """
    total = hashlib.sha256()
    for images, digests in sides:
        total.update(f"{len(images)}\n".encode())
        for name, label, digest in zip(images.names, images.labels, digests, strict=True):
            total.update(os.fsencode(f"{name}\0{label}\0") + digest)
    return total.hexdigest()


def _read(folder: Path, names: tuple[str, ...], i: int) -> ImageArray:
    return decode(folder / names[i])


def _digest(path: Path) -> bytes:
    try:
        with open_regular(path, limit=IMAGE_BYTES) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, IrregularFileError):
        return _UNREADABLE
