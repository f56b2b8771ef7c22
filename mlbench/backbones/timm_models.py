"""Any backbone of timm: ``timm:NAME``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.data.config import resolve_model_data_config
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.format import get_spatial_dim
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mlbench.backbones.weights import load_weights
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Preprocessing


def build(name: str, weights: str, weights_file: Path | None = None) -> Backbone:
    """Build a timm model without its classifier.

    The features are pooled as the model itself does it, which is global averaging for most
    convolutional nets and the class token for most transformers, unless the recipe's ``head.pool``
    puts another pooling in its place. Vision transformers that can (``dynamic_img_size``) take
    images of any size that their patches divide: the position embedding is resampled.

    Args:
        name: as in timm, with or without the tag of its weights, e.g. ``resnet50.a1_in1k``.
        weights: ``"imagenet"`` for the weights timm publishes on its hub, or ``"none"``.
        weights_file: state dict to load instead, with timm's parameter names.

    Raises:
        MlbenchError: an unknown model, or weights that cannot be fetched or do not fit.
    """
    _check_known(name)
    trunk = _create(name)
    heads = trunk.pretrained_cfg.get("classifier") or ()
    loaded = load_weights(
        f"timm:{name}",
        trunk,
        weights,
        weights_file,
        imagenet=partial(_hub_file, name, trunk.pretrained_cfg),
        classifier=tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads)),
    )
    data = resolve_model_data_config(trunk)
    expected = Preprocessing(
        mean=data["mean"], std=data["std"], interpolation=_interpolation(data["interpolation"])
    )
    place = partial(set_pool, trunk) if _pooled_at(trunk) else None
    return Backbone(trunk, trunk.head_hidden_size, expected, loaded, place)


def _create(name: str) -> Any:
    try:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True)
    except TypeError:  # not one of those transformers
        return timm.create_model(name, num_classes=0)


def _interpolation(published: str) -> Literal["bilinear", "bicubic"]:
    """Return timm's interpolation; what is neither (``random``, of training) counts as bilinear."""
    return "bicubic" if published == "bicubic" else "bilinear"


def set_pool(trunk: nn.Module, pool: nn.Module) -> None:
    """Put a global pooling in front of that of a timm model, whose own then has no effect.

    It stays, as layers that follow count on the shape that it returns.

    Args:
        trunk: changed in place.
        pool: ``(B, F, ...)`` to ``(B, F)``.
    """
    name = _pooled_at(trunk)
    assert name is not None
    own: Any = trunk.get_submodule(name)
    if isinstance(own, SelectAdaptivePool2d):
        # The layout is an argument of its inner module alone, as the dimensions to average.
        nhwc = getattr(own.pool, "dim", None) == get_spatial_dim("NHWC")
        trunk.set_submodule(name, nn.Sequential(_PooledMap(pool, channels_last=nhwc), own))
    else:
        prefix: Any = trunk.num_prefix_tokens
        trunk.set_submodule(name, nn.Sequential(own, _PooledTokens(pool, prefix)))


def _pooled_at(trunk: nn.Module) -> str | None:
    """Name the module that pools a map, or that gives the tokens to be pooled; None if neither."""
    pools = [k for k, m in trunk.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    if pools:
        return pools[0] if len(pools) == 1 else None
    if isinstance(trunk, VisionTransformer | Eva | Beit) and trunk.norm is not None:
        # Attention pools in a way of its own, and trained to.
        return "norm" if getattr(trunk, "attn_pool", None) is None else None
    return None


class _PooledMap(nn.Module):
    """A map pooled to one position: ``(B, F, H, W)`` to ``(B, F, 1, 1)``, or channels last."""

    def __init__(self, pool: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.pool, self.channels_last = pool, channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            return self.pool(x.movedim(-1, 1))[:, None, None]
        return self.pool(x)[:, :, None, None]


class _PooledTokens(nn.Module):
    """Tokens ``(B, P + N, F)`` to ``(B, P + 1, F)``, each the pooled of the N patches.

    So the class token and the average of the patches, which models go on with, are both that.
    """

    def __init__(self, pool: nn.Module, prefix: int) -> None:
        super().__init__()
        self.pool, self.prefix = pool, prefix

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x[:, self.prefix :].movedim(-1, 1))
        return pooled[:, None].expand(-1, self.prefix + 1, -1)


def _check_known(name: str) -> None:
    names = [*timm.list_models(), *timm.list_pretrained()]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise MlbenchError(f"unknown timm model '{name}'; {hint}")


def _hub_file(name: str, published: Mapping[str, Any]) -> Path:
    """Return timm's published weights file, from the hub's cache if it is there."""
    repository = published.get("hf_hub_id")
    filename = published.get("hf_hub_filename") or "model.safetensors"
    if not repository:
        raise MlbenchError(
            f"timm publishes no hub weights for '{name}'; "
            "use backbone.weights=none or a local file (--set backbone.weights=PATH)"
        )
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # besides its own, the client lets its HTTP library's errors out
        raise MlbenchError(
            f"cannot fetch {filename} of {repository} from the Hugging Face hub "
            f"({type(error).__name__}); use a local file (--set backbone.weights=PATH)"
        ) from error
