"""Distance-weighted sampling (Wu et al., ICCV 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.losses.batch import batch_loss, euclidean, masked_mean, pair_masks


class DistanceWeighted(nn.Module):
    """Draws one negative for each ordered positive pair (Wu et al. 2017, section 4).

    A negative at distance d is drawn with probability proportional to 1 / q(max(d, cutoff)), where
    q is the density of distances between uniform points of the unit sphere; those at
    ``far`` or beyond, which no loss of the paper feels, only where an anchor has no others.

    Args:
        cutoff: smallest distance that counts (lambda).
        far: distance from which negatives are left out (the authors' code).
    """

    def __init__(self, cutoff: float, far: float) -> None:
        super().__init__()
        self.cutoff, self.far = cutoff, far

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the positions of anchors, positives and negatives of the triplets.

        Draws follow the classes, not the places in the batch, so that the order of the batch has
        no effect.
        """
        order = torch.sort(y, stable=True).indices
        same, different = pair_masks(y[order])
        anchor, positive = (same & different.any(dim=1, keepdim=True)).nonzero().T
        if not len(anchor):
            return anchor, anchor, anchor
        weights = self.probabilities(x[order], different)[anchor]
        negative = torch.multinomial(weights, 1).squeeze(1)
        return order[anchor], order[positive], order[negative]

    def probabilities(self, x: Tensor, different: Tensor) -> Tensor:
        """Return ``(B, B)`` weights of the negatives of each anchor, for unit embeddings ``x``."""
        distance = euclidean(x)
        near = different & (distance < self.far)
        d = distance.clamp(self.cutoff, self.far)
        log_q = (x.shape[1] - 2) * d.log() + (x.shape[1] - 3) / 2 * torch.log1p(
            -(d.square() / 4).clamp(max=1 - 1e-6)
        )
        weights = F.softmax((-log_q).masked_fill(~near, torch.finfo(x.dtype).min), dim=1)
        return torch.where(near.any(dim=1, keepdim=True), weights * near, different.to(x.dtype))


@batch_loss
def triplet(x: Tensor, y: Tensor, *, margin: float, cutoff: float, far: float) -> Tensor:
    """Mean hinge of d_ap - d_an + margin over distance-weighted triplets of unit embeddings."""
    anchor, positive, negative = DistanceWeighted(cutoff, far)(x, y)
    distance = euclidean(x)
    hinge = F.relu(distance[anchor, positive] - distance[anchor, negative] + margin)
    return masked_mean(hinge, torch.ones_like(hinge, dtype=torch.bool))
