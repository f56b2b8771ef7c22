"""BN-Inception (Ioffe & Szegedy 2015), the Caffe model that metric-learning papers use.

Parameter names, channel counts and pooling are those of the converted checkpoint
``bn_inception-52deb4733.pth`` (Cadene's pretrained-models.pytorch), so that it loads as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlbench.backbones.weights import StateDict, load_weights, published
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Preprocessing

# Its host speaks plain http only, hence the complete hash (its first digits name the file).
_URL = "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth"
_SHA256 = "52deb473314542a5c2f87e9e6f26f4ca42fe863d15f986414dbae8c2dfdd2353"
_FEATURES = 1024


@dataclass(frozen=True)
class _Block:
    """Output channels of an Inception block's branches.

    Attributes:
        name: as in the checkpoint.
        one: of the 1x1 branch; 0 in blocks that halve the image and pass the pooled input on.
        three: of the 3x3 branch: its 1x1 reduction, its 3x3.
        double: of the double 3x3 branch: its 1x1 reduction, each of its two 3x3.
        projection: of the pooling branch; 0 where the pooled input is passed on.
        pool: kind of the pooling branch.
    """

    name: str
    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    projection: int
    pool: Literal["avg", "max"]

    @property
    def stride(self) -> int:
        return 1 if self.one else 2

    def width(self, before: int) -> int:
        return self.one + self.three[1] + self.double[1] + (self.projection or before)


_BLOCKS = (
    _Block("inception_3a", 64, (64, 64), (64, 96), 32, "avg"),
    _Block("inception_3b", 64, (64, 96), (64, 96), 64, "avg"),
    _Block("inception_3c", 0, (128, 160), (64, 96), 0, "max"),
    _Block("inception_4a", 224, (64, 96), (96, 128), 128, "avg"),
    _Block("inception_4b", 192, (96, 128), (96, 128), 128, "avg"),
    _Block("inception_4c", 160, (128, 160), (128, 160), 128, "avg"),
    _Block("inception_4d", 96, (128, 192), (160, 192), 128, "avg"),
    _Block("inception_4e", 0, (128, 192), (192, 256), 0, "max"),
    _Block("inception_5a", 352, (192, 320), (160, 224), 128, "avg"),
    _Block("inception_5b", 352, (192, 320), (192, 224), 128, "max"),
)


@dataclass(frozen=True)
class _Unit:
    """A convolution, followed by batch norm and ReLU."""

    name: str
    channels_in: int
    channels: int
    kernel: int = 1
    stride: int = 1


def _units() -> Iterator[_Unit]:
    yield _Unit("conv1_7x7_s2", 3, 64, 7, 2)
    yield _Unit("conv2_3x3_reduce", 64, 64)
    yield _Unit("conv2_3x3", 64, 192, 3)
    before = 192
    for block in _BLOCKS:
        yield from _block_units(block, before)
        before = block.width(before)


def _block_units(block: _Block, before: int) -> Iterator[_Unit]:
    name, (reduced, three), (double_reduced, double) = block.name, block.three, block.double
    if block.one:
        yield _Unit(f"{name}_1x1", before, block.one)
    yield _Unit(f"{name}_3x3_reduce", before, reduced)
    yield _Unit(f"{name}_3x3", reduced, three, 3, block.stride)
    yield _Unit(f"{name}_double_3x3_reduce", before, double_reduced)
    yield _Unit(f"{name}_double_3x3_1", double_reduced, double, 3)
    yield _Unit(f"{name}_double_3x3_2", double, double, 3, block.stride)
    if block.projection:
        yield _Unit(f"{name}_pool_proj", before, block.projection)


class BNInception(nn.Module):
    """The trunk: images ``(B, 3, H, W)`` to features ``(B, 1024)``; not all sizes (``_fits``)."""

    def __init__(self) -> None:
        super().__init__()
        for unit in _units():
            convolution = nn.Conv2d(
                unit.channels_in, unit.channels, unit.kernel, unit.stride, unit.kernel // 2
            )
            self.add_module(unit.name, convolution)
            self.add_module(f"{unit.name}_bn", nn.BatchNorm2d(unit.channels))
        self.pool: nn.Module = _Average()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features; raise MlbenchError if the branches would differ in size."""
        height, width = images.shape[2:]
        if not (_fits(height) and _fits(width)):
            raise MlbenchError(
                "backbone 'bn_inception' needs image sides of 32 n - 1 to 32 n + 6 pixels, such "
                f"as 224 or 227, not {height}x{width}; change the image size"
            )
        x = _halve(self._convolve(images, "conv1_7x7_s2"))
        x = _halve(self._convolve(x, "conv2_3x3_reduce", "conv2_3x3"))
        for block in _BLOCKS:
            x = self._block(x, block)
        return self.pool(x)

    def _convolve(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x))
            x = F.relu(x, inplace=True)
        return x

    def _block(self, x: Tensor, block: _Block) -> Tensor:
        name = block.name
        double = (f"{name}_double_3x3_{part}" for part in ("reduce", "1", "2"))
        branches = [
            self._convolve(x, f"{name}_3x3_reduce", f"{name}_3x3"),
            self._convolve(x, *double),
            self._pooled(x, block),
        ]
        if block.one:
            branches.insert(0, self._convolve(x, f"{name}_1x1"))
        return torch.cat(branches, 1)

    def _pooled(self, x: Tensor, block: _Block) -> Tensor:
        if not block.projection:
            return _halve(x)
        pool = F.avg_pool2d if block.pool == "avg" else F.max_pool2d
        return self._convolve(pool(x, 3, stride=1, padding=1), f"{block.name}_pool_proj")


class _Average(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def build(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build BN-Inception (1024 features).

    Args:
        weights: ``"imagenet"`` for the published Caffe-converted weights, or ``"none"``.
        weights_file: state dict to load instead, with the same parameter names.

    Raises:
        MlbenchError: the weights cannot be fetched, or the file does not fit.
    """
    trunk = BNInception()
    loaded = load_weights(
        "bn_inception",
        trunk,
        weights,
        weights_file,
        imagenet=partial(published, _URL, _SHA256),
        classifier=("last_linear.",),
        convert=_flat_vectors,
    )
    expected = Preprocessing(scale=255, mean=(104, 117, 128), std=(1, 1, 1), channels="bgr")
    return Backbone(trunk, _FEATURES, expected, loaded, partial(trunk.set_submodule, "pool"))


def _fits(side: int) -> bool:
    """Tell whether the branches of the halving blocks, 3c and 4e, come out equally large.

    Their pooling rounds up and their convolutions down, so what is left of the ``side`` after the
    first three halvings must be even twice.
    """
    left = (side + 1) // 8
    return left > 0 and left % 4 == 0


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)  # Caffe rounds up


def _flat_vectors(state: StateDict) -> StateDict:
    """Make vectors of the ``(1, C)`` batch-norm parameters in the oldest converted files."""
    return {key: v[0] if v.ndim == 2 and len(v) == 1 else v for key, v in state.items()}
