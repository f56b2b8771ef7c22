"""A user's own folder of class folders, split by class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from mlbench.datasets.files import file_dataset, image_files
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import Dataset, ImageSet
from mlbench.paths import expanded

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def load(path: str, root: Path | None) -> Dataset:
    """Load ``folder:PATH``: its folders, sorted by name, are the classes.

    The first half of the classes (one more if their number is odd) is to train on, the rest to
    test on. Images count wherever they lie below their class folder. Hidden files and folders, and
    links to folders below a class folder, are passed over.

    Args:
        path: the folder; relative to ``root`` if that is given.
        root: the folder that ``path`` is relative to.

    Raises:
        MlbenchError: not a folder, fewer than four classes, or a class with fewer than two images.
    """
    folder = expanded(Path(root or "", path))
    classes = {name: files_below(folder, name) for name in _class_folders(folder)}
    _check(folder, classes)
    names = list(classes)
    half = (len(names) + 1) // 2
    sides = [_side(folder, classes, part) for part in (names[:half], names[half:])]
    return file_dataset(f"folder:{Path(os.path.realpath(folder)).name}", folder, *sides)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise MlbenchError(f"{folder} is not a folder; give one that holds a folder per class")
    try:
        children = list(folder.iterdir())
    except OSError as error:
        _unreadable(error)
    here = folder.resolve()
    return sorted(
        child.name
        for child in children
        # A link to the folder itself or to one above it would hold every class at once.
        if _visible(child.name) and child.is_dir() and not here.is_relative_to(child.resolve())
    )


def files_below(folder: Path, part: str = "") -> list[str]:
    """Return the image files at any depth, as sorted paths with ``/``, relative to ``folder``.

    Hidden files and folders, and links to folders, are passed over.

    Args:
        folder: what the paths are relative to.
        part: folder in it to look in; "" for all of it.

    Raises:
        MlbenchError: a folder cannot be listed.
    """
    found: list[str] = []
    for parent, folders, files in os.walk(folder / part, onerror=_unreadable):
        folders[:] = filter(_visible, folders)
        paths = (Path(parent, file) for file in files if _visible(file))
        images = (path for path in paths if path.suffix.lower() in SUFFIXES and _is_file(path))
        found += [path.relative_to(folder).as_posix() for path in images]
    return sorted(found)


def _is_file(path: Path) -> bool:
    """Tell a file from a pipe or socket; a broken link counts, to be named when it is read."""
    return path.is_file() or path.is_symlink()


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _unreadable(error: OSError) -> NoReturn:
    raise MlbenchError(
        f"cannot list {error.filename}: {error.strerror}; change its permissions"
    ) from error


def _check(folder: Path, classes: Mapping[str, list[str]]) -> None:
    if not any(classes.values()):
        raise MlbenchError(
            f"no images in the folders in {folder}; put the images of each class "
            f"({', '.join(sorted(SUFFIXES))}) into a folder of their own"
        )
    if len(classes) < 4:  # with a single test class, every neighbour is right
        raise MlbenchError(
            f"{folder} has {len(classes)} class folder(s) and needs at least 4, two to train on "
            "and two to test on; add class folders"
        )
    _check_sizes(folder, classes)


def _check_sizes(folder: Path, classes: Mapping[str, list[str]]) -> None:
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise MlbenchError(
            f"no images in these class folders in {folder}: {first_few(empty)}; "
            "add at least two images to each or remove it"
        )
    single = [name for name, files in classes.items() if len(files) == 1]
    if single:
        raise MlbenchError(
            f"only one image in these class folders in {folder}: {first_few(single)}; "
            "add at least one more to each or remove it"
        )


def _side(folder: Path, classes: Mapping[str, list[str]], chosen: list[str]) -> ImageSet:
    names = [file for class_name in chosen for file in classes[class_name]]
    labels = [label for label, class_name in enumerate(chosen) for _ in classes[class_name]]
    return image_files(folder, names, labels, chosen)
