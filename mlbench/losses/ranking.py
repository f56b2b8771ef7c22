"""Losses of the order or the distribution of similarities in a batch of unit embeddings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.losses.batch import batch_loss, masked_mean, pair_masks

_BLOCK = 1 << 22  # comparisons at a time


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


@batch_loss
def roadmap(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float,
    slope: float,
    delta: float,
    positive_margin: float,
    negative_margin: float,
    calibration: float,
) -> Tensor:
    """SupAP and calibration (Ramzi et al., NeurIPS 2021).

    SupAP bounds 1 - AP from above: positives are counted as they are, without a gradient, and
    negatives by a function that is never below the step. The query is left out of the ranking.
    """
    same, different = pair_masks(y)
    cosine = x @ x.T
    query, item = same.nonzero(as_tuple=True)

    def precision(cosine: Tensor, query: Tensor, item: Tensor) -> Tensor:
        # above[i, j]: by how much image j comes before the item of pair i in its query's ranking
        above = cosine[query] - cosine[query, item, None]
        others = same[query].scatter(1, item[:, None], value=False)
        positives = 1 + (others & (above >= 0)).sum(dim=1)
        negatives = (_step_bound(above, temperature, slope, delta) * different[query]).sum(dim=1)
        return positives / (positives + negatives)

    ap = _mean_by_query(_in_blocks(precision, cosine, query, item), query, same)
    zero = cosine.new_zeros(())
    low = (positive_margin - cosine).clamp(min=0).where(same, zero).sum(dim=1)
    high = (cosine - negative_margin).clamp(min=0).where(different, zero).sum(dim=1)
    low, high = low / same.sum(dim=1).clamp(min=1), high / different.sum(dim=1).clamp(min=1)
    supap = masked_mean(1 - ap, same.any(dim=1))
    return (1 - calibration) * supap + calibration * (low + high).mean()


def _step_bound(t: Tensor, temperature: float, slope: float, delta: float) -> Tensor:
    """Return SupAP's bound of the step function: sigmoids about 0, a straight line from delta."""
    smooth = torch.sigmoid(t.clamp(max=delta) / temperature)
    return smooth + 0.5 * (t > 0) + slope * (t - delta).clamp(min=0)


def recall_surrogate(
    num_classes: int,
    embedding_dim: int,
    *,
    largest_k: int,
    rank_temperature: float,
    k_temperature: float,
) -> nn.Module:
    """Recall@k surrogate loss (Patel et al., CVPR 2022)."""
    if largest_k < 1:
        raise MlbenchError("recall_surrogate: largest_k must be at least 1")
    return _recall_surrogate(
        num_classes,
        embedding_dim,
        largest_k=largest_k,
        rank_temperature=rank_temperature,
        k_temperature=k_temperature,
    )


@batch_loss
def _recall_surrogate(
    x: Tensor, y: Tensor, *, largest_k: int, rank_temperature: float, k_temperature: float
) -> Tensor:
    """1 - mean recall over k = 1, 2, 4 ... largest_k, with sigmoids for ranks and for the cut at k.

    The query is left out of the ranking.
    """
    same, different = pair_masks(y)
    cosine = x @ x.T
    query, item = same.nonzero(as_tuple=True)

    def rank_of(cosine: Tensor, query: Tensor, item: Tensor) -> Tensor:
        above = torch.sigmoid((cosine[query] - cosine[query, item, None]) / rank_temperature)
        counted = (same | different)[query].scatter(1, item[:, None], value=False)
        return 1 + (above * counted).sum(dim=1)

    rank = _in_blocks(rank_of, cosine, query, item)
    count = same.sum(dim=1)
    ks = [2**i for i in range(largest_k.bit_length()) if 2**i <= largest_k]
    total = x.new_zeros(())
    for k in ks:
        within = torch.sigmoid((k - rank) / k_temperature)
        found = x.new_zeros(len(x)).index_add(0, query, within)
        recall = found.clamp(max=k) / count.clamp(min=1, max=k)
        total = total + masked_mean(1 - recall, count > 0)
    return total / len(ks)


def _in_blocks(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    cosine: Tensor,
    query: Tensor,
    item: Tensor,
) -> Tensor:
    """Return ``function(cosine, query, item)`` of ``(n,)`` pairs with the memory of a block.

    What a block compares is computed again for its gradient.
    """
    size = max(1, _BLOCK // len(cosine))
    if len(query) <= size:
        return function(cosine, query, item)
    return _Blocks.apply(function, cosine, query, item, size)


class _Blocks(torch.autograd.Function):
    """A function of pairs, block after block; its gradient likewise."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[Tensor, Tensor, Tensor], Tensor],
        cosine: Tensor,
        query: Tensor,
        item: Tensor,
        size: int,
    ) -> Tensor:
        """Return the values of all pairs."""
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(cosine, query, item)
        blocks = zip(query.split(size), item.split(size), strict=True)
        return torch.cat([function(cosine, *block) for block in blocks])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute each block again and add up its gradient."""
        cosine, query, item = ctx.saved_tensors
        leaf = cosine.detach().requires_grad_()
        parts = (each.split(ctx.size) for each in (query, item, gradients[0]))
        with torch.enable_grad():
            for one, other, gradient in zip(*parts, strict=True):
                ctx.function(leaf, one, other).backward(gradient)
        return None, leaf.grad, None, None, None


def _mean_by_query(values: Tensor, query: Tensor, same: Tensor) -> Tensor:
    """Return the ``(B,)`` means of the values of each query's positives; 0 for none."""
    sums = values.new_zeros(len(same)).index_add(0, query, values)
    return sums / same.sum(dim=1).clamp(min=1)
