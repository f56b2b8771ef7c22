"""Multi-class N-pair loss (Sohn, NeurIPS 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NPairs(nn.Module):
    """Multi-class N-pair loss on raw (not normalised) embeddings (Sohn 2016, eq. 6 and 7).

    The first two images of a class in the batch are its anchor and its positive; further images
    of the class, and classes with a single image, only count in the L2 term. A batch with fewer
    than two pairs has no negatives and leaves the L2 term alone.

    Args:
        num_classes: not used.
        embedding_dim: not used.
        l2_reg: weight of the mean squared length of the embeddings.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, l2_reg: float = 0.005) -> None:
        super().__init__()
        del num_classes, embedding_dim
        self.l2_reg = l2_reg

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of raw ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        penalty = self.l2_reg * embeddings.square().sum(dim=1).mean()
        anchor, positive = _first_pairs(labels)
        if len(anchor) < 2:
            return penalty
        logits = embeddings[anchor] @ embeddings[positive].T
        target = torch.arange(len(anchor), device=labels.device)
        return F.cross_entropy(logits, target) + penalty


def _first_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the first and of the second image of every class that has two."""
    ordered, order = torch.sort(labels, stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    has_second = torch.zeros_like(starts)
    has_second[:-1] = starts[:-1] & ~starts[1:]
    first = has_second.nonzero().squeeze(1)
    return order[first], order[first + 1]
