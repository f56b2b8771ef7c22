"""What data sets made of image files share: their image sets and the fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import decode
from mlbench.datasets.formats import IMAGE_BYTES
from mlbench.errors import DataWarning, MlbenchError
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system.regular import IrregularFileError, open_regular

_UNREADABLE = bytes(32)
"""In place of the digest of a file that cannot be read."""

_Contained = tuple[ImageSet, Sequence[bytes]]
"""A side of a split, with the digest of each of its files."""


class Crop(NamedTuple):
    """A part of an image file.

    Attributes:
        path: of the file, relative to the data set's folder.
        box: left, top, right and bottom edge in pixels of the upright image; right and bottom are
            the first column and row outside.
    """

    path: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        """How the image is named."""
        return f"{self.path}[{','.join(map(str, self.box))}]"


class _Content(NamedTuple):
    name: str
    label: int
    digest: bytes


def image_files(
    folder: Path,
    names: Sequence[str],
    labels: Sequence[int],
    class_names: Sequence[str],
    crops: Mapping[str, Crop] | None = None,
) -> ImageSet:
    """Return the images of one side of a split.

    Args:
        folder: where the files are.
        names: ``N`` paths relative to ``folder``, or names of ``crops``.
        labels: ``N`` indices into ``class_names``.
        class_names: the classes of this side.
        crops: by name, images that are parts of files.
    """
    read = functools.partial(_read, folder, tuple(names), crops or {})
    return ImageSet(tuple(names), np.array(labels, np.int64), tuple(class_names), read)


def with_top_folders(sides: Sequence[ImageSet]) -> list[ImageSet]:
    """Give the sides one level of coarser classes: the first folders of the images' names.

    They are numbered in their order over all sides.
    """
    folders = [[name.partition("/")[0] for name in side.names] for side in sides]
    number = {name: i for i, name in enumerate(sorted({f for each in folders for f in each}))}
    return [
        replace(side, levels=np.array([[number[f]] for f in each], np.int64))
        for side, each in zip(sides, folders, strict=True)
    ]


def file_dataset(
    name: str,
    folder: Path,
    train: ImageSet,
    test: ImageSet,
    gallery: ImageSet | None = None,
    *,
    validation: ImageSet | None = None,
    crops: Mapping[str, Crop] | None = None,
) -> Dataset:
    """Return the data set of sides of files under ``folder``, fingerprinted.

    ``crops`` are those that its sides were made with.

    A file that cannot be read is named where its pixels are, with all other bad ones. Images whose
    very content is another's are warned of: test images, and training images of two classes.
    """
    dataset = Dataset(name, train, test, "", gallery, validation=validation)
    digest = functools.partial(_digest, folder, crops or {})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contained = {
            side: (images, list(pool.map(digest, images.names)))
            for side, images in dataset.sides.items()
        }
    _warn_of_copies(name, {side: list(_contents(each)) for side, each in contained.items()})
    validated = contained.pop("validation", None)
    return replace(dataset, fingerprint=fingerprint(contained.values(), validated))


def _warn_of_copies(name: str, contents: Mapping[str, list[_Content]]) -> None:
    trained = contents["train"]
    # An image that is both a query and in the gallery is listed twice and is no copy.
    evaluated = [*contents["test"], *contents.get("gallery", ())]
    tested = list({each.name: each for each in evaluated}.values())
    first = {image.digest: image.name for image in reversed(trained)}
    leaked, selecting = (
        [f"{each.name} = {first[each.digest]}" for each in side if each.digest in first]
        for side in (tested, contents.get("validation", []))
    )
    alike, unlike = _copies(tested)
    kinds = (
        ("a test and a training image", leaked, "this makes results too good"),
        ("a validation and a training image", selecting, "this makes validation too good"),
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


def gallery_classes(tested: Iterable[str], gallery: Iterable[str]) -> list[str]:
    """Return the classes of a gallery: those that are tested, then those that are only there.

    >>> from mlbench.datasets.files import gallery_classes
    >>> gallery_classes(["b", "d"], ["a", "b", "c"])
    ['b', 'd', 'a', 'c']
    """
    return list(dict.fromkeys([*tested, *gallery]))


def fingerprint(
    sides: Iterable[tuple[ImageSet, Iterable[bytes]]],
    validation: tuple[ImageSet, Iterable[bytes]] | None = None,
) -> str:
    """Return the SHA-256 (hex) over names, labels, groups and contents of the sides of a split.

    Args:
        sides: each side with the SHA-256 digests of its images' contents, in order.
        validation: likewise, of a data set that has one.
    """
    total = hashlib.sha256()
    for images, digests in sides:
        _add(total, images, digests)
    if validation is not None:
        total.update(b"validation\n")
        _add(total, *validation)
    return total.hexdigest()


def _add(total: hashlib._Hash, images: ImageSet, digests: Iterable[bytes]) -> None:
    total.update(f"{len(images)}\n".encode())
    for name, label, digest in zip(images.names, images.labels, digests, strict=True):
        total.update(os.fsencode(f"{name}\0{label}\0") + digest)
    if images.groups is not None:
        total.update(b"groups\n" + images.groups.astype("<i8").tobytes())


def _read(folder: Path, names: tuple[str, ...], crops: Mapping[str, Crop], i: int) -> ImageArray:
    crop = crops.get(names[i])
    if crop is None:
        return decode(folder / names[i])
    image = decode(folder / crop.path)
    left, top, right, bottom = crop.box
    if bottom > image.shape[0] or right > image.shape[1]:
        raise MlbenchError(
            f"image {crop.name}: its box leaves the {image.shape[1]} x {image.shape[0]} pixels of "
            "the file; fix the box"
        )
    return image[top:bottom, left:right]


def _digest(folder: Path, crops: Mapping[str, Crop], name: str) -> bytes:
    crop = crops.get(name)
    path = folder / (name if crop is None else crop.path)
    try:
        with open_regular(path, limit=IMAGE_BYTES) as file:
            content = hashlib.file_digest(file, "sha256").digest()
    except (OSError, IrregularFileError):
        return _UNREADABLE
    return content if crop is None else hashlib.sha256(content + repr(crop.box).encode()).digest()
