"""Stanford Online Products in its official layout, split by its official lists."""

from __future__ import annotations

from pathlib import Path

from mlbench.datasets.data_root import find
from mlbench.datasets.files import file_dataset, with_top_folders
from mlbench.datasets.lists import (
    Listed,
    Side,
    build_side,
    check_disjoint,
    is_number,
    line_error,
    rows,
)
from mlbench.interfaces import Dataset

FOLDER = "Stanford_Online_Products"
MARKERS = ("Ebay_train.txt", "Ebay_test.txt")

_HEADER = ("image_id", "class_id", "super_class_id", "path")
_TRAIN = Side("training", 59_551, 11_318)
_TEST = Side("test", 60_502, 11_316)


def load(root: Path | None) -> Dataset:
    """Load Stanford Online Products (Oh Song et al. 2016), split as its lists say.

    Args:
        root: the unpacked folder ``Stanford_Online_Products`` or its parent; see
            ``mlbench.datasets.data_root`` for the default.

    Raises:
        MlbenchError: its files are not there, or not those of the data set.
    """
    return _load(find("sop", root, FOLDER, MARKERS), _TRAIN, _TEST)


def _load(folder: Path, train: Side, test: Side) -> Dataset:
    lists = [folder / name for name in MARKERS]
    sides = [
        build_side(path, folder, _listed(path), side)
        for path, side in zip(lists, (train, test), strict=True)
    ]
    check_disjoint(lists[1], *sides)
    # The lists' super-classes, such as bicycles, are the folders.
    return file_dataset("sop", folder, *with_top_folders(sides))


def _listed(path: Path) -> list[Listed]:
    """Read lines of ``image_id class_id super_class_id path`` below a header of those words."""
    listed = []
    for number, words in rows(path, _HEADER):
        if not all(map(is_number, words[:3])):
            raise line_error(path, number, "expected three numbers and a path", " ".join(words))
        # As long as the longest, so that the sorted names are in the order of the numbers.
        listed.append(Listed(words[3], f"{int(words[1]):05d}"))
    return listed
