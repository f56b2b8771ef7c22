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

import numpy as np

from mlbench.arrays import ImageArray
from mlbench.errors import DataWarning
from mlbench.formats import IMAGE_BYTES
from mlbench.images import decode
from mlbench.interfaces import Dataset, ImageSet
from mlbench.regular import IrregularFileError, open_regular

_UNREADABLE = bytes(32)
"""In place of the digest of a file that cannot be read."""


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

    A file that cannot be read is named where its pixels are, with all other bad ones. Images that
    make the results too good are warned of: test images whose very content is another test image's
    or a training image's.
    """
    sides = [images for images in (train, test, gallery) if images is not None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = [
            list(pool.map(_digest, [folder / name for name in images.names])) for images in sides
        ]
    contained = list(zip(sides, contents, strict=True))
    _warn_of_copies(name, contained[0], contained[1:])
    return Dataset(name, train, test, fingerprint(contained), gallery)


def _warn_of_copies(
    name: str,
    train: tuple[ImageSet, Sequence[bytes]],
    evaluated: Sequence[tuple[ImageSet, Sequence[bytes]]],
) -> None:
    trained = {digest: image for image, digest in _contents(train)}
    tested: dict[bytes, str] = {}
    leaked, repeated = [], []
    for image, digest in itertools.chain.from_iterable(map(_contents, evaluated)):
        if digest in trained:
            leaked.append(f"{image} = {trained[digest]}")
        if tested.setdefault(digest, image) != image:
            repeated.append(f"{image} = {tested[digest]}")
    kinds = (("a test and a training image", leaked), ("two test images", repeated))
    found = [
        f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of {kind}, such as {pairs[0]}"
        for kind, pairs in kinds
        if pairs
    ]
    if found:
        warnings.warn(
            f"{name}: the same content in {'; in '.join(found)}; this makes results too good, keep "
            "one of each",
            DataWarning,
            stacklevel=3,
        )


def _contents(side: tuple[ImageSet, Sequence[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield name and digest of each file with content."""
    images, digests = side
    without = (_UNREADABLE, hashlib.sha256().digest())
    return ((n, d) for n, d in zip(images.names, digests, strict=True) if d not in without)


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
