"""CUB-200-2011 in its official layout, split by class as metric learning papers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlbench.datasets.data_root import find
from mlbench.datasets.files import file_dataset, image_files
from mlbench.datasets.lists import LIST_BYTES, MEND, check_files, is_number, line_error
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system.regular import read_regular

FOLDER = "CUB_200_2011"
MARKERS = ("images.txt",)


@dataclass(frozen=True)
class _Side:
    """Class identifiers ``first .. last`` of one side, and how many images they have in all."""

    name: str
    first: int
    last: int
    images: int


_OFFICIAL = (_Side("training", 1, 100, 5864), _Side("test", 101, 200, 5924))


def load(root: Path | None) -> Dataset:
    """Load CUB-200-2011 (Wah et al. 2011): classes 1-100 to train on, 101-200 to test on.

    Args:
        root: the unpacked folder ``CUB_200_2011`` or its parent; see
            ``mlbench.datasets.data_root`` for the default.

    Raises:
        MlbenchError: its files are not there, or not those of the data set.
    """
    return _load(_find(root), *_OFFICIAL)


def _load(folder: Path, train: _Side, test: _Side) -> Dataset:
    classes = _table(folder / "classes.txt")
    _check_classes(folder / "classes.txt", classes, test.last)
    names = _table(folder / "images.txt")
    class_ids = _class_ids(folder / "image_class_labels.txt", names, classes)
    check_files(folder / "images.txt", folder / "images", list(names.values()))
    sides = [_side(folder, side, names, class_ids, classes) for side in (train, test)]
    return file_dataset("cub200", folder / "images", *sides)


def _find(root: Path | None) -> Path:
    return find("cub200", root, FOLDER, MARKERS)


def _table(path: Path) -> dict[int, str]:
    """Read lines of ``NUMBER VALUE``."""
    try:
        lines = read_regular(path, limit=LIST_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MlbenchError(f"cannot read {path}: {error}; {MEND}") from error
    table: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        identifier, _, value = line.strip().partition(" ")
        if not is_number(identifier) or not value or int(identifier) in table:
            raise line_error(path, number, "expected a new number and a value", line)
        table[int(identifier)] = value
    return table


def _check_classes(path: Path, classes: Mapping[int, str], count: int) -> None:
    """Check that there are ``count`` distinct classes, so that no class is on both sides."""
    if sorted(classes) != list(range(1, count + 1)) or len(set(classes.values())) != count:
        raise MlbenchError(
            f"{path}: expected {count} distinct classes numbered from 1, found "
            f"{len(set(classes.values()))}; {MEND}"
        )


def _class_ids(path: Path, names: Mapping[int, str], classes: Mapping[int, str]) -> dict[int, int]:
    """Return the class identifier of every image identifier."""
    class_ids: dict[int, int] = {}
    for number, (image, value) in enumerate(_table(path).items(), 1):
        if image not in names or not is_number(value) or int(value) not in classes:
            problem = "expected an image of images.txt and a class of classes.txt"
            raise line_error(path, number, problem, f"{image} {value}")
        class_ids[image] = int(value)
    if len(class_ids) != len(names):
        raise MlbenchError(
            f"{path}: {len(names) - len(class_ids)} images of images.txt have no class; {MEND}"
        )
    return class_ids


def _side(
    folder: Path,
    side: _Side,
    names: Mapping[int, str],
    class_ids: Mapping[int, int],
    classes: Mapping[int, str],
) -> ImageSet:
    chosen = [image for image in names if side.first <= class_ids[image] <= side.last]
    labels = [class_ids[image] - side.first for image in chosen]
    present = len(set(labels))
    wanted = side.last - side.first + 1
    if (len(chosen), present) != (side.images, wanted):
        raise MlbenchError(
            f"{folder}: expected {side.images:,} {side.name} images of {wanted} classes, found "
            f"{len(chosen):,} of {present}; {MEND}"
        )
    class_names = [classes[number] for number in range(side.first, side.last + 1)]
    return image_files(folder / "images", [names[image] for image in chosen], labels, class_names)
