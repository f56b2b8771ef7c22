"""Hypergraph-induced semantic tuplet loss (Lim et al., CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.losses.batch import FullPrecision
from mlbench.losses.starts import class_vectors

_LARGEST_LOG_VARIANCE = 6.0


class HIST(FullPrecision):
    """Class distributions, and a hypergraph network over the batch (Lim et al., CVPR 2022).

    Each class is a normal distribution with a diagonal covariance over unit embeddings. The batch's
    images are the nodes of a hypergraph whose edges are the classes that are present: an image is
    in its own class's with weight 1, in others by its distance. Two layers of hypergraph
    convolution then tell the classes of the raw embeddings.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        tau: scale of the squared Mahalanobis distances in the softmax over distributions.
        alpha: scale of the same where they become weights of the hypergraph.
        weight: of the hypergraph network's cross-entropy (lambda_s).
        hidden: width of its inner layer.
        init: how means and log-variances start, as ``starts.class_vectors`` says.

    Attributes:
        means: parameter of shape ``(C, D)``, normalised to unit length at use.
        log_variances: parameter of shape ``(C, D)``, taken within 0 .. 6.
        network: the two layers, with a batch norm between them.

    Raises:
        MlbenchError: no hidden unit.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        tau: float,
        alpha: float,
        weight: float,
        hidden: int,
        init: str,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise MlbenchError("hist: hidden must be at least 1")
        self.tau, self.alpha, self.weight = tau, alpha, weight
        self.means = class_vectors(num_classes, embedding_dim, init=init)
        self.log_variances = class_vectors(num_classes, embedding_dim, init=init)
        self.network = _HypergraphNetwork(embedding_dim, hidden, num_classes)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of raw ``(B, D)`` embeddings."""
        squared = self._distances(F.normalize(x, dim=1))
        own = F.one_hot(y, squared.shape[1]).to(x.dtype)
        incidence = own + (1 - own) * torch.exp(-self.alpha * squared)
        incidence = incidence * (own.sum(dim=0) > 0)
        distributions = F.cross_entropy(-self.tau * squared, y)
        return distributions + self.weight * F.cross_entropy(self.network(x, incidence), y)

    def _distances(self, unit: Tensor) -> Tensor:
        """Return the ``(B, C)`` squared Mahalanobis distances."""
        means = F.normalize(self.means.to(unit.dtype), dim=1)
        precision = torch.exp(-self.log_variances.to(unit.dtype).clamp(0, _LARGEST_LOG_VARIANCE))
        return ((unit[:, None] - means).square() * precision).sum(dim=2)


class _HypergraphNetwork(nn.Module):
    """Two hypergraph convolutions (Feng et al., AAAI 2019), batch norm and leaky ReLU between."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, incidence: Tensor) -> Tensor:
        """Return logits ``(B, C)`` for nodes ``(B, D)`` and their ``(B, E)`` weights in edges."""
        nodes = incidence.sum(dim=1, keepdim=True).rsqrt()
        edges = incidence.sum(dim=0).clamp(min=torch.finfo(x.dtype).tiny)
        spread = nodes * incidence / edges
        propagate = spread @ (nodes * incidence).T
        inner = propagate @ self.first(x)
        # The statistics of a single image say nothing; the running ones stand in.
        inner = self.norm(inner) if len(x) > 1 else self._running(inner)
        return propagate @ self.second(F.leaky_relu(inner, 0.1))

    def _running(self, inner: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(
            inner, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
