"""Backbones of torchvision, with its ImageNet weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn
from torchvision.models import (
    GoogLeNet,
    GoogLeNet_Weights,
    ResNet18_Weights,
    ResNet50_Weights,
    WeightsEnum,
    resnet18,
    resnet50,
)

from mlbench.backbones.weights import load_weights, published
from mlbench.interfaces import Backbone, Preprocessing

_IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def build_googlenet(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build GoogLeNet (1024 features) as torchvision defines it, with batch norm.

    Its weights come from TensorFlow and want RGB in [-1, 1]; the trunk makes that of images
    with ImageNet's mean and standard deviation (torchvision's ``transform_input``).

    Args:
        weights: ``"imagenet"`` or ``"none"``.
        weights_file: state dict to load instead.

    Raises:
        MlbenchError: the weights cannot be fetched, or the file does not fit.
    """
    trunk = GoogLeNet(aux_logits=False, transform_input=True, init_weights=False, dropout=0.0)
    imagenet = GoogLeNet_Weights.IMAGENET1K_V1
    return _build("googlenet", trunk, 1024, imagenet, weights, weights_file)


def build_resnet18(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build ResNet-18 (512 features); arguments and errors as for ``build_googlenet``."""
    imagenet = ResNet18_Weights.IMAGENET1K_V1
    return _build("resnet18", resnet18(), 512, imagenet, weights, weights_file)


def build_resnet50(weights: str, weights_file: Path | None = None) -> Backbone:
    """Build ResNet-50 (2048 features); arguments and errors as for ``build_googlenet``.

    The weights are torchvision's first ones, which metric-learning papers use.
    """
    imagenet = ResNet50_Weights.IMAGENET1K_V1
    return _build("resnet50", resnet50(), 2048, imagenet, weights, weights_file)


def _build(
    name: str,
    trunk: nn.Module,
    features: int,
    imagenet: WeightsEnum,
    weights: str,
    weights_file: Path | None,
) -> Backbone:
    trunk.set_submodule("fc", nn.Identity())
    # torchvision ends its file names with a dash and the first digits of the SHA-256.
    sha256 = Path(imagenet.url).stem.rpartition("-")[2]
    loaded = load_weights(
        name,
        trunk,
        weights,
        weights_file,
        imagenet=partial(published, imagenet.url, sha256),
        classifier=("fc.", "aux1.", "aux2."),
    )
    return Backbone(trunk, features, _IMAGENET, loaded, partial(trunk.set_submodule, "avgpool"))
