"""Folders of images, embedded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlbench.datasets.listing import list_images, warn_of_others
from mlbench.errors import MlbenchError, first_few
from mlbench.models.model import Model, embed_images, image_set
from mlbench.progress import Progress
from mlbench.system.files import atomic_file, expanded


@dataclass(frozen=True, eq=False)
class EmbeddedFolder:
    """The images below a folder, embedded.

    Attributes:
        root: the folder.
        paths: ``N``, with ``/``, relative to ``root``, sorted.
        embeddings: float32 ``(N, D)`` of unit length.
        bad: one line for each image that cannot be read and is not among them.
    """

    root: Path
    paths: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]
    bad: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The folder in ``root`` of each image; None if an image lies in ``root`` itself."""
        if not all("/" in path for path in self.paths):
            return None
        return tuple(path.partition("/")[0] for path in self.paths)


def embed_folder(model: Model, folder: Path, progress: Progress | None = None) -> EmbeddedFolder:
    """Embed all images below a folder.

    Args:
        model: embeds them.
        folder: hidden files and folders in it, and links to folders, are passed over.
        progress: called with images done and their number.

    Raises:
        MlbenchError: no folder, or no image in it that can be read.
    """
    root = existing_folder(folder)
    embedded = embed_paths(model, root, images_below(root), progress)
    if not embedded.paths:
        raise MlbenchError(f"no image below {folder} can be read: {first_few(embedded.bad)}")
    return embedded


def images_below(folder: Path) -> Sequence[str]:
    """Return the images below a folder, relative to it, sorted; name once what else is there.

    Raises:
        MlbenchError: there are none.
    """
    listing = list_images(folder)
    warn_of_others(str(folder), [listing])
    if not listing.images:
        raise MlbenchError(f"no images in or below {folder}")
    return listing.images


def embed_paths(
    model: Model, root: Path, paths: Sequence[str], progress: Progress | None
) -> EmbeddedFolder:
    """Embed some images of a folder, maybe none."""
    found = embed_images(model, image_set([root / path for path in paths]), progress)
    whole = tuple(path for i, path in enumerate(paths) if i not in found.bad)
    return EmbeddedFolder(root, whole, found.embeddings.numpy(), tuple(found.bad.values()))


def existing_folder(folder: Path) -> Path:
    """Return a folder as an absolute path, links kept; MlbenchError if there is none."""
    path = Path(os.path.abspath(expanded(folder)))  # noqa: PTH100 -- links stay as users know them
    if not path.is_dir():
        raise MlbenchError(f"no folder '{folder}'; pass one with images")
    return path


def save_embeddings(embedded: EmbeddedFolder, output: Path) -> None:
    """Write ``embeddings``, ``paths`` and, if there are any, ``labels`` to an ``.npz``.

    Raises:
        MlbenchError: it cannot be written.
    """
    labels = {} if embedded.labels is None else {"labels": np.array(embedded.labels)}
    save_arrays(output, embeddings=embedded.embeddings, paths=np.array(embedded.paths), **labels)


def save_arrays(output: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write an ``.npz``, whole or not at all."""
    with atomic_file(output) as file:
        np.savez(file, allow_pickle=False, **arrays)
