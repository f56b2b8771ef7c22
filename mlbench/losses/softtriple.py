"""SoftTriple and normalised softmax (Qian et al., ICCV 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.losses.starts import class_vectors

SAME_CENTER = 0.99
"""Cosine from which two centres of a class count as one in ``SoftTriple.report``."""


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
        init: how the centres start, as ``starts.class_vectors`` says; ``"kaiming-uniform"`` is
            the authors' code.

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
        self.centers = class_vectors(num_classes, centers_per_class, embedding_dim, init=init)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of unit ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        # Half precision would make near-equal centres look farther apart than 1 (NaN root).
        with torch.autocast(embeddings.device.type, enabled=False):
            length = self.centers.norm(dim=-1, keepdim=True)
            # A product with the inverse: a quotient's gradient costs several times as much.
            centers = self.centers * length.clamp(min=1e-12).reciprocal()
            # (B, K, C): softmax is slow over a short last dimension.
            similarity = embeddings.to(centers.dtype) @ centers.transpose(0, 1).flatten(0, 1).T
            similarity = similarity.unflatten(1, (centers.shape[1], centers.shape[0]))
            weights = F.softmax(similarity * (1 / self.gamma), dim=1)
            logits = (weights * similarity).sum(dim=1)
            loss = F.cross_entropy(self.la * self._minus_margin(logits, labels), labels)
            if self.tau == 0 or centers.shape[1] == 1:
                return loss
            return loss + self.tau * _mean_center_distance(centers)

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Return ``distinct_centers``, the mean number of distinct centres a class.

        The paper counts the centres that its regulariser has not merged, but gives no rule. Ours:
        two centres of a class are one if their cosine is at least 0.99 (8 degrees), or if others
        link them so.
        """
        centers = F.normalize(self.centers, dim=-1)
        linked = (centers @ centers.transpose(1, 2) >= SAME_CENTER).float()
        # A product need not round the two halves of a symmetric matrix alike.
        linked = torch.maximum(linked, linked.transpose(1, 2))
        for _ in range(linked.shape[1].bit_length()):
            linked = (linked @ linked > 0).float()
        return {"distinct_centers": (1 / linked.sum(dim=2)).sum(dim=1).mean().item()}

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
    # All pairs twice, the diagonal masked: quicker than to pick the upper triangle.
    others = 1 - torch.eye(k, device=centers.device, dtype=centers.dtype)
    # Above 1e-6 in fp32; TF32 rounds the diagonal to more than 1, whose root would be no number.
    distance = (2.0 + 1e-5 - 2.0 * gram).clamp(min=1e-6).sqrt() * others
    return distance.sum() / (2 * classes * k * (k - 1))
