"""What data sets share whose sides are given by official lists of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlbench.datasets.files import image_files
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import ImageSet
from mlbench.system.regular import read_regular

MEND = "unpack the archive again"
LIST_BYTES = 1 << 28
"""That a list of a data set may have."""


@dataclass(frozen=True)
class Side:
    """How many images and classes one side of a split has by its official lists."""

    name: str
    images: int
    classes: int


@dataclass(frozen=True)
class Listed:
    """An image of a list: its path below the images' folder, and the name of its class."""

    path: str
    class_name: str


def rows(path: Path, header: Sequence[str], above: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and words of every line below the header of a list.

    Args:
        path: the list.
        header: the words of its header; every line below has as many.
        above: lines above the header.

    Raises:
        MlbenchError: it cannot be read, has another header, or a line of another number of words.
    """
    try:
        lines = read_regular(path, limit=LIST_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MlbenchError(f"cannot read {path}: {error}; {MEND}") from error
    if [line.split() for line in lines[above : above + 1]] != [list(header)]:
        found = "".join(lines[above : above + 1])
        raise line_error(path, above + 1, f"expected '{' '.join(header)}'", found)
    for number, line in enumerate(lines[above + 1 :], above + 2):
        words = line.split()
        if words and len(words) != len(header):
            raise line_error(path, number, f"expected {len(header)} words", line)
        if words:
            yield number, words


def line_error(path: Path, number: int, problem: str, line: str) -> MlbenchError:
    """Return the error for a line of a list."""
    return MlbenchError(f"{path}, line {number}: {problem}, got '{line[:80]}'; {MEND}")


def is_number(word: str) -> bool:
    """Tell whether a word is a whole number, and not one too long for ``int``."""
    return word.isdecimal() and len(word) < 10


def is_inside(path: str) -> bool:
    """Tell whether a list's path leads to a file below the folder that it is relative to."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts


def build_side(source: Path, folder: Path, listed: Sequence[Listed], expected: Side) -> ImageSet:
    """Return the images of one side, its counts checked; labels follow the sorted class names.

    Args:
        source: the list, for messages.
        folder: that the paths are relative to.
        listed: the images.
        expected: what there must be.

    Raises:
        MlbenchError: other counts, an image listed twice, or a file that is not there.
    """
    names = sorted({image.class_name for image in listed})
    if (len(listed), len(names)) != (expected.images, expected.classes):
        raise MlbenchError(
            f"{source}: expected {expected.images:,} {expected.name} images of "
            f"{expected.classes:,} classes, found {len(listed):,} of {len(names):,}; {MEND}"
        )
    check_files(source, folder, [image.path for image in listed])
    number = {name: label for label, name in enumerate(names)}
    labels = [number[image.class_name] for image in listed]
    return image_files(folder, [image.path for image in listed], labels, names)


def check_files(source: Path, folder: Path, paths: Sequence[str]) -> None:
    """Raise MlbenchError if a path is there twice, leads out of ``folder``, or to no file."""
    outside = [path for path in paths if not is_inside(path)]
    if outside:
        raise MlbenchError(f"{source}: {first_few(outside)} is not below {folder}; {MEND}")
    if len(set(paths)) != len(paths):
        raise MlbenchError(f"{source}: an image is listed twice; {MEND}")
    missing = [path for path in paths if not is_file(folder / path)]
    if missing:
        raise MlbenchError(
            f"{len(missing)} files of {source} are missing in {folder}: {first_few(missing)}; "
            f"{MEND}"
        )


def is_file(path: Path) -> bool:
    """Tell whether a path leads to a file; False for one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, for instance
        return False


def check_disjoint(source: Path, train: ImageSet, *others: ImageSet) -> None:
    """Raise MlbenchError if a training class or image is on another side as well."""
    for other in others:
        shared = sorted(set(train.class_names) & set(other.class_names))
        if shared:
            raise MlbenchError(
                f"{source}: classes {first_few(shared)} are both to train and to test on; {MEND}"
            )
        if set(train.names) & set(other.names):
            raise MlbenchError(f"{source}: an image is listed both to train and to test on; {MEND}")
