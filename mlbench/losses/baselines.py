"""Rows that cost nothing and keep a table honest: what the network does without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BASELINES = {
    "untrained": "the initial network, with a random head",
    "features": "the initial backbone's features, all dimensions",
    "pca": "those features, projected by PCA of the training images to the embedding dimension",
}


def principal_components(train: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Find the first principal components of features.

    Args:
        train: ``(N, F)`` features of training images.
        dim: components kept, at most as many as there are with a variance: below ``N`` and up to
            ``F``. (Of the others, rounding alone would choose the directions.)

    Returns:
        their mean ``(F,)`` and the components ``(F, K)``, at least one; float64.
    """
    import torch

    mean = train.double().mean(dim=0)
    covariance = torch.cov(train.double().T)
    variances, directions = torch.linalg.eigh(covariance)
    real = int((variances > len(variances) * 2.0**-50 * variances[-1]).sum())
    return mean, directions.flip(1)[:, : min(dim, max(1, real))]


def project(features: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Project features ``(M, F)`` on principal components: float32 ``(M, K)``."""
    return ((features.double() - mean) @ components).float()
