"""What is wrong with a data set: broken promises, and images that cannot be read."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL

from mlbench.arrays import ImageArray
from mlbench.datasets.pixels import CACHE_VERSION, find_bad
from mlbench.errors import DataWarning, MlbenchError, first_few, printable
from mlbench.interfaces import Dataset, ImageSet
from mlbench.progress import PhaseProgress
from mlbench.system.files import atomic_file, cache_dir
from mlbench.system.regular import read_regular

_MOST_BYTES = 1 << 30

Bad = Mapping[str, Mapping[int, str]]
"""Why images cannot be read, by side and index."""


def check_dataset(dataset: Dataset) -> None:
    """Raise MlbenchError if a data set, such as a plugin's, breaks what its classes promise."""
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise MlbenchError(f"the data set's loader returns {kind}, not a Dataset; fix it")
    for side, images in dataset.sides.items():
        problem = _problem(images, whole=side != "gallery")
        if problem:
            where = f"data set '{dataset.name}', {side} side"
            raise MlbenchError(f"{where}: {problem}; fix its loader")
    numbers, count = dataset.test_numbers, len(dataset.test.class_names)
    if len(numbers) != count or (np.diff(numbers, prepend=-1) < 1).any():
        raise MlbenchError(
            f"data set '{dataset.name}': test_class_numbers must be {count} whole numbers in "
            "ascending order; fix its loader"
        )
    _check_classes(dataset)


def _check_classes(dataset: Dataset) -> None:
    """Check that no class that is trained or validated on is on another side as well."""
    names = {side: set(images.class_names) for side, images in dataset.sides.items()}
    for side, other in itertools.combinations(names, 2):
        shared = sorted(names[side] & names[other])
        if shared and {side, other} != {"test", "gallery"}:
            raise MlbenchError(
                f"data set '{dataset.name}' has classes both in {side} and in {other}: "
                f"{first_few(shared)}; put each on one side only"
            )
    gallery, tested = dataset.gallery, dataset.test.class_names
    if gallery is not None and gallery.class_names[: len(tested)] != tested:
        raise MlbenchError(
            f"data set '{dataset.name}': the classes of its gallery must begin with those of its "
            "test side, in the same order; fix its loader"
        )


def _problem(images: ImageSet, *, whole: bool) -> str:
    labels, count = np.asarray(images.labels), len(images.names)
    if count == 0:
        return "it has no images"
    if labels.shape != (count,) or labels.dtype != np.int64:
        return f"labels must be int64 ({count},), not {labels.dtype} {labels.shape}"
    present, classes = np.unique(labels), len(images.class_names)
    if whole and not np.array_equal(present, np.arange(classes)):
        return f"labels must be 0 .. {classes - 1}, every class present"
    if not 0 <= present[0] <= present[-1] < classes:
        return f"labels must be 0 .. {classes - 1}"
    groups = None if images.groups is None else np.asarray(images.groups)
    if groups is not None and (groups.shape != (count,) or groups.dtype != np.int64):
        return f"groups must be int64 ({count},), not {groups.dtype} {groups.shape}"
    levels = None if images.levels is None else np.asarray(images.levels)
    if levels is not None and (levels.shape[:1] != (count,) or levels.ndim != 2):
        return f"levels must be int64 ({count}, L), not {levels.dtype} {levels.shape}"
    return "" if len(set(images.names)) == count else "a name occurs twice"


def without_bad_images(dataset: Dataset, side: int, progress: PhaseProgress) -> Dataset:
    """Return the data set without the images that cannot be read, with a warning about them.

    What is skipped changes the fingerprint, so that records of the rest are never taken for those
    of the complete data set. What was found is kept in the cache, by content.

    Args:
        dataset: complete.
        side: the greatest length in pixels that shorter sides of its images will be resized to.
        progress: called with phase, images done and their total.

    Raises:
        MlbenchError: more than half of a side cannot be read, or so many images of a class that
            fewer than two are left.
    """
    bad = _screen(dataset, side, progress)
    if not any(bad.values()):
        return dataset
    listed = list_bad(dataset, [reason for found in bad.values() for reason in found.values()])
    _check_rest(dataset, bad, listed)
    count, total = sum(map(len, bad.values())), sum(map(len, dataset.sides.values()))
    warnings.warn(
        f"{dataset.name}: skipped {count:,} of {total:,} images that cannot be read (listed in "
        f"{listed}); results are not comparable with the complete data set's",
        DataWarning,
        stacklevel=2,
    )
    return _left_out(dataset, bad)


