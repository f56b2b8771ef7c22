"""A small convolutional net for 32-pixel images, fast enough to train on a CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from mlbench.backbones.weights import load_weights
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Preprocessing

_WIDTHS = (16, 32, 64, 128)


def build(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build four 3x3 convolutions with batch norm and ReLU, halving the image after three.

    Args:
        weights: ``"none"``; this backbone has no ImageNet weights.
        weights_file: state dict to load instead.

    Raises:
        MlbenchError: ImageNet weights were asked for, or the file does not fit.
    """
    layers = _layers()
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loaded = load_weights("convnet", trunk, weights, weights_file, imagenet=_no_imagenet)
    half = (0.5, 0.5, 0.5)
    expected = Preprocessing(mean=half, std=half)
    place = partial(trunk.set_submodule, str(len(layers)))
    return Backbone(trunk, _WIDTHS[-1], expected, loaded, place)


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
        convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return layers[:-1]  # global pooling follows the last one


def _no_imagenet() -> Path:
    raise MlbenchError(
        "backbone 'convnet' has no ImageNet weights; use backbone.weights=none "
        "or a backbone that has them (see mlbench list)"
    )
