"""Batches of an image set or of its cached features, made on the training device.

Two sources share one interface, so that the trainer need not know whether it trains a network on
crops or a head on features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mlbench.arrays import Indices
from mlbench.datasets.pixels import PixelCache
from mlbench.recipes.spec import InputSpec
from mlbench.training.crops import Crops, center_boxes, random_boxes
from mlbench.training.device import to_device

Draw = Callable[[slice], Tensor]
"""A batch whose augmentation is drawn: makes the network inputs ``(b, ...)`` of any part of it."""


class InputSource(Protocol):
    """What the trainer and the evaluator read: inputs of the network, by image index."""

    def __len__(self) -> int: ...

    def draw(self, indices: Indices, rng: np.random.Generator) -> Draw:
        """Draw the random augmentation of a batch from ``rng``; cut it later, in parts if need be.

        A part is the same inputs each time, whatever the other parts.
        """
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

    def draw(self, indices: Indices, rng: np.random.Generator) -> Draw:
        """Return what makes features ``(b, F)``; nothing is drawn."""
        del rng
        return lambda part: self.test_batch(indices[part])

    def test_batch(self, indices: Indices) -> Tensor:
        """Return features ``(B, F)``."""
        return self.features[to_device(indices, self.features.device)]


@dataclass(frozen=True)
class Subset:
    """Some images of a source, renumbered from 0."""

    source: InputSource
    members: Indices

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, indices: Indices, rng: np.random.Generator) -> Draw:
        """Return what makes the source's augmented inputs of those members."""
        return self.source.draw(self.members[indices], rng)

    def test_batch(self, indices: Indices) -> Tensor:
        """Return the source's inputs of those members."""
        return self.source.test_batch(self.members[indices])


@dataclass(frozen=True)
class Joined:
    """Two sources as one: the images of the first, then those of the second."""

    first: InputSource
    second: InputSource

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def draw(self, indices: Indices, rng: np.random.Generator) -> Draw:
        """Return what makes augmented inputs of both; the first's are drawn first."""
        drawn = [(source.draw(own, rng), at) for source, own, at in self._parts(indices)]

        def cut(part: slice) -> Tensor:
            start, stop, _ = part.indices(len(indices))
            ends = [(make, at, *np.searchsorted(at, (start, stop))) for make, at in drawn]
            return _in_order(
                [
                    (make(slice(low, high)), at[low:high])
                    for make, at, low, high in ends
                    if low < high
                ]
            )

        return cut

    def test_batch(self, indices: Indices) -> Tensor:
        """Return inputs of both without augmentation."""
        return _in_order([(source.test_batch(own), at) for source, own, at in self._parts(indices)])

    def _parts(self, indices: Indices) -> list[tuple[InputSource, Indices, Indices]]:
        """Return, for each source with images in the batch, their indices and their places."""
        second = indices >= len(self.first)
        parts = ((self.first, ~second, 0), (self.second, second, len(self.first)))
        return [
            (s, indices[own] - start, np.flatnonzero(own)) for s, own, start in parts if own.any()
        ]


def _in_order(parts: Sequence[tuple[Tensor, Indices]]) -> Tensor:
    """Put parts of a batch together, each image in its place."""
    joined = torch.cat([inputs for inputs, _ in parts])
    order = np.argsort(np.concatenate([at for _, at in parts]))
    return joined[to_device(order, joined.device)]


@dataclass(frozen=True)
class ImageSource:
    """Crops ``(B, 3, size, size)`` uint8 of one cached image set.

    Attributes:
        cache: the images.
        crops: cuts crops of them, on the training device.
        spec: which crops.
    """

    cache: PixelCache
    crops: Crops
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.cache)

    def draw(self, indices: Indices, rng: np.random.Generator) -> Draw:
        """Return what cuts crops by the recipe's ``input.train_crop`` and ``input.flip``."""
        heights, widths = self.cache.heights[indices], self.cache.widths[indices]
        if self.spec.train_crop == "random-resized":
            boxes = random_boxes(heights, widths, self.spec.min_area, self.spec.flip, rng)
        else:
            boxes = center_boxes(heights, widths, self.spec.size)
            if self.spec.flip:
                boxes.flip[:] = rng.random(len(indices)) < 0.5
        return lambda part: self.crops(indices[part], boxes[part], self.spec.size)

    def test_batch(self, indices: Indices) -> Tensor:
        """Return central crops."""
        heights, widths = self.cache.heights[indices], self.cache.widths[indices]
        boxes = center_boxes(heights, widths, self.spec.size)
        return self.crops(indices, boxes, self.spec.size)
