"""Losses that pytorch-metric-learning computes exactly as their papers define them.

And ``pml:NAME``, which gives any other of its losses as it is.
"""

import inspect
from types import ModuleType
from typing import Any

import pytorch_metric_learning.losses
from pytorch_metric_learning import distances, miners, reducers
from torch import Tensor, nn

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import ParamValue
from mlbench.losses.batch import FullPrecision, euclidean
from mlbench.losses.sampling import DistanceWeighted

# Untyped: the types that defaults suggest are too narrow (alpha=32 for a float).
losses: Any = pytorch_metric_learning.losses


class Adapted(FullPrecision):
    """A pytorch-metric-learning loss, on the tuples that a miner picks if one is given."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, D)`` embeddings."""
        return self.loss(x, y, None if self.miner is None else self.miner(x, y))


class Euclidean(distances.LpDistance):
    """Distances of the embeddings as they are, without the rounding noise of a matrix product."""

    def __init__(self, power: int = 1) -> None:
        super().__init__(normalize_embeddings=False, power=power)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Return the ``(B, B)`` distances within the batch."""
        del ref_emb
        return euclidean(query_emb)


def batch_hard(num_classes: int, embedding_dim: int, *, margin: float, soft: bool) -> nn.Module:
    """Triplet loss of each anchor's hardest positive and negative (Hermans et al. 2017, eq. 5)."""
    del num_classes, embedding_dim
    return Adapted(_triplet(margin, soft), miners.BatchHardMiner(distance=Euclidean()))


def batch_all(num_classes: int, embedding_dim: int, *, margin: float, soft: bool) -> nn.Module:
    """Triplet loss of all triplets of the batch (Hermans et al. 2017, eq. 6)."""
    del num_classes, embedding_dim
    return Adapted(_triplet(margin, soft))


def _triplet(margin: float, soft: bool) -> nn.Module:
    # The default reducer would average over the triplets that violate the margin alone.
    mean = reducers.MeanReducer()
    return losses.TripletMarginLoss(
        margin=margin, smooth_loss=soft, distance=Euclidean(), reducer=mean
    )


def margin(
    num_classes: int,
    embedding_dim: int,
    *,
    margin: float,
    beta: float,
    nu: float,
    cutoff: float,
    far: float,
) -> nn.Module:
    """Margin loss with one learned boundary a class, distance-weighted triplets (Wu et al. 2017).

    The sum is divided by the number of pairs that violate their margin, as in the authors' code.
    """
    del embedding_dim
    loss = losses.MarginLoss(
        margin=margin,
        beta=beta,
        nu=nu,
        learn_beta=True,
        num_classes=num_classes,
        distance=Euclidean(),
    )
    return Adapted(loss, DistanceWeighted(cutoff, far))


def multi_similarity(
    num_classes: int,
    embedding_dim: int,
    *,
    alpha: float,
    beta: float,
    base: float,
    epsilon: float,
) -> nn.Module:
    """Multi-similarity loss on the pairs of its miner (Wang et al., CVPR 2019)."""
    del num_classes, embedding_dim
    return Adapted(
        losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base),
        miners.MultiSimilarityMiner(epsilon=epsilon),
    )


def angular(num_classes: int, embedding_dim: int, *, alpha: float) -> nn.Module:
    """Angular loss of all positive pairs of unit embeddings (Wang et al., ICCV 2017)."""
    del num_classes, embedding_dim
    return Adapted(losses.AngularLoss(alpha=alpha))


def fast_ap(num_classes: int, embedding_dim: int, *, bins: int) -> nn.Module:
    """1 - FastAP with soft bins of the squared distance of unit embeddings (Cakir et al. 2019)."""
    del num_classes, embedding_dim
    return Adapted(losses.FastAPLoss(num_bins=bins))


def by_name(name: str, num_classes: int, embedding_dim: int, **params: ParamValue) -> nn.Module:
    """Build ``LossClass`` or ``LossClass+MinerClass`` of pytorch-metric-learning.

    Args:
        name: of the class, and of the class of its miner.
        num_classes: passed on where the class takes it.
        embedding_dim: passed on as ``embedding_size`` where the class takes it.
        **params: arguments of the loss; those that begin with ``miner_`` are the miner's.

    Raises:
        MlbenchError: an unknown class, or arguments that it refuses.
    """
    loss_name, plus, miner_name = name.partition("+")
    of_miner = {k.removeprefix("miner_"): v for k, v in params.items() if k.startswith("miner_")}
    of_loss = {k: v for k, v in params.items() if not k.startswith("miner_")}
    sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
    if of_miner and not plus:
        raise MlbenchError(f"pml:{name} has no miner to take miner_{next(iter(of_miner))}")
    loss = _build(losses, losses.BaseMetricLossFunction, loss_name, of_loss, sizes)
    return Adapted(
        loss, _build(miners, miners.BaseMiner, miner_name, of_miner, {}) if plus else None
    )


def _build(
    module: ModuleType,
    base: type[nn.Module],
    name: str,
    params: dict[str, ParamValue],
    sizes: dict[str, int],
) -> nn.Module:
    kinds = {
        key: kind
        for key, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }
    if name not in kinds:
        raise unknown_name("class of pytorch-metric-learning", name, kinds)
    taken = _parameters(kinds[name])
    for key in params:
        if key not in taken:
            raise unknown_name(f"parameter of {name}", key, taken)
    given: dict[str, Any] = {k: v for k, v in sizes.items() if k in taken} | params
    try:
        return kinds[name](**given)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise MlbenchError(f"{name} of pytorch-metric-learning refuses {given}: {error}") from error


def _parameters(kind: type[nn.Module]) -> set[str]:
    """Return the named arguments of a class's constructor and, as it passes on, of its bases'."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name
        for cls in kind.__mro__
        if cls not in nn.Module.__mro__ and "__init__" in vars(cls)
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if parameter.kind in named
    }
