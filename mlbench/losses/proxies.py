"""Losses with one learned proxy, or a few, a class."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mlbench.errors import MlbenchError
from mlbench.losses.batch import FullPrecision, cos_of_sum, masked_logsumexp, masked_mean
from mlbench.losses.starts import class_vectors


class ProxyNCA(FullPrecision):
    """Proxy-NCA (Movshovitz-Attias et al., ICCV 2017): the true class is no alternative.

    pytorch-metric-learning puts the true class into the denominator, which is Proxy-NCA++.

    Args:
        num_classes: ``C``, at least 2.
        embedding_dim: ``D``.
        scale: factor of the squared distances (the paper has none: 1).
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.

    Raises:
        MlbenchError: fewer than two classes.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, scale: float = 1.0, init: str
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise MlbenchError("proxy_nca: num_classes must be at least 2")
        self.scale = scale
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over unit ``(B, D)`` embeddings."""
        distance = self.scale * _squared_distance(x, self.proxies)
        other = torch.ones_like(distance, dtype=torch.bool).scatter(1, y[:, None], value=False)
        own = distance.gather(1, y[:, None]).squeeze(1)
        return (own + masked_logsumexp(-distance, other)).mean()


class ProxyNCApp(FullPrecision):
    """Proxy-NCA++ (Teh et al., ECCV 2020): softmax over all proxies at low temperature.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        temperature: divides the squared distances (1/9 in the paper).
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, temperature: float = 1 / 9, init: str
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over unit ``(B, D)`` embeddings."""
        return F.cross_entropy(-_squared_distance(x, self.proxies) / self.temperature, y)


class ProxyAnchor(FullPrecision):
    """Proxy-Anchor (Kim et al., CVPR 2020, eq. 4): each proxy against all images of the batch.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        alpha: scale of the cosines.
        margin: of positive and negative cosines (delta).
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        alpha: float = 32.0,
        margin: float = 0.1,
        init: str,
    ) -> None:
        super().__init__()
        self.alpha, self.margin = alpha, margin
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over present classes plus the mean over all, unit embeddings."""
        cosine = F.normalize(self.proxies.to(x.dtype), dim=1) @ x.T
        own = torch.arange(len(cosine), device=y.device)[:, None] == y
        pull = F.softplus(masked_logsumexp(-self.alpha * (cosine - self.margin), own))
        push = F.softplus(masked_logsumexp(self.alpha * (cosine + self.margin), ~own))
        return masked_mean(pull, own.any(dim=1)) + push.mean()


class _MarginSoftmax(FullPrecision):
    """Cross-entropy of scaled cosines, that of the true class made smaller by ``with_margin``.

    Attributes:
        proxies: parameter of shape ``(C, K, D)``, normalised to unit length at use; the nearest of
            a class's ``K`` counts.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, margin: float, scale: float, init: str
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.proxies = class_vectors(*shape, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over unit ``(B, D)`` embeddings."""
        centers = F.normalize(self.proxies.to(x.dtype), dim=2)
        cosine = (x @ centers.flatten(0, 1).T).unflatten(1, centers.shape[:2]).amax(dim=2)
        target = self.with_margin(cosine.gather(1, y[:, None]))
        return F.cross_entropy(self.scale * cosine.scatter(1, y[:, None], target), y)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """Return what stands for the cosine to the true class."""
        raise NotImplementedError


class ArcFace(_MarginSoftmax):
    """ArcFace (Deng et al., CVPR 2019, eq. 3), with sub-centres (Deng et al., ECCV 2020, eq. 2).

    Where the angle plus the margin exceeds pi, the target logit is ``cos(t) - margin sin(margin)``
    as in the authors' code, which keeps it decreasing.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        margin: added to the angle to the true class, radians.
        scale: of the logits.
        sub_centers: ``K`` centres a class.
        init: how the centres start, as ``starts.class_vectors`` says.

    Raises:
        MlbenchError: no centre.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        sub_centers: int = 1,
        init: str,
    ) -> None:
        if sub_centers < 1:
            raise MlbenchError("sub_center_arcface: sub_centers must be at least 1")
        shape = (num_classes, sub_centers, embedding_dim)
        super().__init__(shape, margin=margin, scale=scale, init=init)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """Return ``cos(t + margin)``."""
        beyond = cosine < -math.cos(self.margin)
        straight = cosine - self.margin * math.sin(self.margin)
        return torch.where(beyond, straight, cos_of_sum(cosine, self.margin))


class CosFace(_MarginSoftmax):
    """Large margin cosine loss (Wang et al., CVPR 2018, eq. 4).

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        margin: taken from the cosine to the true class.
        scale: of the logits.
        init: how the proxies start, as ``starts.class_vectors`` says.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        margin: float = 0.35,
        scale: float = 64.0,
        init: str,
    ) -> None:
        super().__init__((num_classes, 1, embedding_dim), margin=margin, scale=scale, init=init)

    def with_margin(self, cosine: Tensor) -> Tensor:
        """Return ``cos(t) - margin``."""
        return cosine - self.margin


class SphereFace(FullPrecision):
    """A-Softmax (Liu et al., CVPR 2017, eq. 7) without the annealing of the authors' code.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        margin: factor of the angle to the true class.
        init: how the proxies start, as ``starts.class_vectors`` says.

    Attributes:
        proxies: parameter of shape ``(C, D)``, normalised to unit length at use.

    Raises:
        MlbenchError: a margin below 1.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, margin: int = 4, init: str) -> None:
        super().__init__()
        if margin < 1:
            raise MlbenchError("sphereface: margin must be at least 1")
        self.margin = margin
        self.proxies = class_vectors(num_classes, embedding_dim, init=init)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean over raw ``(B, D)`` embeddings."""
        logits = x @ F.normalize(self.proxies.to(x.dtype), dim=1).T
        length = x.norm(dim=1, keepdim=True)
        cosine = logits.gather(1, y[:, None]) / length.clamp(min=torch.finfo(x.dtype).eps)
        return F.cross_entropy(logits.scatter(1, y[:, None], length * self._psi(cosine)), y)

    def _psi(self, cosine: Tensor) -> Tensor:
        """Return ``(-1)^k cos(m t) - 2 k`` with ``k = floor(m t / pi)``, from ``cos(t)``."""
        before, multiple = torch.ones_like(cosine), cosine
        for _ in range(self.margin - 1):
            before, multiple = multiple, 2 * cosine * multiple - before
        angle = cosine.detach().clamp(-1, 1).acos()
        k = (self.margin * angle / math.pi).floor().clamp(max=self.margin - 1)
        return (1 - 2 * (k % 2)) * multiple - 2 * k


def _squared_distance(x: Tensor, proxies: Tensor) -> Tensor:
    """Return ``(B, C)`` squared distances to the proxies scaled to unit length."""
    unit = F.normalize(proxies.to(x.dtype), dim=1)
    return x.square().sum(dim=1, keepdim=True) + 1 - 2 * x @ unit.T
