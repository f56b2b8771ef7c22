"""What losses share: full precision, and reductions over chosen pairs of a batch."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlbench.interfaces import ParamValue


class FullPrecision(nn.Module):
    """A loss whose ``compute`` gets float32 or float64 embeddings, under autocast too."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of float ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        with torch.autocast(embeddings.device.type, enabled=False):
            double = embeddings.dtype == torch.float64
            return self.compute(embeddings if double else embeddings.float(), labels)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, D)`` embeddings ``x`` and ``(B,)`` labels ``y``."""
        raise NotImplementedError


class BatchLoss(FullPrecision):
    """A loss that is a plain function of the batch.

    Args:
        function: ``function(x, y, **params)`` returns the scalar loss.
        num_classes: not used.
        embedding_dim: not used.
        **params: all keyword arguments of ``function``.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        num_classes: int,
        embedding_dim: int,
        **params: ParamValue,
    ) -> None:
        super().__init__()
        del num_classes, embedding_dim
        inspect.signature(function).bind_partial(**params)
        self.function, self.params = function, params

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``function(x, y, **params)``."""
        return self.function(x, y, **self.params)


def batch_loss(function: Callable[..., Tensor]) -> Callable[..., nn.Module]:
    """Make a loss factory of ``function(x, y, **params)``; the catalogue has the defaults."""
    return functools.partial(BatchLoss, function)


@dataclass(frozen=True)
class Pairs:
    """Images against others: those of one batch against each other, or a batch against a memory.

    Attributes:
        x: ``(A, D)`` embeddings of the anchors.
        others: ``(R, D)`` embeddings that they are compared with.
        same: ``(A, R)`` mask of positive pairs.
        different: ``(A, R)`` mask of negative pairs.
    """

    x: Tensor
    others: Tensor
    same: Tensor
    different: Tensor

    @property
    def cosine(self) -> Tensor:
        """The ``(A, R)`` dot products."""
        return self.x @ self.others.T

    @property
    def distance(self) -> Tensor:
        """The ``(A, R)`` distances; the gradient at distance 0 is 0."""
        return euclidean(self.x, self.others)


class PairLoss(BatchLoss):
    """A loss that is a function of ``Pairs``, so that it can compare a batch with a memory too."""

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the batch's images against each other."""
        return self.function(Pairs(x, x, *pair_masks(y)), **self.params)

    def against(self, x: Tensor, y: Tensor, others: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of a batch against ``(R, D)`` others of ``(R,)`` classes, -1 for none."""
        same = y[:, None] == classes
        return self.function(Pairs(x, others, same, ~same & (classes >= 0)), **self.params)


def pair_loss(function: Callable[..., Tensor]) -> Callable[..., nn.Module]:
    """Make a loss factory of ``function(pairs, **params)``; the catalogue has the defaults."""
    return functools.partial(PairLoss, function)


def pair_masks(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ``(B, B)`` masks of positive pairs (no image with itself) and negative pairs."""
    same = y[:, None] == y
    return same & ~torch.eye(len(y), dtype=torch.bool, device=y.device), ~same


def euclidean(x: Tensor, others: Tensor | None = None) -> Tensor:
    """Return all ``(B, R)`` distances to ``others``, or to each other; the gradient at 0 is 0.

    The matrix product that ``cdist`` uses by default would leave rounding noise of about
    ``3e-4 |x|`` (float32) in short distances.
    """
    others = x if others is None else others
    return torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the chosen values; 0, still differentiable, if none is chosen."""
    return values.where(mask, values.new_zeros(())).sum() / mask.sum().clamp(min=1)


def masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    """Return log-sum-exp over the chosen values of each row; about -1e38 for a row without any.

    Not minus infinity, whose gradient is NaN.
    """
    return values.masked_fill(~mask, torch.finfo(torch.float32).min).logsumexp(dim=1)


def cos_of_sum(cosine: Tensor, angle: float) -> Tensor:
    """Return ``cos(t + angle)`` for ``cosine = cos(t)``, ``t`` in 0 .. pi.

    Where ``sin(t)`` is 0 its gradient, which is infinite, is taken as 0.
    """
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).tiny).sqrt()
    return cosine * math.cos(angle) - sine * math.sin(angle)
