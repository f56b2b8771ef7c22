"""Which part of each image a batch shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Crops of a batch: top, left, height and width in pixels, and whether to mirror; all (B,)."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: npt.NDArray[np.bool_]


def random_boxes(
    heights: Ints, widths: Ints, min_area: float, flip: bool, rng: np.random.Generator
) -> Boxes:
    """Draw one random-resized crop per image (Szegedy et al. 2015), as torchvision does.

    Area is uniform in ``[min_area, 1]`` of the image, aspect ratio log-uniform in [3/4, 4/3];
    the first of ten draws that fits counts, else the largest central crop within those ratios.
    """
    n = len(heights)
    area = rng.uniform(min_area, 1.0, (n, 10)) * (heights * widths)[:, None]
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (n, 10)))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (w <= widths[:, None]) & (h > 0) & (h <= heights[:, None])
    first = fits.argmax(axis=1)
    rows = np.arange(n)
    found = fits[rows, first]
    central_w = np.minimum(widths, np.rint(heights * 4 / 3).astype(np.int64))
    central_h = np.minimum(heights, np.rint(widths / (3 / 4)).astype(np.int64))
    height = np.where(found, h[rows, first], central_h)
    width = np.where(found, w[rows, first], central_w)
    spread_top, spread_left = rng.random(n), rng.random(n)
    spread_top[~found] = spread_left[~found] = 0.5
    return Boxes(
        top=(spread_top * (heights - height + found)).astype(np.int64),
        left=(spread_left * (widths - width + found)).astype(np.int64),
        height=height,
        width=width,
        flip=rng.random(n) < (0.5 if flip else 0.0),
    )


def center_boxes(heights: Ints, widths: Ints, size: int) -> Boxes:
    """Return the central ``size x size`` crops, rounded as torchvision's CenterCrop rounds."""
    side = np.full(len(heights), size)
    return Boxes(
        top=np.rint((heights - size) / 2).astype(np.int64),
        left=np.rint((widths - size) / 2).astype(np.int64),
        height=side,
        width=side,
        flip=np.zeros(len(heights), dtype=np.bool_),
    )
