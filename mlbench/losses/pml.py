"""Losses that pytorch-metric-learning computes exactly as their papers define them."""

from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn


class Mined(nn.Module):
    """A pytorch-metric-learning loss on the tuples that one of its miners picks."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


def semihard_triplet(num_classes: int, embedding_dim: int, *, margin: float = 0.2) -> nn.Module:
    """Triplet loss on all semi-hard triplets of unit embeddings (Schroff et al. 2015, eq. 1, 4).

    Distances are squared Euclidean; the mean runs over the semi-hard triplets, and a batch
    without any gives 0.
    """
    del num_classes, embedding_dim
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    return Mined(
        losses.TripletMarginLoss(margin=margin, distance=squared),
        miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared),
    )
