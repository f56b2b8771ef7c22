"""From image files to one memory-mapped array of uint8 pixels, decoded and resized once."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import _MEND, BadImagesError
from mlbench.errors import MlbenchError
from mlbench.interfaces import ImageSet, Interpolation
from mlbench.progress import Progress
from mlbench.system.files import atomic_file, cache_dir
from mlbench.system.locks import built_once

CACHE_VERSION = 1
"""To be raised whenever decoding, resizing or the layout of the file changes."""

Index = npt.NDArray[np.int64]

_CHUNK = 256
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_INDEX_BYTES = 16  # of each image: its height and width, both int64


@dataclass(frozen=True, eq=False, repr=False)
class PixelCache:
    """The pixels of one ImageSet, memory-mapped from one file.

    Attributes:
        data: all images one after another, flat uint8; mapped copy-on-write, so that torch may
            wrap it without a copy and nothing written to it reaches the file.
        offsets: ``(N,)`` int64, where each image starts in ``data``.
        heights: ``(N,)`` int64, in pixels.
        widths: ``(N,)`` int64, in pixels.
        file: the mapping behind ``data``.
    """

    data: ImageArray
    offsets: Index
    heights: Index
    widths: Index
    file: mmap.mmap

    def __len__(self) -> int:
        return len(self.offsets)

    def image(self, i: int) -> ImageArray:
        """Return a ``(h, w, 3)`` uint8 RGB view of image ``i``.

        Raises:
            MlbenchError: somebody has cut the file off since it was opened.
        """
        # Reading what is no longer there would end the process without a word (SIGBUS).
        if self.file.size() < len(self.file):
            raise MlbenchError(
                "the pixel cache was truncated while in use; run the same command again to "
                "rebuild it"
            )
        start, height, width = self.offsets[i], self.heights[i], self.widths[i]
        return self.data[start : start + 3 * height * width].reshape(height, width, 3)


def open_cache(
    images: ImageSet,
    side: int,
    key: str,
    progress: Progress | None = None,
    waiting: Callable[[], None] = lambda: None,
    *,
    interpolation: Interpolation = "bilinear",
) -> PixelCache:
    """Open the pixel cache of a set of images, building it if it is missing or damaged.

    Each image's shorter side becomes ``side`` pixels, exactly as ``torchvision.transforms.Resize``
    does to a PIL image. One process builds, the others wait for it; a cache appears only whole.

    Args:
        images: the images.
        side: shorter side in pixels; 0 keeps every image as large as it is.
        key: what identifies the pixels, such as the data set's fingerprint and the side of the
            split.
        progress: called with the number of images done and their total while building.
        waiting: called once if another process is building this cache.
        interpolation: by which images are resized.

    Raises:
        BadImagesError: images cannot be read.
        MlbenchError: the cache cannot be written.
    """
    way = "" if interpolation == "bilinear" else f"\n{interpolation}"  # caches were all bilinear
    digest = hashlib.sha256(f"{key}\n{side}\n{CACHE_VERSION}{way}".encode()).hexdigest()
    path = cache_dir("pixels") / f"{side}px-{digest[:32]}.uint8"
    if not _is_whole(path, len(images)):
        with built_once(path, waiting):
            if not _is_whole(path, len(images)):
                _build(path, images, side, progress, interpolation)
    heights, widths = _read_index(path, len(images))
    sizes = 3 * heights * widths
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = np.frombuffer(mapped, np.uint8, offset=_INDEX_BYTES * len(images))
    return PixelCache(data, np.cumsum(sizes) - sizes, heights, widths, mapped)


def find_bad(images: ImageSet, side: int, progress: Progress | None = None) -> dict[int, str]:
    """Read every image as ``open_cache`` does; return by index why one cannot be read."""
    bad = {}
    for i, image in enumerate(decoded(images, side)):
        if isinstance(image, MlbenchError):
            bad[i] = str(image)
        if progress:
            progress(i + 1, len(images))
    return bad


def _resized(image: ImageArray, side: int, name: str, interpolation: Interpolation) -> ImageArray:
    """Resize so that the shorter side is ``side`` (the arithmetic of torchvision's Resize).

    A side of 0 leaves the image as it is.
    """
    _check_array(image, name)
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    if side in (0, short):
        return image
    longer = int(side * long / short)
    if side * longer > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise MlbenchError(f"image {name}: {width} x {height} pixels are too narrow{_MEND}")
    size = (side, longer) if width <= height else (longer, side)
    return np.asarray(Image.fromarray(image).resize(size, _RESAMPLING[interpolation]))


def _check_array(image: object, name: str) -> None:
    """Check what the ``read`` of a data set has returned, which may be a plugin's."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        found = f"{image.dtype} {image.shape}"
    else:
        found = type(image).__name__
    raise MlbenchError(f"image {name}: the data set must read (H, W, 3) uint8, not {found}")


def _read_resized(
    images: ImageSet, i: int, side: int, interpolation: Interpolation
) -> ImageArray | MlbenchError:
    try:
        return _resized(images.read(i), side, images.names[i], interpolation)
    except MlbenchError as error:
        return error
    except OSError as error:
        return MlbenchError(f"image {images.names[i]}: {error.strerror or error}{_MEND}")


def decoded(
    images: ImageSet, side: int, interpolation: Interpolation = "bilinear"
) -> Iterator[ImageArray | MlbenchError]:
    """Decode and resize every image, several at a time; chunks bound how many wait in memory.

    Args:
        images: the images.
        side: their shorter side in pixels, as for ``open_cache``.
        interpolation: by which they are resized.

    Yields:
        in order, ``(h, w, 3)`` uint8 RGB, or the error that names an image that cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(images)))
            yield from pool.map(lambda i: _read_resized(images, i, side, interpolation), chunk)


def _build(
    path: Path,
    images: ImageSet,
    side: int,
    progress: Progress | None,
    interpolation: Interpolation,
) -> None:
    """Write all heights, all widths (int64), then the pixels; zeros come first until the end."""
    shapes = np.zeros((2, len(images)), "<i8")
    bad: list[str] = []
    with atomic_file(path) as file:
        file.write(shapes.tobytes())
        for i, image in enumerate(decoded(images, side, interpolation)):
            if isinstance(image, MlbenchError):
                bad.append(str(image))
            else:
                shapes[:, i] = image.shape[:2]
                file.write(np.ascontiguousarray(image).data)
            if progress:
                progress(i + 1, len(images))
        if bad:
            raise BadImagesError(bad)
        file.seek(0)
        file.write(shapes.tobytes())


def _read_index(path: Path, count: int) -> tuple[Index, Index]:
    heights, widths = np.fromfile(path, "<i8", 2 * count).reshape(2, count).astype(np.int64)
    return heights, widths


def _is_whole(path: Path, count: int) -> bool:
    size = path.stat().st_size if path.is_file() else 0
    if size <= _INDEX_BYTES * count:
        return False
    heights, widths = _read_index(path, count)
    positive = (heights > 0).all() and (widths > 0).all()
    return bool(positive) and size == _INDEX_BYTES * count + int((3 * heights * widths).sum())
