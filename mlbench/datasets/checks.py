"""What is wrong with a data set: broken promises, and images that cannot be read."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Container, Iterable, Mapping
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
        raise MlbenchError(f"the data set's loader returns {kind}, not a Dataset; mend it")
    for side, images in _sides(dataset).items():
        problem = _problem(images)
        if problem:
            where = f"data set '{dataset.name}', {side} side"
            raise MlbenchError(f"{where}: {problem}; mend its loader")
    numbers, count = dataset.test_numbers, len(dataset.test.class_names)
    if len(numbers) != count or (np.diff(numbers, prepend=-1) < 1).any():
        raise MlbenchError(
            f"data set '{dataset.name}': test_class_numbers must be {count} whole numbers in "
            "ascending order; mend its loader"
        )
    shared = sorted(set(dataset.train.class_names) & set(dataset.test.class_names))
    if shared:
        raise MlbenchError(
            f"data set '{dataset.name}' has classes on both sides: {first_few(shared)}; "
            "put each on one side only"
        )


def _problem(images: ImageSet) -> str:
    labels, count = np.asarray(images.labels), len(images.names)
    if count == 0:
        return "it has no images"
    if labels.shape != (count,) or labels.dtype != np.int64:
        return f"labels must be int64 ({count},), not {labels.dtype} {labels.shape}"
    if not np.array_equal(np.unique(labels), np.arange(len(images.class_names))):
        return f"labels must be 0 .. {len(images.class_names) - 1}, every class present"
    return "" if len(set(images.names)) == count else "a name occurs twice"


def without_bad_images(dataset: Dataset, side: int, progress: PhaseProgress) -> Dataset:
    """Return the data set without the images that cannot be read, with a warning about them.

    What is left out changes the fingerprint, so that records of the rest are never taken for those
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
    sides = _sides(dataset)
    skipped = sorted(sides[which].names[i] for which, found in bad.items() for i in found)
    warnings.warn(
        f"{dataset.name}: left out {len(skipped):,} of {sum(map(len, sides.values())):,} images "
        f"that cannot be read (listed in {listed}); results are not comparable with the complete "
        "data set's",
        DataWarning,
        stacklevel=2,
    )
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


def _sides(dataset: Dataset) -> dict[str, ImageSet]:
    sides = {"train": dataset.train, "test": dataset.test, "gallery": dataset.gallery}
    return {which: images for which, images in sides.items() if images is not None}


def _screen(dataset: Dataset, side: int, progress: PhaseProgress) -> Bad:
    """Find the images that cannot be read, or take from the cache which they are."""
    key = f"{dataset.fingerprint} {side} {CACHE_VERSION} {PIL.__version__}"
    path = cache_dir("screened") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    bad = _known(path, dataset)
    if bad is None:
        bad = {}
        for which, images in _sides(dataset).items():
            report = functools.partial(progress, f"checking the {which} images")
            bad[which] = find_bad(images, side, report)
        with atomic_file(path) as file:
            file.write(json.dumps(bad).encode())
    return bad


def _known(path: Path, dataset: Dataset) -> dict[str, dict[int, str]] | None:
    """Read what was found before; None if there is nothing, or the file is damaged."""
    try:
        table = json.loads(read_regular(path, limit=_MOST_BYTES))
        bad = {w: {int(i): str(text) for i, text in table[w].items()} for w in _sides(dataset)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MlbenchError):
        return None
    within = (i in range(len(images)) for w, images in _sides(dataset).items() for i in bad[w])
    return bad if all(within) else None


def _check_rest(dataset: Dataset, bad: Bad, listed: Path) -> None:
    """Refuse to go on with what is hardly the data set any more."""
    for which, images in _sides(dataset).items():
        count = len(bad[which])
        if 2 * count > len(images):
            raise MlbenchError(
                f"{dataset.name}: {count:,} of {len(images):,} {which} images cannot be read, more "
                f"than half (listed in {listed}); check the data set"
            )
        left = np.bincount(np.delete(images.labels, list(bad[which])))
        hit = {int(images.labels[i]) for i in bad[which]}
        lost = [images.class_names[c] for c in sorted(hit) if c >= len(left) or left[c] < 2]
        if lost:
            raise MlbenchError(
                f"{dataset.name}: bad images (listed in {listed}) leave fewer than two of these "
                f"{which} classes: {first_few(lost)}; add images to each or remove it"
            )


def _without(images: ImageSet, bad: Container[int]) -> ImageSet:
    kept = np.array([i for i in range(len(images)) if i not in bad], np.int64)

    def read(i: int) -> ImageArray:
        return images.read(int(kept[i]))

    names = tuple(images.names[i] for i in kept)
    return ImageSet(names, images.labels[kept], images.class_names, read)
