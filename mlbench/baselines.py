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
        dim: components kept; at most ``min(N, F)`` exist.

    Returns:
        ``(M, min(dim, N, F))``.
    """
    import torch

    mean = train.double().mean(dim=0)
    covariance = torch.cov(train.double().T)
    components = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : min(dim, len(train))]
    return ((test.double() - mean) @ components).float()
