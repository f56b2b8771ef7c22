"""Losses of the order or the distribution of similarities in a batch of unit embeddings."""

import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.losses.batch import batch_loss, masked_mean, pair_masks


def histogram(num_classes: int, embedding_dim: int, *, bins: int) -> nn.Module:
    """Histogram loss of all pairs of unit embeddings (Ustinova and Lempitsky 2016)."""
    if bins < 1:
        raise MlbenchError("histogram: bins must be at least 1")
    return _histogram(num_classes, embedding_dim, bins=bins)


@batch_loss
def _histogram(x: Tensor, y: Tensor, *, bins: int) -> Tensor:
    """Probability that a negative pair is more similar than a positive one, from histograms.

    Soft histograms of ``bins + 1`` nodes over cosines -1 .. 1 (Ustinova and Lempitsky 2016,
    section 3).
    """
    cosine = x @ x.T
    densities = [_density(cosine[mask], bins) for mask in pair_masks(y)]
    return densities[1] @ densities[0].cumsum(dim=0)


def _density(values: Tensor, bins: int) -> Tensor:
    """Return the ``(bins + 1,)`` soft histogram of values in -1 .. 1; zeros for no values."""
    place = (values.clamp(-1, 1) + 1) * bins / 2
    # A value at the last node belongs to the last bin, and NaN to any, so that both nodes exist.
    lower = place.detach().floor().long().clamp(0, bins - 1)
    density = place.new_zeros(bins + 1)
    density = density.index_add(0, lower, 1 - (place - lower))
    density = density.index_add(0, lower + 1, place - lower)
    return density / max(len(values), 1)


@batch_loss
def smooth_ap(x: Tensor, y: Tensor, *, temperature: float) -> Tensor:
    """1 - mean average precision with sigmoids for ranks (Brown et al. 2020).

    Each image in turn is the query, which is itself left out of the ranking.
    """
    same, different = pair_masks(y)
    similarity = x @ x.T
    # above[q, i, j]: how much image j comes before image i in the ranking for query q
    above = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / temperature)
    above = above * ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    rank_positives = 1 + (above * same[:, None]).sum(dim=2)
    rank_all = 1 + (above * (same | different)[:, None]).sum(dim=2)
    count = same.sum(dim=1)
    precision = (rank_positives / rank_all * same).sum(dim=1) / count.clamp(min=1)
    return masked_mean(1 - precision, count > 0)
