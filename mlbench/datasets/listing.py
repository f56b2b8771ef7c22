"""The image files below a folder, and what else lies there."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mlbench.datasets.formats import holds_image, readable_suffixes
from mlbench.errors import DataWarning, MlbenchError, first_few, printable

_SPECIAL = "pipes, sockets or devices"
_LINKED = "links to folders"
_LOOSE = "images outside of class folders"


@dataclass(frozen=True)
class Other:
    """What is passed over: its path, and what it is counted as, such as ``.txt``."""

    path: Path
    kind: str


@dataclass(frozen=True)
class Listing:
    """What lies below a folder, hidden files and folders left out.

    Attributes:
        images: paths of the files that are read as images, with ``/``, relative to the folder that
            was listed, sorted.
        others: what is passed over.
    """

    images: tuple[str, ...]
    others: tuple[Other, ...]


def list_images(folder: Path, part: str = "") -> Listing:
    """Look for images at any depth; a file is one if its suffix is that of a readable format.

    What is no regular file, and links to folders, are passed over; a link that leads nowhere counts
    as a file, to be named when it is read.

    Args:
        folder: what the paths are relative to.
        part: folder in it to look in; "" for all of it.

    Raises:
        MlbenchError: a folder cannot be listed.
    """
    suffixes = readable_suffixes()
    below = list(_below(folder / part))
    images = (each.path for each in below if each.kind in suffixes)
    others = (each for each in below if each.kind not in suffixes)
    names = sorted(path.relative_to(folder).as_posix() for path in images)
    return Listing(tuple(names), tuple(others))


def loose_images(folder: Path) -> Listing:
    """Return the images that lie in a folder itself, where a class folder should hold them."""
    files = (path for path in entries(folder) if not path.is_dir())
    images = (path for path in files if _kind(path) in readable_suffixes() or holds_image(path))
    return Listing((), tuple(Other(path, _LOOSE) for path in images))


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted, without what is hidden.

    Raises:
        MlbenchError: it cannot be listed.
    """
    try:
        visible = (path for path in folder.iterdir() if _is_visible(path.name))
        return sorted(visible, key=lambda path: path.name)
    except OSError as error:
        _cannot_list(error)


def _below(folder: Path) -> Iterator[Other]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = filter(_is_visible, folders)
        inside = [Path(parent, name) for name in folders]
        yield from (Other(path, _LINKED) for path in inside if path.is_symlink())
        listed = [Path(parent, name) for name in files if _is_visible(name)]
        yield from (Other(path, _kind(path)) for path in listed)


def _kind(path: Path) -> str:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        regular = True  # a link that leads nowhere, say
    return path.suffix.lower() if regular else _SPECIAL


def _is_visible(name: str) -> bool:
    return not name.startswith(".")


def _cannot_list(error: OSError) -> NoReturn:
    raise MlbenchError(
        f"cannot list {error.filename}: {error.strerror}; change its permissions"
    ) from error


def warn_of_others(name: str, listings: Iterable[Listing]) -> None:
    """Warn once of all that is passed over, counted by suffix, and of images among it.

    Args:
        name: of the data set or folder, for the message.
        listings: of its parts.
    """
    others = [other for listing in listings for other in listing.others]
    if not others:
        return

    counts = Counter(other.kind or "without a suffix" for other in others)
    counted = first_few([f"{kind}: {count:,}" for kind, count in counts.most_common()])
    text = f"{name}: {len(others):,} not read ({counted}); docs/data.md lists the formats"

    suffixed = (other.path for other in others if not other.kind or other.kind.startswith("."))
    images = [path for path in suffixed if holds_image(path)]
    if images:
        text += (
            f"; {len(images):,} with the content of an image, such as {images[0]}: give each the "
            "suffix of its format"
        )
    warnings.warn(printable(text), DataWarning, stacklevel=3)
