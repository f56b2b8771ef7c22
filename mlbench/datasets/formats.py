"""Which image files are read, and the one place in which they are opened."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, features
from PIL.TiffImagePlugin import TiffImageFile

from mlbench.system.regular import open_regular

IMAGE_BYTES = 1_000_000_000
"""The most bytes of an image file."""


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        name: as Pillow calls it.
        suffixes: of the names of its files, in lower case.
        codec: what Pillow must have been built with, as ``PIL.features`` calls it; "" for nothing.
    """

    name: str
    suffixes: tuple[str, ...]
    codec: str = ""


# Each has a signature, which damaged files of other formats lack (TGA has none), and Pillow decodes
# it without another program (EPS: Ghostscript; WMF: Windows) and without looking for images of
# other formats inside (IPTC).
FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")),
    Format("PNG", (".png", ".apng")),
    Format("WEBP", (".webp",), "webp"),
    Format("AVIF", (".avif", ".avifs"), "avif"),
    Format("JPEG2000", (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "jpg_2000"),
    Format("GIF", (".gif",)),
    Format("TIFF", (".tif", ".tiff")),
    Format("BMP", (".bmp",)),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm")),
    Format("DDS", (".dds",)),
    Format("ICO", (".ico",)),
    Format("PCX", (".pcx",)),
    Format("PSD", (".psd",)),
    Format("QOI", (".qoi",)),
    Format("SGI", (".sgi", ".rgb", ".rgba", ".bw")),
    Format("SUN", (".ras",)),
    Format("HEIF", (".heic", ".heics", ".heif", ".heifs", ".hif")),
)
"""HEIF is read only where a plugin of Pillow, such as pillow-heif, has been registered."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def readable_formats() -> tuple[Format, ...]:
    """Return those of ``FORMATS`` that the Pillow of this process reads."""
    Image.init()
    return _registered(frozenset(Image.OPEN))


@functools.cache
def _registered(names: frozenset[str]) -> tuple[Format, ...]:
    return tuple(
        each
        for each in FORMATS
        if each.name in names and (not each.codec or features.check(each.codec))
    )


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the files that are taken for images."""
    return frozenset(suffix for each in readable_formats() for suffix in each.suffixes)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file of a readable format, with Pillow's warnings silenced for the block.

    Args:
        path: a regular file of up to ``IMAGE_BYTES`` bytes, whatever its suffix.

    Yields:
        the image, whose pixels are decoded when they are first asked for.

    Raises:
        IrregularFileError: not a regular file, or a larger one.
        Exception: whatever a damaged file makes Pillow raise, which is not limited to OSError.
    """
    names = tuple(each.name for each in readable_formats())
    with (
        _PILLOW_QUIET,
        open_regular(path, limit=IMAGE_BYTES) as file,
        Image.open(file, formats=names) as image,
    ):
        if isinstance(image, TiffImageFile):
            # Else it reads all metadata behind the pixels, and fails where something there is odd.
            image.load_end = _do_nothing
        yield image


def _do_nothing() -> None:
    pass


def holds_image(path: Path) -> bool:
    """Tell whether the content of a file, whatever its suffix, begins as an image's."""
    try:
        with open_image(path):
            return True
    except Exception:  # what foreign bytes make Pillow raise is not limited to OSError
        return False


def upright(image: Image.Image) -> Image.Image:
    """Return an image as its EXIF orientation says it stands; the rest of EXIF is not looked at.

    An orientation that is none of 1 to 8, or cannot be read, changes nothing.
    """
    image.load()
    orientation = _orientation(image)
    for number, method in _TRANSPOSITIONS.items():
        if orientation == number:
            return image.transpose(method)
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height that ``upright`` gives an image, whose pixels need not be there."""
    width, height = image.size
    # Orientations of 5 and above lay an image on its side.
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _orientation(image: Image.Image) -> object:
    try:
        # Those of a TIFF are in memory; getexif would read its file again.
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else image.getexif()
        return tags.get(ExifTags.Base.Orientation)
    except Exception:  # what odd metadata make Pillow raise has no common type
        return None


class _Quiet:
    """Silences warnings while any thread is inside; Pillow's bomb warning becomes an error.

    ``warnings.catch_warnings`` alone would let threads restore each other's filters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_PILLOW_QUIET = _Quiet()
