"""Losses of pairs and tuples that pytorch-metric-learning does not compute, or slowly.

All functions take embeddings ``x`` ``(B, D)`` and labels ``y`` ``(B,)``, or ``Pairs`` of them, and
return a scalar, 0 for a batch without the pairs they need.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbench.losses.batch import (
    Pairs,
    batch_loss,
    cos_of_sum,
    euclidean,
    masked_logsumexp,
    masked_mean,
    pair_loss,
    pair_masks,
)


@pair_loss
def semihard_triplet(pairs: Pairs, *, margin: float) -> Tensor:
    """Mean hinge over all semi-hard triplets, squared distances (Schroff et al. 2015, eq. 1, 4).

    The same value as pytorch-metric-learning's, which lists every triplet first and takes most of
    a training step for it.
    """
    lengths, others = (v.square().sum(dim=1) for v in (pairs.x, pairs.others))
    squared = lengths[:, None] + others - 2 * pairs.cosine
    anchor, positive = pairs.same.nonzero(as_tuple=True)
    hinge = squared[anchor, positive, None] - squared[anchor] + margin
    return masked_mean(hinge, pairs.different[anchor] & (hinge > 0) & (hinge < margin))


@pair_loss
def contrastive(pairs: Pairs, *, margin: float) -> Tensor:
    """Mean over all pairs of d^2 / 2 or max(0, margin - d)^2 / 2 (Hadsell et al. 2006, eq. 4)."""
    distance = pairs.distance
    terms = torch.where(pairs.same, distance, F.relu(margin - distance)).square() / 2
    return masked_mean(terms, pairs.same | pairs.different)


@pair_loss
def contrastive_cosine(pairs: Pairs, *, margin: float) -> Tensor:
    """Sum over an anchor's pairs of 1 - s or max(0, s - margin), mean over anchors (XBM, 2020)."""
    cosine = pairs.cosine
    zero = cosine.new_zeros(())
    pull = (1 - cosine).where(pairs.same, zero)
    push = F.relu(cosine - margin).where(pairs.different, zero)
    return (pull + push).sum() / len(pairs.x)


@pair_loss
def ranked_list(
    pairs: Pairs, *, alpha: float, margin: float, temperature: float, balance: float
) -> Tensor:
    """Ranked list loss of an anchor's violating pairs (Wang et al., CVPR 2019).

    The weights of the negatives are constants for the gradient.
    """
    pull, push = pairs.distance - (alpha - margin), alpha - pairs.distance
    far, near = pairs.same & (pull > 0), pairs.different & (push > 0)
    zero = push.new_zeros(())
    positives = pull.where(far, zero).sum(dim=1) / far.sum(dim=1).clamp(min=1)
    lowest = torch.finfo(push.dtype).min
    weights = F.softmax((temperature * push.detach()).masked_fill(~near, lowest), dim=1)
    negatives = (weights * push).where(near, zero).sum(dim=1)
    return ((1 - balance) * positives + balance * negatives).mean()


@batch_loss
def lifted_structure(x: Tensor, y: Tensor, *, margin: float) -> Tensor:
    """Lifted structured loss (Oh Song et al. 2016, eq. 4) on embeddings as they are."""
    same, different = pair_masks(y)
    distance = euclidean(x)
    near = masked_logsumexp(margin - distance, different)
    terms = F.relu(torch.logaddexp(near[:, None], near) + distance).square() / 2
    return masked_mean(terms, same & different.any(dim=1))


@batch_loss
def lifted_structure_general(x: Tensor, y: Tensor, *, margin: float) -> Tensor:
    """Mean over anchors of the smoothed batch-hard hinge (Hermans et al. 2017, eq. L_LG)."""
    same, different = pair_masks(y)
    distance = euclidean(x)
    hinge = F.relu(
        masked_logsumexp(distance, same) + masked_logsumexp(margin - distance, different)
    )
    return masked_mean(hinge, same.any(dim=1) & different.any(dim=1))


