"""What data sets made of image files share: their image sets and the fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mlbench.arrays import ImageArray
from mlbench.errors import MlbenchError
from mlbench.images import decode
from mlbench.interfaces import Dataset, ImageSet


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


def file_dataset(name: str, folder: Path, train: ImageSet, test: ImageSet) -> Dataset:
    """Return the data set of two sides of files under ``folder``, fingerprinted.

    Raises:
        MlbenchError: a file cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sides = [
            (images, pool.map(_digest, [folder / name for name in images.names]))
            for images in (train, test)
        ]
        return Dataset(name, train, test, fingerprint(sides))


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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise MlbenchError(f"cannot read {path}: {error.strerror}; mend or remove it") from error
