"""Batches of an image set or of its cached features, made on the training device.

Two sources share one interface, so that the trainer need not know whether it trains a network on
crops or a head on features. Crops of CPU runs are sliced and resized image by image; on a GPU the
whole uint8 cache lies in its memory and a batch is cropped, resized and mirrored in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mlbench.arrays import Indices
from mlbench.images import PixelCache
from mlbench.spec import InputSpec

Ints = npt.NDArray[np.int64]


class Source(Protocol):
    """What the trainer and the evaluator read: inputs of the network, by image index."""

    def __len__(self) -> int: ...

    def train_batch(self, indices: Indices, rng: np.random.Generator) -> Tensor:
        """Return network inputs ``(B, ...)`` with random augmentation drawn from ``rng``."""
        ...

    def test_batch(self, indices: Indices) -> Tensor:
        """Return network inputs ``(B, ...)`` without augmentation."""
        ...


@dataclass(frozen=True)
class FeatureSource:
    """Precomputed trunk features ``(N, F)`` on the training device; nothing to augment."""

    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def train_batch(self, indices: Indices, rng: np.random.Generator) -> Tensor:
        """Return features ``(B, F)``."""
        del rng
        return self.test_batch(indices)

    def test_batch(self, indices: Indices) -> Tensor:
        """Return features ``(B, F)``."""
        return self.features[torch.from_numpy(indices).to(self.features.device)]


@dataclass(frozen=True)
class Subset:
    """Some images of a source, renumbered from 0."""

    source: Source
    members: Indices

    def __len__(self) -> int:
        return len(self.members)

    def train_batch(self, indices: Indices, rng: np.random.Generator) -> Tensor:
        """Return the source's augmented inputs of those members."""
        return self.source.train_batch(self.members[indices], rng)

    def test_batch(self, indices: Indices) -> Tensor:
        """Return the source's inputs of those members."""
        return self.source.test_batch(self.members[indices])


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


@dataclass(frozen=True)
class ImageSource:
    """Crops ``(B, 3, size, size)`` uint8 of one cached image set on ``device``."""

    cache: PixelCache
    spec: InputSpec
    device: torch.device

    def __len__(self) -> int:
        return len(self.cache)

    def train_batch(self, indices: Indices, rng: np.random.Generator) -> Tensor:
        """Return crops by the recipe's ``input.train_crop`` and ``input.flip``."""
        heights, widths = self.cache.heights[indices], self.cache.widths[indices]
        if self.spec.train_crop == "random-resized":
            boxes = random_boxes(heights, widths, self.spec.min_area, self.spec.flip, rng)
        else:
            boxes = center_boxes(heights, widths, self.spec.size)
            if self.spec.flip:
                boxes.flip[:] = rng.random(len(indices)) < 0.5
        return self.crop(indices, boxes)

    def test_batch(self, indices: Indices) -> Tensor:
        """Return central crops."""
        heights, widths = self.cache.heights[indices], self.cache.widths[indices]
        return self.crop(indices, center_boxes(heights, widths, self.spec.size))

    def crop(self, indices: Indices, boxes: Boxes) -> Tensor:
        """Crop, resize (bilinear, antialiased) to ``size`` and mirror."""
        return torch.stack(
            [self._crop_one(int(index), boxes, row) for row, index in enumerate(indices)]
        ).to(self.device, memory_format=torch.channels_last, non_blocking=True)

    def _crop_one(self, index: int, boxes: Boxes, row: int) -> Tensor:
        top, left = boxes.top[row], boxes.left[row]
        bottom, right = top + boxes.height[row], left + boxes.width[row]
        # The copy keeps torch from warning about the read-only memory map, and is small.
        pixels = torch.from_numpy(self.cache.image(index)[top:bottom, left:right].copy())
        crop, size = pixels.permute(2, 0, 1), self.spec.size
        if crop.shape[1:] != (size, size):
            crop = F.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]
        return crop.flip(2) if boxes.flip[row] else crop
