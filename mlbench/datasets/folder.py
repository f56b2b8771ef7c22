"""A user's own folder of class folders, split by class."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlbench.datasets.files import file_dataset, gallery_classes, image_files
from mlbench.datasets.formats import readable_suffixes
from mlbench.datasets.listing import entries, list_images, loose_images, warn_of_others
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system.files import expanded

_ROLES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev"),
    "query": ("query", "queries"),
    "gallery": ("gallery",),
}
_GIVEN = (("test", "train"), ("gallery", "query", "train"))
_FILLERS = ("data", "images", "imgs", "set", "split")


@dataclass(frozen=True)
class _Class:
    """A class: its name, and its folder, relative to the data set's."""

    name: str
    folder: str


_Sides = Mapping[str, Sequence[_Class]]
"""The classes of ``train``, of ``test`` and, if there is one, of a ``gallery``."""


def load(path: str, root: Path | None) -> Dataset:
    """Load ``folder:PATH``: its folders, sorted by name, are the classes.

    The first half of the classes (one more if their number is odd) is to train on, the rest to
    test on; where the folders are ``train`` and ``test``, or ``train``, ``query`` and ``gallery``,
    the class folders in them are the sides. Images count wherever they lie below their class
    folder. Hidden files and folders are passed over; whatever else is passed over is counted in a
    warning.

    Args:
        path: the folder; relative to ``root`` if that is given.
        root: the folder that ``path`` is relative to.

    Raises:
        MlbenchError: not a folder, fewer than four classes, a class with fewer than two images, or
            folders of a split that is not by class.
    """
    folder = expanded(Path(root or "", path))
    name = f"folder:{Path(os.path.realpath(folder)).name}"
    sides = _sides(folder)

    listings = {c: list_images(folder, c.folder) for side in sides.values() for c in side}
    above = {folder / Path(c.folder).parent for c in listings} or {folder}
    warn_of_others(name, [*map(loose_images, sorted({folder, *above})), *listings.values()])

    images = {c: listing.images for c, listing in listings.items()}
    _check(folder, sides, images)
    made = {side: _image_set(folder, side, sides, images) for side in sides}
    return file_dataset(name, folder, made["train"], made["test"], made.get("gallery"))


def _sides(folder: Path) -> _Sides:
    names = _folders(folder)
    roles = {name: role for name in names if (role := _role(name))}
    trains = [name for name, role in roles.items() if role == "train"]
    by_role = set(roles) == set(names) or any(_folders(folder / name) for name in trains)
    if len(set(roles.values())) > 1 and by_role:
        return _given_split(folder, names, roles)

    half = (len(names) + 1) // 2
    classes = [_Class(name, name) for name in names]
    return {"train": classes[:half], "test": classes[half:]}


def _folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise MlbenchError(f"{folder} is not a folder; use one that contains a folder per class")
    here = folder.resolve()
    return [
        path.name
        for path in entries(folder)
        # A link to the folder itself or to one above it would hold every class at once.
        if path.is_dir() and not here.is_relative_to(path.resolve())
    ]


def _role(name: str) -> str | None:
    """Return which part of a split a folder's name stands for, such as ``Training_set``."""
    words = [word for word in re.findall(r"[^\W\d_]+", name.casefold()) if word not in _FILLERS]
    return next((role for role, known in _ROLES.items() if words and set(words) <= {*known}), None)


def _given_split(folder: Path, names: Sequence[str], roles: Mapping[str, str]) -> _Sides:
    """Return the sides of a folder that is split into parts already."""
    where = f"{folder} is split into {first_few(names)}"
    if len(roles) < len(names) or tuple(sorted(roles.values())) not in _GIVEN:
        raise MlbenchError(
            f"{where}; mlbench expects 'train' and 'test', or 'train', 'query' and 'gallery', and "
            "draws validation classes from those to train on: move the class folders into these, "
            "and everything else elsewhere"
        )
    part = {"test" if role == "query" else role: name for name, role in roles.items()}
    sides = {
        side: [_Class(c, f"{part[side]}/{c}") for c in _folders(folder / part[side])]
        for side in ("train", "test", "gallery")
        if side in part
    }
    _check_split(where, sides)
    return sides


def _check_split(where: str, sides: _Sides) -> None:
    """Check that the parts hold class folders, and that none to train on is in another one."""
    if any(len(classes) < 2 for classes in sides.values()):
        counts = first_few([str(len(classes)) for classes in sides.values()])
        raise MlbenchError(
            f"{where}, which hold {counts} class folders; put at least 2 with the images of a "
            "class each into every one, or all class folders next to each other"
        )
    trained = {folded(c.name) for c in sides["train"]}
    tested = [*sides["test"], *sides.get("gallery", ())]
    shared = list(dict.fromkeys(c.name for c in tested if folded(c.name) in trained))
    if shared:
        raise MlbenchError(
            f"{where}, with the same classes to train and to test on: {first_few(shared)}; "
            "mlbench tests on "
            "classes that were not trained on: put all images of a class into one folder, and "
            "these folders beside each other"
        )


def folded(name: str) -> str:
    """Return what names have in common that differ in case or in how accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def _check(folder: Path, sides: _Sides, images: Mapping[_Class, Sequence[str]]) -> None:
    if not any(images.values()):
        raise MlbenchError(
            f"no images in the folders in {folder}; put the images of each class "
            f"({', '.join(sorted(readable_suffixes()))}) into a folder of their own"
        )
    if len(images) < 4:  # with a single test class, every neighbour is right
        raise MlbenchError(
            f"{folder} has {len(images)} class folder(s) and needs at least 4, two to train on "
            "and two to test on; add class folders"
        )
    sizes = {side: {c.folder: len(images[c]) for c in classes} for side, classes in sides.items()}
    for side, counts in sizes.items():
        # One image of a query's class is enough where it is searched in a gallery.
        _check_sizes(folder, counts, 2 if side == "train" or "gallery" not in sides else 1)


def _check_sizes(folder: Path, sizes: Mapping[str, int], least: int) -> None:
    empty = [name for name, size in sizes.items() if not size]
    if empty:
        raise MlbenchError(
            f"no images in these class folders in {folder}: {first_few(empty)}; "
            f"add at least {('one image', 'two images')[least - 1]} to each or remove it"
        )
    single = [name for name, size in sizes.items() if size < least]
    if single:
        raise MlbenchError(
            f"only one image in these class folders in {folder}: {first_few(single)}; "
            "add at least one more to each or remove it"
        )


def _image_set(
    folder: Path, side: str, sides: _Sides, images: Mapping[_Class, Sequence[str]]
) -> ImageSet:
    names = [file for c in sides[side] for file in images[c]]
    classes = [c.name for c in sides[side]]
    if side == "gallery":
        classes = gallery_classes((c.name for c in sides["test"]), classes)
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[c.name] for c in sides[side] for _ in images[c]]
    return image_files(folder, names, labels, classes)
