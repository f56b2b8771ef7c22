"""Small pictures of test images, each embedded once and only up to a size in all."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from mlbench.arrays import Labels
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet

SIDE = 112
"""Side of a thumbnail in pixels; smaller images keep their size."""

_QUALITY = 50


class Album:
    """The test images of a data set and the pictures taken of them, by one numbering.

    The images that were queries come first; then, if it has one, the data set's gallery.

    Args:
        dataset: to take pictures of.

    Attributes:
        queries: the test images.
        labels: classes of all images, by number in ``class_names``.
        class_names: those of the queries, then those that only the gallery has.
        offset: number of the first image that queries were searched among.
        searched: number of images that they were searched among.
        taken: base64 of WebP by the image's number.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.queries, self._gallery = dataset.test, dataset.gallery
        parts = [self.queries] if self._gallery is None else [self.queries, self._gallery]
        self.labels: Labels = np.concatenate([part.labels for part in parts])
        self.class_names = parts[-1].class_names
        self.offset = 0 if self._gallery is None else len(self.queries)
        self.searched = len(parts[-1])
        self.taken: dict[int, str] = {}
        self._left = 0

    def grant(self, budget: int) -> None:
        """Allow so many characters of base64 more."""
        self._left += budget

    def take(self, numbers: Iterable[int]) -> bool:
        """Take pictures of these images, of all or of none.

        Returns:
            whether there was room for them.
        """
        new = {i: self._encoded(i) for i in dict.fromkeys(numbers) if i not in self.taken}
        size = sum(map(len, new.values()))
        if size > self._left:
            return False
        self._left -= size
        self.taken |= new
        return True

    @property
    def names(self) -> dict[int, str]:
        """Names of the images of which pictures were taken, by number."""
        places = {number: self._place(number) for number in self.taken}
        return {number: images.names[i] for number, (images, i) in places.items()}

    def _encoded(self, number: int) -> str:
        return encoded(*self._place(number))

    def _place(self, number: int) -> tuple[ImageSet, int]:
        if self._gallery is not None and number >= self.offset:
            return self._gallery, number - self.offset
        return self.queries, number


def encoded(images: ImageSet, i: int) -> str:
    """Return base64 of a small WebP: an image's middle square, as networks see it.

    It is "" for an image that cannot be read.
    """
    try:
        picture = Image.fromarray(images.read(i))
    except MlbenchError:
        return ""
    side = min(SIDE, *picture.size)
    square = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=_QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
