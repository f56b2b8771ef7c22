"""Any backbone of timm: ``timm:NAME``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.data.config import resolve_model_data_config

from mlbench.backbones.weights import load_weights
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Preprocessing


def build(name: str, weights: str, weights_file: Path | None = None) -> Backbone:
    """Build a timm model without its classifier.

    The features are pooled as the model itself does it, which for convolutional nets is global
    averaging; another pooling would not fit the weights of some models.

    Args:
        name: as in timm, with or without the tag of its weights, e.g. ``resnet50.a1_in1k``.
        weights: ``"imagenet"`` for the weights timm publishes on its hub, or ``"none"``.
        weights_file: state dict to load instead, with timm's parameter names.

    Raises:
        MlbenchError: an unknown model, or weights that cannot be fetched or do not fit.
    """
    _check_known(name)
    trunk: Any = timm.create_model(name, num_classes=0)
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
    return Backbone(
        trunk, trunk.head_hidden_size, Preprocessing(mean=data["mean"], std=data["std"]), loaded
    )


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
            "use backbone.weights=none or give a local file (--set backbone.weights=PATH)"
        )
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # besides its own, the client lets its HTTP library's errors out
        raise MlbenchError(
            f"cannot fetch {filename} of {repository} from the Hugging Face hub "
            f"({type(error).__name__}); give a local file (--set backbone.weights=PATH)"
        ) from error
