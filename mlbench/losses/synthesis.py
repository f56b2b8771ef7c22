"""Proxy Synthesis (Gu et al., AAAI 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from mlbench.errors import MlbenchError
from mlbench.losses.batch import FullPrecision
from mlbench.losses.starts import class_vectors


class ProxySynthesis(FullPrecision):
    """Normalised softmax with synthetic classes between those of the batch (Gu et al. 2021).

    An image and one of another class, drawn at random, make an embedding between the two; their
    proxies, mixed alike, make its class, which is a further alternative to all others.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        scale: of the cosines.
        mixing: both parameters of the beta distribution from which the share of the first image is
            drawn, one for a batch (alpha).
        ratio: synthetic classes to images of the batch (mu), at most 1.
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.

    Raises:
        MlbenchError: a parameter is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        scale: float,
        mixing: float,
        ratio: float,
        init: str,
    ) -> None:
        super().__init__()
        if mixing <= 0 or not 0 <= ratio <= 1:
            raise MlbenchError("proxy_synthesis: mixing must be above 0, ratio from 0 to 1")
        self.scale, self.mixing, self.ratio = scale, mixing, ratio
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over unit ``(B, D)`` embeddings and the synthetic ones."""
        first, second, share, real = self.draw(y)
        proxies = F.normalize(self.proxies.to(x.dtype), dim=1)
        between = _between(x[first], x[second], share)
        classes = _between(proxies[y[first]], proxies[y[second]], share)
        logits = self.scale * torch.cat([x, between]) @ torch.cat([proxies, classes]).T
        # A pair within one class makes no class: neither an alternative nor an image.
        absent = torch.cat([torch.zeros(len(proxies), dtype=torch.bool, device=x.device), ~real])
        logits = logits.masked_fill(absent, torch.finfo(torch.float32).min)
        target = torch.cat([y, len(proxies) + torch.arange(len(first), device=y.device)])
        losses = F.cross_entropy(logits, target, reduction="none")
        counted = torch.cat([torch.ones_like(y, dtype=torch.bool), real])
        return losses.where(counted, losses.new_zeros(())).sum() / counted.sum()

    @torch.no_grad()
    def draw(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw ``n`` pairs of images of two classes and the share of the first.

        Draws follow the classes, not the places in the batch.

        Returns:
            the ``(n,)`` places of the first and the second images, the share, and ``(n,)`` whether
            the two are of different classes, as they are if there are any others.
        """
        order = torch.sort(y, stable=True).indices
        count = int(self.ratio * len(y))
        first = torch.randperm(len(y), device=y.device)[:count]
        sorted_y = y[order]
        different = sorted_y[first, None] != sorted_y
        other = different.any(dim=1)
        # A row without any other class draws from all, to be left out.
        second = torch.multinomial((different | ~other[:, None]).float(), 1).squeeze(1)
        mixing = torch.full((), self.mixing, device=y.device)
        share = Beta(mixing, mixing, validate_args=False).sample()
        return order[first], order[second], share, other


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return F.normalize(share * a + (1 - share) * b, dim=1)
