"""SoftTriple and normalised softmax (Qian et al., ICCV 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.errors import MlbenchError


class SoftTriple(nn.Module):
    """SoftTriple loss (Qian et al., ICCV 2019, eq. 6-9).

    The regulariser works on the ``C`` blocks of ``K x K`` similarities; the ``CK x CK`` matrix of
    the authors' code is never formed.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        centers_per_class: ``K``.
        la: scale of the logits (lambda).
        gamma: temperature of the soft assignment to a class's centres.
        tau: weight of the regulariser that merges a class's centres; no effect at K = 1.
        margin: subtracted from the similarity to the true class (delta).
        init: how the centres start: ``"kaiming-uniform"`` (the authors' code) or
            ``"xavier-normal"``, both for a ``D x CK`` matrix.

    Attributes:
        centers: parameter of shape ``(C, K, D)``, normalised to unit length at use.

    Raises:
        MlbenchError: a parameter is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        tau: float = 0.2,
        margin: float = 0.01,
        init: str = "kaiming-uniform",
    ) -> None:
        super().__init__()
        if centers_per_class < 1 or gamma <= 0 or la <= 0:
            raise MlbenchError(
                "softtriple: centers_per_class must be at least 1, gamma and la above 0"
            )
        self.la, self.gamma, self.tau, self.margin = la, gamma, tau, margin
        self.centers = nn.Parameter(torch.empty(num_classes, centers_per_class, embedding_dim))
        _initialise(self.centers, init)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of unit ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        # Half precision would make near-equal centres look farther apart than 1 (NaN root).
        with torch.autocast(embeddings.device.type, enabled=False):
            centers = F.normalize(self.centers, dim=-1)
            similarity = embeddings.to(centers.dtype) @ centers.flatten(0, 1).T
            similarity = similarity.unflatten(1, centers.shape[:2])
            weights = F.softmax(similarity / self.gamma, dim=2)
            logits = (weights * similarity).sum(dim=2)
            loss = F.cross_entropy(self.la * self._minus_margin(logits, labels), labels)
            if self.tau == 0 or centers.shape[1] == 1:
                return loss
            return loss + self.tau * _mean_center_distance(centers)

    def _minus_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        margin = torch.zeros_like(logits).scatter_(1, labels[:, None], self.margin)
        return logits - margin


def softmax_norm(
    num_classes: int, embedding_dim: int, *, la: float = 20.0, init: str = "kaiming-uniform"
) -> SoftTriple:
    """Build SoftMax_norm: SoftTriple with K = 1, no margin, no regulariser (eq. 3)."""
    return SoftTriple(
        num_classes, embedding_dim, centers_per_class=1, la=la, tau=0.0, margin=0.0, init=init
    )


def _mean_center_distance(centers: Tensor) -> Tensor:
    """Eq. 9 for unit ``(C, K, D)`` centres; 1e-5 under the root as in the authors' code."""
    classes, k, _ = centers.shape
    gram = centers @ centers.transpose(1, 2)
    s, t = torch.triu_indices(k, k, offset=1, device=centers.device)
    return (2.0 + 1e-5 - 2.0 * gram[:, s, t]).sqrt().sum() / (classes * k * (k - 1))


def _initialise(centers: nn.Parameter, init: str) -> None:
    columns, dim = centers.shape[0] * centers.shape[1], centers.shape[2]
    if init == "kaiming-uniform":
        bound = 1 / math.sqrt(columns)
        nn.init.uniform_(centers, -bound, bound)
    elif init == "xavier-normal":
        nn.init.normal_(centers, std=math.sqrt(2 / (columns + dim)))
    else:
        raise MlbenchError(f"unknown init '{init}'; use kaiming-uniform or xavier-normal")
