"""A user's own table of images: one row an image, with its class and, if given, its split."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlbench.arrays import Labels
from mlbench.datasets.columns import Columns, read_columns
from mlbench.datasets.decode import image_size
from mlbench.datasets.files import Crop, file_dataset, gallery_classes, image_files
from mlbench.datasets.folder import folded
from mlbench.datasets.lists import is_file, is_inside
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system.files import expanded

_SPLITS = ("train", "validation", "test")
_EDGES = ("x_1", "y_1", "x_2", "y_2")
_FLAGS = ("is_query", "is_gallery")
_BOOLEANS = {
    "true": True,
    "1": True,
    "1.0": True,
    "false": False,
    "0": False,
    "0.0": False,
    "": False,
}

_Sides = Mapping[str, Sequence[int]]
"""The rows of each side."""


@dataclass(frozen=True, eq=False)
class _Images:
    """What the rows of a table say.

    Attributes:
        columns: the table.
        labels: class of each row.
        names: of each row's image.
        crops: by name, the images that are parts of files.
    """

    columns: Columns
    labels: list[str]
    names: list[str]
    crops: Mapping[str, Crop]

    @property
    def folder(self) -> Path:
        """What paths are relative to."""
        return self.columns.source.parent

    def classes(self, rows: Iterable[int]) -> list[str]:
        """Return the classes of some rows, sorted: by number if all are whole numbers."""
        names = {self.labels[i] for i in rows}
        if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in names):
            return sorted(names, key=lambda name: (int(name), name))
        return sorted(names)


def load(path: str, root: Path | None) -> Dataset:
    """Load ``table:FILE``: each row of a ``.csv``, ``.tsv`` or ``.parquet`` file is an image.

    Columns: ``path`` (relative to the table's folder) and ``label``; optionally ``split``,
    ``is_query`` and ``is_gallery`` (of test images), ``x_1 y_1 x_2 y_2`` (the part of the file that
    is the image) and ``group``. Images keep the order of their rows. Without ``split`` the first
    half of the sorted classes is to train on, the rest to test on.

    Args:
        path: the file; relative to ``root`` if that is given.
        root: the folder that ``path`` is relative to.

    Raises:
        MlbenchError: the table or one of its cells is wrong, a file is missing, or the split is not
            by class.
    """
    source = expanded(Path(root or "", path))
    columns = read_columns(source, ("path", "label"), ("split", *_FLAGS, *_EDGES, "group"))
    images = _Images(columns, _texts(columns, "label"), *_names(columns))
    _check_files(images)
    sides = _sides(images)
    _check_classes(images, sides)
    groups = _groups(images, sides)
    made = {side: _image_set(images, side, sides, groups) for side in sides}
    name = f"table:{Path(os.path.realpath(source)).name}"
    return file_dataset(name, images.folder, **made, crops=images.crops)


def _texts(columns: Columns, column: str) -> list[str]:
    """Return the cells of a column without blanks around them; none may be empty."""
    texts = [cell.strip() for cell in columns.cells[column]]
    if "" in texts:
        raise columns.error(texts.index(""), column, "empty; fill it, or remove the row")
    return texts


def _names(columns: Columns) -> tuple[list[str], dict[str, Crop]]:
    """Return the name of each row's image, and the boxes of those that have one."""
    paths = columns.cells["path"]
    for row, path in enumerate(paths):
        if not is_inside(path):
            problem = "empty" if not path else f"'{path[:80]}' is not below the table's folder"
            mend = "use paths relative to the table, and put it next to or above the images"
            raise columns.error(row, "path", f"{problem}; {mend}")
    boxes = _boxes(columns)
    crops = [Crop(path, box) if box else None for path, box in zip(paths, boxes, strict=True)]
    names = [crop.name if crop else path for path, crop in zip(paths, crops, strict=True)]
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if first.setdefault(name, row) != row:
            there = columns.place(first[name])
            problem = f"'{name[:80]}' already occurs in {there}; remove one of the two rows"
            raise columns.error(row, "path", problem)
    return names, {crop.name: crop for crop in crops if crop}


def _boxes(columns: Columns) -> list[tuple[int, int, int, int] | None]:
    given = [edge for edge in _EDGES if edge in columns.cells]
    if not given:
        return [None] * len(columns)
    if len(given) < len(_EDGES):
        raise MlbenchError(
            f"{columns.source}: a box takes the four columns {', '.join(_EDGES)}; its header has "
            f"only {', '.join(given)}"
        )
    cells = zip(*(columns.cells[edge] for edge in _EDGES), strict=True)
    return [_box(columns, row, each) for row, each in enumerate(cells)]


def _box(columns: Columns, row: int, cells: Sequence[str]) -> tuple[int, int, int, int] | None:
    if not any(cell.strip() for cell in cells):
        return None
    left, top, right, bottom = (
        _pixels(columns, row, edge, cell) for edge, cell in zip(_EDGES, cells, strict=True)
    )
    for low, high, column in ((left, right, "x_2"), (top, bottom, "y_2")):
        if high <= low:
            problem = f"{high} is not above {column[0]}_1, which is {low}; set x_1 < x_2, y_1 < y_2"
            raise columns.error(row, column, problem)
    return left, top, right, bottom


def _pixels(columns: Columns, row: int, edge: str, cell: str) -> int:
    text = cell.strip().removesuffix(".0")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        problem = f"'{cell[:40]}' is not a whole number of pixels; set all four, or leave all empty"
        raise columns.error(row, edge, problem)
    return int(text)


def _sides(images: _Images) -> dict[str, list[int]]:
    """Return the rows of each side, those of no row left out."""
    columns = images.columns
    flags = [flag for flag in _FLAGS if flag in columns.cells]
    if "split" not in columns.cells:
        if flags:
            raise MlbenchError(
                f"{columns.source}: column '{flags[0]}' needs a column 'split' that says which "
                f"images are to train on; set one of these in each row: {', '.join(_SPLITS)}"
            )
        return _halves(images)
    splits = [cell.lower() for cell in _texts(columns, "split")]
    for row, split in enumerate(splits):
        if split not in _SPLITS:
            raise columns.error(row, "split", f"'{split[:40]}'; use one of {', '.join(_SPLITS)}")
    sides = {split: [i for i, each in enumerate(splits) if each == split] for split in _SPLITS}
    for needed in ("train", "test"):
        if not sides[needed]:
            raise MlbenchError(
                f"{columns.source}: no row has the split '{needed}'; mlbench trains on 'train' and "
                "tests on 'test', and 'validation' is for choosing between epochs or parameters"
            )
    sides |= _retrieval(columns, splits, sides["test"], flags)
    return {side: rows for side, rows in sides.items() if rows}


def _halves(images: _Images) -> dict[str, list[int]]:
    classes = images.classes(range(len(images.labels)))
    trained = set(classes[: (len(classes) + 1) // 2])
    sides: dict[str, list[int]] = {"train": [], "test": []}
    for row, label in enumerate(images.labels):
        sides["train" if label in trained else "test"].append(row)
    return sides


def _retrieval(
    columns: Columns, splits: Sequence[str], tested: Sequence[int], flags: Sequence[str]
) -> dict[str, list[int]]:
    """Return the queries as ``test``, and the gallery if it is not all of them."""
    if not flags:
        return {}
    marked = {flag: _marked(columns, splits, flag) for flag in flags}
    for flag, other in (_FLAGS, _FLAGS[::-1]):
        # One column alone parts the test images in two.
        marked.setdefault(flag, {*tested} - marked.get(other, {*()}))
    queries, gallery = (marked[flag] for flag in _FLAGS)
    for row in tested:
        if row not in queries and row not in gallery:
            problem = "neither this nor is_gallery is true; set one, or remove the row"
            raise columns.error(row, "is_query", problem)
    if not queries or not gallery:
        which = "is_gallery" if queries else "is_query"
        raise MlbenchError(f"{columns.source}: no test image has a true '{which}'; mark some")
    if queries == gallery:
        return {}
    return {"test": sorted(queries), "gallery": sorted(gallery)}


def _marked(columns: Columns, splits: Sequence[str], flag: str) -> set[int]:
    rows = set()
    for row, cell in enumerate(columns.cells[flag]):
        value = _BOOLEANS.get(cell.strip().lower())
        if value is None:
            raise columns.error(row, flag, f"'{cell[:40]}'; use true or false")
        if value and splits[row] != "test":
            problem = f"true, and the split is '{splits[row]}'; queries and gallery are of 'test'"
            raise columns.error(row, flag, problem)
        if value:
            rows.add(row)
    return rows


def _check_classes(images: _Images, sides: _Sides) -> None:
    """Check that the split is by class, and that there is something to find of each."""
    parts = {split: [*sides[split]] for split in _SPLITS if split in sides}
    parts["test"] += sides.get("gallery", ())
    _check_disjoint(images, parts)
    for split, rows in parts.items():
        sizes = Counter(images.labels[row] for row in rows)
        if len(sizes) < 2:
            raise MlbenchError(
                f"{images.columns.source}: {len(sizes)} class in {split}, which needs at least 2; "
                "add classes"
            )
        single = [name for name, size in sizes.items() if size < 2]
        if single and not (split == "test" and "gallery" in sides):
            raise MlbenchError(
                f"{images.columns.source}: only one image of these classes of {split}: "
                f"{first_few(single)}; add at least one more to each or remove it"
            )


def _check_disjoint(images: _Images, parts: _Sides) -> None:
    """Check that no class is in two splits, also not in other case or with other accents."""
    first: dict[str, tuple[int, str]] = {}
    for row, split in sorted((row, split) for split, rows in parts.items() for row in rows):
        label = images.labels[row]
        there, other = first.setdefault(folded(label), (row, split))
        if split != other:
            problem = (
                f"class '{label[:40]}' is in {split} here and in {other} in "
                f"{images.columns.place(there)}; mlbench tests and validates on classes that were "
                "not trained on: put all images of a class into one split"
            )
            raise images.columns.error(row, "label", problem)


def _check_files(images: _Images) -> None:
    """Check that every file is there and that boxes lie in it."""
    columns, folder = images.columns, images.folder
    paths = columns.cells["path"]
    missing = [row for row, path in enumerate(paths) if not is_file(folder / path)]
    if missing:
        more = f" ({len(missing):,} such rows in all)" if len(missing) > 1 else ""
        problem = f"no file '{folder / paths[missing[0]]}'{more}; fix the path or remove the row"
        raise columns.error(missing[0], "path", problem)
    boxed = [row for row, name in enumerate(images.names) if name in images.crops]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda row: image_size(folder / paths[row]), boxed)
        for row, size in zip(boxed, sizes, strict=True):
            _check_box(columns, row, images.crops[images.names[row]], size)


def _check_box(columns: Columns, row: int, crop: Crop, size: tuple[int, int] | None) -> None:
    if size is None:  # named with all other images that cannot be read
        return
    for end, whole, column in zip(crop.box[2:], size, ("x_2", "y_2"), strict=True):
        if end > whole:
            kind = "wide" if column == "x_2" else "high"
            problem = f"the box ends at {end}, and the image is {whole} pixels {kind}; fix the box"
            raise columns.error(row, column, problem)


def _groups(images: _Images, sides: _Sides) -> Labels | None:
    """Return the number of each row's group; None if no row has one.

    An image that is a query and in the gallery is in a group with itself, so that it is not found.
    """
    columns = images.columns
    cells = columns.cells.get("group", [""] * len(columns))
    names = [cell.strip() for cell in cells]
    twice = {*sides["test"]} & {*sides.get("gallery", ())}
    if not any(names) and not twice:
        return None
    order = list(dict.fromkeys(itertools.chain(*sides.values())))
    number: dict[object, int] = {}
    groups = np.zeros(len(columns), np.int64)
    for row in order:
        # A row without a group is one of its own.
        groups[row] = number.setdefault(names[row] or row, len(number))
    _check_groups(columns, sides, names)
    return groups


def _check_groups(columns: Columns, sides: _Sides, names: Sequence[str]) -> None:
    split = {row: "test" if side == "gallery" else side for side in sides for row in sides[side]}
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        there = first.setdefault(name, row)
        if name and split[there] != split[row]:
            problem = (
                f"'{name[:40]}' is in {split[row]} here and in {split[there]} in "
                f"{columns.place(there)}; put all images of a group into one split"
            )
            raise columns.error(row, "group", problem)


def _image_set(images: _Images, side: str, sides: _Sides, groups: Labels | None) -> ImageSet:
    rows, classes = sides[side], images.classes(sides[side])
    if side == "gallery":
        classes = gallery_classes(images.classes(sides["test"]), classes)
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[images.labels[row]] for row in rows]
    made = image_files(
        images.folder, [images.names[row] for row in rows], labels, classes, images.crops
    )
    return made if groups is None else replace(made, groups=groups[list(rows)])
