"""Baselines as networks that nothing was trained in: the trunk as it starts, and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlbench.losses.baselines import principal_components, project
from mlbench.recipes.spec import RunSpec
from mlbench.runs.ingredients import Ingredients
from mlbench.training.batches import FeatureSource
from mlbench.training.embed import embed
from mlbench.training.network import Embedder, build_head


def embed_baseline(spec: RunSpec, ingredients: Ingredients) -> tuple[Embedder, Tensor]:
    """Embed the evaluated images by a baseline.

    Args:
        spec: its run.
        ingredients: of the run.

    Returns:
        the head on an identity, as of a frozen trunk; and the embeddings ``(Q, D)`` of queries and
        below them of a gallery, which for ``pca`` are computed in double precision.
    """
    features = torch.cat([ingredients.features(side, spec.seed) for side in ingredients.evaluated])
    head_spec = ingredients.recipe.head
    if spec.loss.name == "pca":
        found = principal_components(ingredients.features("train", spec.seed), head_spec.dim)
        return _network(_linear(*found)), project(features, *found)
    if spec.loss.name == "untrained":
        torch.manual_seed(spec.seed)
        head = build_head(head_spec, features.shape[1])
        return _network(head), embed(head, FeatureSource(features))
    return _network(nn.Identity()), features


def _network(head: nn.Module) -> Embedder:
    return Embedder(nn.Identity(), head)


def _linear(mean: Tensor, components: Tensor) -> nn.Linear:
    """Return the map ``(x - mean) @ components`` as a layer."""
    layer = nn.Linear(components.shape[0], components.shape[1])
    with torch.no_grad():
        layer.weight.copy_(components.T)
        layer.bias.copy_(-mean @ components)
    return layer
