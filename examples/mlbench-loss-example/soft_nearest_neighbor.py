"""Soft nearest neighbour loss, as a plugin of mlbench."""

import torch
from torch import Tensor, nn

import mlbench


@mlbench.register_loss(
    "soft_nearest_neighbor",
    paper="Frosst, Papernot & Hinton, ICML 2019, eq. 1",
    images_per_class=4,
    search={"temperature": (0.02, 2)},  # what `mlbench tune` tries
)
class SoftNearestNeighbor(nn.Module):
    """A neighbour drawn by closeness should be of the image's class."""

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 0.2) -> None:
        super().__init__()
        del num_classes, embedding_dim  # for losses with proxies
        self.temperature = temperature

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over the images; one without another of its class counts as 0."""
        closeness = -(x[:, None] - x).square().sum(dim=2) / self.temperature
        other = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        alike = (y[:, None] == y) & other
        own, all_ = (closeness.masked_fill(~mask, -1e4).logsumexp(1) for mask in (alike, other))
        return (all_ - own).where(alike.any(dim=1), 0 * own).mean()
