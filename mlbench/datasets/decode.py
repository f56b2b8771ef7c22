"""One image file to uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mlbench.arrays import ImageArray
from mlbench.datasets.formats import open_image, upright, upright_size
from mlbench.errors import MlbenchError, first_few
from mlbench.system.regular import IrregularFileError

_MEND = "; replace or remove it"


class BadImagesError(MlbenchError):
    """Images that cannot be read; the message counts all and shows the first five.

    Attributes:
        reasons: one line for each, in order.
    """

    def __init__(self, reasons: Sequence[str], listed_in: Path | None = None) -> None:
        self.reasons = tuple(reasons)
        several = len(reasons) > 1
        count = f"{len(reasons)} unreadable images: " if several else ""
        shown = first_few([reason.removesuffix(_MEND) for reason in reasons], "; ")
        rest = f" (all are listed in {listed_in})" if listed_in else ""
        it = "them" if several else "it"
        mend = f"replace or remove {it}, or skip {it} with --on-bad-image skip"
        super().__init__(f"{count}{shown}{rest}; {mend}")


def decode(path: Path) -> ImageArray:
    """Decode an image file as a viewer would show it.

    The EXIF orientation is applied, alpha is laid onto white, 16-bit grey is scaled to 8 bits, and
    of an animation the first frame counts.

    Args:
        path: a regular file of one of the formats of ``formats``.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        MlbenchError: the file is missing, empty, truncated, not an image, not a regular file, or
            has more bytes than ``IMAGE_BYTES`` or more pixels than Pillow's limit against
            decompression bombs.
    """
    try:
        with open_image(path) as image:
            return np.array(to_rgb(upright(image)))
    except Exception as error:  # what a damaged file makes Pillow raise is not limited to OSError
        raise MlbenchError(f"cannot read image {path}: {_reason(error, path)}{_MEND}") from error


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image file as ``decode`` gives them, from its header alone.

    None for a file that cannot be read; ``decode`` says why.
    """
    try:
        with open_image(path) as image:
            return upright_size(image)
    except Exception:  # what a damaged file makes Pillow raise is not limited to OSError
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode as ``decode`` describes; ValueError for one that has no RGB."""
    if image.mode == "F":
        raise ValueError("its floating-point pixels have no defined white")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        grey = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's decompression bomb limit"
    if isinstance(error, UnidentifiedImageError):
        empty = path.stat().st_size == 0
        return "the file is empty" if empty else "not an image of a known format"
    if isinstance(error, IrregularFileError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