@pair_loss
def circle(pairs: Pairs, *, m: float, gamma: float) -> Tensor:
    """Circle loss with each image as the anchor (Sun et al. 2020, eq. 4-8).

    The weights of the pairs are constants for the gradient, as in the authors' method.
    """
    same, different = pairs.same, pairs.different
    similarity = pairs.cosine
    fixed = similarity.detach()
    positive = -gamma * F.relu(1 + m - fixed) * (similarity - (1 - m))
    negative = gamma * F.relu(fixed + m) * (similarity - m)
    losses = F.softplus(masked_logsumexp(positive, same) + masked_logsumexp(negative, different))
    return masked_mean(losses, same.any(dim=1) & different.any(dim=1))


@pair_loss
def supcon(pairs: Pairs, *, temperature: float) -> Tensor:
    """Supervised contrastive loss, average outside the logarithm (Khosla et al. 2020, eq. 2)."""
    same, different = pairs.same, pairs.different
    logits = pairs.cosine / temperature
    log_prob = logits - masked_logsumexp(logits, same | different)[:, None]
    count = same.sum(dim=1)
    per_anchor = log_prob.where(same, log_prob.new_zeros(())).sum(dim=1) / count.clamp(min=1)
    return -masked_mean(per_anchor, count > 0)


@pair_loss
def ntxent(pairs: Pairs, *, temperature: float) -> Tensor:
    """Mean over ordered positive pairs of one-of-many cross-entropy (Chen et al. 2020, eq. 1).

    The alternatives to a positive are the anchor's negatives, as with two images a class.
    """
    same, different = pairs.same, pairs.different
    logits = pairs.cosine / temperature
    losses = F.softplus(masked_logsumexp(logits, different)[:, None] - logits)
    return masked_mean(losses, same & different.any(dim=1, keepdim=True))


@batch_loss
def snr(x: Tensor, y: Tensor, *, margin: float, zero_mean: float) -> Tensor:
    """Contrastive loss of the noise-to-signal ratio var(x_i - x_j) / var(x_i) (Yuan et al. 2019).

    A signal below 1e-12 (an embedding whose entries are all equal) counts as 1e-12.
    """
    same, different = pair_masks(y)
    centred = x - x.mean(dim=1, keepdim=True)
    signal = centred.square().mean(dim=1, keepdim=True).clamp(min=1e-12)
    ratio = euclidean(centred).square() / x.shape[1] / signal
    hinge = masked_mean(ratio, same) + masked_mean(F.relu(margin - ratio), different)
    return hinge + zero_mean * x.sum(dim=1).abs().mean()


@pair_loss
def tuplet_margin(
    pairs: Pairs, *, scale: float, margin: float, variance: float, epsilon: float
) -> Tensor:
    """Tuplet margin loss plus intra-pair variance loss (Yu and Tao, ICCV 2019)."""
    same, different = pairs.same, pairs.different
    cosine = pairs.cosine
    negatives = masked_logsumexp(scale * cosine, different)[:, None]
    losses = F.softplus(negatives - scale * cos_of_sum(cosine, -margin))
    tuplet = masked_mean(losses, same & different.any(dim=1, keepdim=True))
    low = F.relu((1 - epsilon) * masked_mean(cosine, same) - cosine).square()
    high = F.relu(cosine - (1 + epsilon) * masked_mean(cosine, different)).square()
    return tuplet + variance * (masked_mean(low, same) + masked_mean(high, different))


@batch_loss
def centroid_triplet(x: Tensor, y: Tensor, *, margin: float) -> Tensor:
    """Triplet loss on centroids of the batch's classes (Wieczorek et al. 2021).

    The anchor is left out of its own class's centroid; the negative is the nearest centroid of
    another class, as in the authors' code.
    """
    classes, position = torch.unique(y, return_inverse=True)
    member = F.one_hot(position, len(classes)).to(x.dtype)
    sums, counts = member.T @ x, member.sum(dim=0)
    others = counts[position] - 1
    own = (sums[position] - x) / others.clamp(min=1)[:, None]
    d_own = (x - own).square().sum(dim=1)
    d_all = (x[:, None] - sums / counts[:, None]).square().sum(dim=2)
    d_other = d_all.masked_fill(member.bool(), torch.finfo(x.dtype).max).amin(dim=1)
    return masked_mean(F.relu(d_own - d_other + margin), (others > 0) & (len(classes) > 1))
