"""Losses of class vectors from face recognition whose margin or gradient adapts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbench.losses.batch import FullPrecision
from mlbench.losses.starts import class_vectors

_EPSILON = 1e-3  # of the authors' code: keeps angles from 0 and pi
_SHORTEST, _LONGEST = 1e-3, 100.0  # likewise, of embeddings


class AdaFace(FullPrecision):
    """AdaFace (Kim et al., CVPR 2022): margins by the length of the embedding.

    Images whose embeddings are long, and so of good quality, get an angular margin below 0 and a
    large one on the cosine; short ones the other way round.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        margin: of both kinds (m).
        scale: of the logits.
        concentration: by how much the normalised length moves the margins (h).
        momentum: weight of a batch in the running mean and deviation of lengths.
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.
        mean: buffer, running mean of the lengths of embeddings.
        deviation: buffer, running standard deviation of the same.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float,
        scale: float,
        concentration: float,
        momentum: float,
        init: str,
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.concentration, self.momentum = concentration, momentum
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over raw ``(B, D)`` embeddings."""
        logits = F.normalize(x, dim=1) @ F.normalize(self.proxies.to(x.dtype), dim=1).T
        cosine = logits.clamp(_EPSILON - 1, 1 - _EPSILON)
        quality = self._quality(x.detach().norm(dim=1, keepdim=True))
        own = cosine.gather(1, y[:, None])
        angle = (own.acos() - self.margin * quality).clamp(_EPSILON, math.pi - _EPSILON)
        target = angle.cos() - (self.margin + self.margin * quality)
        return F.cross_entropy(self.scale * cosine.scatter(1, y[:, None], target), y)

    def _quality(self, lengths: Tensor) -> Tensor:
        """Return the lengths relative to their running mean, within -1 .. 1; update that first."""
        lengths = lengths.clamp(_SHORTEST, _LONGEST)
        if self.training:
            self.mean = self.mean.lerp(lengths.mean(), self.momentum)
            if len(lengths) > 1:
                self.deviation = self.deviation.lerp(lengths.std(), self.momentum)
        relative = (lengths - self.mean) / (self.deviation + _EPSILON)
        return (self.concentration * relative).clamp(-1, 1)


class P2SGrad(FullPrecision):
    """P2SGrad (Zhang et al., CVPR 2019, eq. 11): gradients as strong as probabilities are wrong.

    The loss whose gradient is that of the paper: half the squared distance of an image's cosines to
    all proxies from 1 for its class and 0 for the others.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, init: str) -> None:
        super().__init__()
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over unit ``(B, D)`` embeddings."""
        cosine = x @ F.normalize(self.proxies.to(x.dtype), dim=1).T
        wanted = F.one_hot(y, cosine.shape[1])
        return (cosine - wanted).square().sum(dim=1).mean() / 2
