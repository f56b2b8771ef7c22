"""Photographs to measure on: those of CUB-200-2011 where they are, else drawn ones as large."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mlbench.datasets.decode import decode
from mlbench.datasets.pixels import PixelCache, open_cache
from mlbench.interfaces import ImageSet

_HEIGHT, _WIDTH = 256, 300


@contextmanager
def photos(count: int) -> Iterator[list[Path]]:
    """Give so many JPEG files, of ``$MLBENCH_DATA_ROOT`` if it holds CUB-200-2011."""
    root = os.environ.get("MLBENCH_DATA_ROOT")
    if root is None:
        with tempfile.TemporaryDirectory() as folder:
            yield _draw(Path(folder), count)
        return
    found = sorted(Path(root, "CUB_200_2011", "images").glob("*/*.jpg"))
    yield [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]


def image_set(paths: list[Path], classes: int) -> ImageSet:
    """Return the photographs with labels that repeat ``0 .. classes - 1``."""
    names = tuple(str(number) for number in range(classes))
    labels = np.arange(len(paths), dtype=np.int64) % classes
    return ImageSet(tuple(map(str, paths)), labels, names, lambda i: decode(paths[i]))


@contextmanager
def pixels(images: ImageSet, side: int) -> Iterator[PixelCache]:
    """Decode the images into a pixel cache that is gone afterwards."""
    before = os.environ.get("MLBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLBENCH_CACHE"] = folder
        try:
            cache = open_cache(images, side, "benchmark")
        finally:
            os.environ.pop("MLBENCH_CACHE")
            if before is not None:
                os.environ["MLBENCH_CACHE"] = before
        yield cache


def _draw(folder: Path, count: int) -> list[Path]:
    """Draw smooth colours with some noise, which JPEG makes about as large as photographs."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = rng.integers(0, 256, (16, 18, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 3.5, (_HEIGHT, _WIDTH, 3))
        values = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(values).save(path, quality=90)
    return paths
