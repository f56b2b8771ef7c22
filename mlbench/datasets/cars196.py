"""Cars196 (Stanford Cars) in its old official layout: one folder of images, one annotation file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from mlbench.datasets.data_root import find
from mlbench.datasets.files import file_dataset
from mlbench.datasets.lists import MEND, Listed, Side, build_side, check_disjoint
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset

FOLDER = "cars196"
ANNOTATIONS = "cars_annos.mat"
MARKERS = (ANNOTATIONS, "car_ims")

_TRAIN = Side("training", 8_054, 98)
_TEST = Side("test", 8_131, 98)


def load(root: Path | None) -> Dataset:
    """Load Cars196 (Krause et al. 2013): classes 1-98 to train on, 99-196 to test on.

    Args:
        root: the folder that holds ``cars_annos.mat`` and ``car_ims``, or its parent if its name is
            ``cars196``; see ``mlbench.datasets.data_root`` for the default.

    Raises:
        MlbenchError: its files are not there, or not those of the data set.
    """
    return _load(find("cars196", root, FOLDER, MARKERS), _TRAIN, _TEST)


def _load(folder: Path, train: Side, test: Side) -> Dataset:
    source = folder / ANNOTATIONS
    class_names, images = _annotations(source)
    if len(set(class_names)) != train.classes + test.classes:
        raise MlbenchError(
            f"{source}: expected {train.classes + test.classes} distinct classes, found "
            f"{len(set(class_names))}; {MEND}"
        )
    parts: tuple[list[Listed], list[Listed]] = ([], [])
    for path, number in images:
        # The number keeps the sorted names in the order of the classes.
        name = f"{number:03d}.{class_names[number - 1]}"
        parts[number > train.classes].append(Listed(path, name))
    sides = [build_side(source, folder, *each) for each in zip(parts, (train, test), strict=True)]
    check_disjoint(source, *sides)
    return file_dataset("cars196", folder, *sides)


def _annotations(source: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the class names, and path and class (from 1) of every image."""
    try:
        table = loadmat(source, squeeze_me=True)
        class_names = [str(name) for name in np.atleast_1d(table["class_names"])]
        entries = np.atleast_1d(table["annotations"])
        paths, numbers = entries["relative_im_path"], entries["class"]
        images = [(str(p), _number(n)) for p, n in zip(paths, numbers, strict=True)]
    except Exception as error:  # what a damaged file makes scipy raise has no common type
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MlbenchError(f"cannot read {source}: {reason}; {MEND}") from error
    unknown = sorted({n for _, n in images if not 1 <= n <= len(class_names)})
    if unknown:
        raise MlbenchError(
            f"{source}: expected classes 1 to {len(class_names)}, found {unknown[0]}; {MEND}"
        )
    return class_names, images


def _number(value: Any) -> int:
    """Return a class number; ValueError if it is none."""
    if not np.issubdtype(np.asarray(value).dtype, np.integer):
        raise ValueError(f"the class {value!r} is no whole number")
    return int(value)
