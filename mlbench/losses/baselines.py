"""Rows that cost nothing and keep a table honest: what the network does without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BASELINES = {
    "untrained": "the network as it starts, its head random",
    "features": "the trunk's features as they start, full width",
    "pca": "those features, projected by PCA of the training images to the embedding's length",
}


def pca(train: Tensor, test: Tensor, dim: int) -> Tensor:
    """Project ``test`` features on the first principal components of ``train``.

    Args:
        train: ``(N, F)`` features of training images.
        test: ``(M, F)`` features.
        dim: components kept, at most as many as there are with a variance: below ``N`` and up to
            ``F``. (Of the others, rounding alone would choose the directions.)

    Returns:
        ``(M, K)`` with ``K`` components, at least one.
    """
    import torch

    mean = train.double().mean(dim=0)
    covariance = torch.cov(train.double().T)
    variances, directions = torch.linalg.eigh(covariance)
    real = int((variances > len(variances) * 2.0**-50 * variances[-1]).sum())
    components = directions.flip(1)[:, : min(dim, max(1, real))]
    return ((test.double() - mean) @ components).float()
