"""The network: preprocessing, trunk, head; and what of it batch norm leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Interpolation, Preprocessing
from mlbench.recipes.spec import HeadSpec, InputSpec, Recipe

_GEM_EXPONENT, _GEM_LEAST = 3, 1e-6
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Normalise(nn.Module):
    """uint8 RGB ``(B, 3, H, W)`` to what the trunk expects (see interfaces.Preprocessing)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)
        self.reverse = preprocessing.channels == "bgr"
        self.register_buffer("factor", preprocessing.scale / 255 / std, persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 ``(B, 3, H, W)``."""
        if self.reverse:
            pixels = pixels.flip(1)
        return torch.addcmul(self.get_buffer("offset"), pixels.float(), self.get_buffer("factor"))


class Pool(nn.Module):
    """Global pooling: ``(B, F, ...)`` to ``(B, F)``, the same for all backbones.

    The generalised mean is over positive parts, ``(mean max(x, 1e-6)^3)^(1/3)`` (Radenovic et al.
    2019, eq. 3); its exponent stays at 3, where theirs starts.
    """

    def __init__(self, kind: Literal["avg", "max", "avg+max", "gem"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, maps: Tensor) -> Tensor:
        """Return pooled features ``(B, F)``."""
        x = maps.flatten(2)
        if self.kind == "gem":
            return x.clamp(min=_GEM_LEAST).pow(_GEM_EXPONENT).mean(2).pow(1 / _GEM_EXPONENT)
        if self.kind == "avg+max":
            return x.mean(2) + x.amax(2)
        return x.mean(2) if self.kind == "avg" else x.amax(2)


class Trunk(nn.Module):
    """Preprocessing and backbone: uint8 RGB ``(B, 3, H, W)`` to pooled features ``(B, F)``.

    In training mode, batch norm keeps to the recipe's ``backbone.bn_stats``.

    Attributes:
        interpolation: by which images are resized for it.

    Raises:
        MlbenchError: the recipe's ``head.pool`` has no place in this backbone.
    """

    def __init__(self, backbone: Backbone, recipe: Recipe) -> None:
        super().__init__()
        spec, pool = recipe.backbone, recipe.head.pool
        own, named = backbone.preprocessing, recipe.input.interpolation
        self.interpolation: Interpolation = own.interpolation if named == "backbone" else named
        self.normalise = Normalise(preprocessing_of(own, recipe.input))
        self.backbone = backbone.trunk
        if pool != "backbone":
            if backbone.set_pool is None:
                raise MlbenchError(
                    f"backbone '{spec.name}' does not support head.pool '{pool}': it does not "
                    "declare where its features are pooled; use head.pool 'backbone'"
                )
            backbone.set_pool(Pool(pool))
        self.frozen_stats = spec.bn_stats == "frozen"
        if spec.bn_affine == "frozen":
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return pooled features ``(B, F)``."""
        return self.backbone(self.normalise(pixels))

    def train(self, mode: bool = True) -> Trunk:
        """Set training mode, except for batch norms whose statistics are frozen."""
        super().train(mode)
        if self.frozen_stats:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        # timm fuses batch norm and activation in subclasses of BatchNorm2d.
        return (m for m in self.backbone.modules() if isinstance(m, _BATCH_NORMS))


class Embedder(nn.Module):
    """Trunk and head: network input to raw (not normalised) embeddings ``(B, dim)``.

    The trunk of a network that is trained on cached features is ``nn.Identity``.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings ``(B, dim)``."""
        return self.head(self.trunk(inputs))


class WithFeatures(nn.Module):
    """Network input to raw embeddings ``(B, dim)`` and the trunk's features ``(B, F)``."""

    def __init__(self, network: Embedder) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings and features."""
        features = self.network.trunk(inputs)
        return self.network.head(features), features


def live_batch_norms(network: nn.Module) -> list[str]:
    """Return the names of batch norms that use a batch's own statistics in training."""
    network.train()
    norms = ((name, m) for name, m in network.named_modules() if isinstance(m, _BATCH_NORMS))
    return [name for name, norm in norms if norm.training or not norm.track_running_stats]


def preprocessing_of(own: Preprocessing, inputs: InputSpec) -> Preprocessing:
    """Return the backbone's ``own`` preprocessing as the recipe changes it."""
    channels = own.channels if inputs.channels == "backbone" else inputs.channels
    if inputs.normalization == "none":
        return Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channels=channels)
    if channels != own.channels:
        (a, b, c), (d, e, f) = own.mean, own.std
        return Preprocessing((c, b, a), (f, e, d), own.scale, channels)
    return own


def build_head(spec: HeadSpec, features: int) -> nn.Module:
    """Return the head that maps features ``(B, features)`` to embeddings ``(B, spec.dim)``."""
    layers: list[nn.Module] = [nn.Linear(features, spec.dim)]
    if spec.kind == "relu-bn-linear":
        layers = [nn.ReLU(), nn.BatchNorm1d(features), *layers]
    if spec.norm == "layer":
        layers = [nn.LayerNorm(features, elementwise_affine=False), *layers]
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]