def leave_out(dataset: Dataset, names: Collection[str]) -> Dataset:
    """Return the data set without the images of these names, as ``without_bad_images`` does."""
    return _left_out(
        dataset,
        {
            which: {i: "" for i, name in enumerate(images.names) if name in names}
            for which, images in dataset.sides.items()
        },
    )


def _left_out(dataset: Dataset, bad: Bad) -> Dataset:
    sides = dataset.sides
    skipped = sorted(sides[which].names[i] for which, found in bad.items() for i in found)
    content = "\0".join([dataset.fingerprint, *skipped])
    return replace(
        dataset,
        fingerprint=hashlib.sha256(os.fsencode(content)).hexdigest(),
        skipped=tuple(skipped),
        **{which: _without(images, bad[which]) for which, images in sides.items()},
    )


def list_bad(dataset: Dataset, reasons: Iterable[str]) -> Path:
    """Write why images are bad, a line each, to a file of the cache; return its path."""
    path = cache_dir("bad-images") / f"{dataset.fingerprint[:32]}.txt"
    with atomic_file(path) as file:
        file.writelines(f"{printable(reason)}\n".encode() for reason in reasons)
    return path


def _screen(dataset: Dataset, side: int, progress: PhaseProgress) -> Bad:
    """Find the images that cannot be read, or take from the cache which they are."""
    key = f"{dataset.fingerprint} {side} {CACHE_VERSION} {PIL.__version__}"
    path = cache_dir("screened") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    bad = _known(path, dataset)
    if bad is None:
        bad = {}
        for which, images in dataset.sides.items():
            report = functools.partial(progress, f"checking the {which} images")
            bad[which] = find_bad(images, side, report)
        with atomic_file(path) as file:
            file.write(json.dumps(bad).encode())
    return bad


def _known(path: Path, dataset: Dataset) -> dict[str, dict[int, str]] | None:
    """Read what was found before; None if there is nothing, or the file is damaged."""
    try:
        table = json.loads(read_regular(path, limit=_MOST_BYTES))
        bad = {w: {int(i): str(text) for i, text in table[w].items()} for w in dataset.sides}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MlbenchError):
        return None
    within = (i in range(len(images)) for w, images in dataset.sides.items() for i in bad[w])
    return bad if all(within) else None


def _check_rest(dataset: Dataset, bad: Bad, listed: Path) -> None:
    """Refuse to go on with what is hardly the data set any more."""
    for which, images in dataset.sides.items():
        count = len(bad[which])
        if 2 * count > len(images):
            raise MlbenchError(
                f"{dataset.name}: {count:,} of {len(images):,} {which} images cannot be read, more "
                f"than half (listed in {listed}); check the data set"
            )
        left = np.bincount(np.delete(images.labels, list(bad[which])))
        hit = {int(images.labels[i]) for i in bad[which]}
        least = 2 if dataset.gallery is None or which in ("train", "validation") else 1
        lost = [images.class_names[c] for c in sorted(hit) if c >= len(left) or left[c] < least]
        if lost:
            raise MlbenchError(
                f"{dataset.name}: unreadable images (listed in {listed}) leave fewer than "
                f"{('one', 'two')[least - 1]} of these {which} classes: {first_few(lost)}; add "
                "images to each or remove it"
            )


def _without(images: ImageSet, bad: Container[int]) -> ImageSet:
    kept = np.array([i for i in range(len(images)) if i not in bad], np.int64)

    def read(i: int) -> ImageArray:
        return images.read(int(kept[i]))

    names = tuple(images.names[i] for i in kept)
    groups = None if images.groups is None else images.groups[kept]
    levels = None if images.levels is None else images.levels[kept]
    return ImageSet(names, images.labels[kept], images.class_names, read, groups, levels)
