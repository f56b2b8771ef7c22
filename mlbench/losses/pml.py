"""Losses that pytorch-metric-learning computes exactly as their papers define them.

And ``pml:NAME``, which gives any other of its losses as it is, if it can train on embeddings and
labels alone.
"""

import copy
import inspect
from types import MethodType, ModuleType
from typing import Any

import pytorch_metric_learning.losses
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning.losses import GenericPairLoss
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_pairs
from torch import Tensor, nn

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import ParamValue
from mlbench.losses.batch import FullPrecision, euclidean
from mlbench.losses.sampling import DistanceWeighted

# What its losses and miners raise where they cannot go on.
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, IndexError, TypeError, ValueError)

# Untyped: the types that defaults suggest are too narrow (alpha=32 for a float).
losses: Any = pytorch_metric_learning.losses


class Adapted(FullPrecision):
    """A pytorch-metric-learning loss, on the tuples that a miner picks if one is given."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner
        if isinstance(loss, GenericPairLoss):
            loss.compute_loss = MethodType(_loss_of_pairs, loss)

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, D)`` embeddings.

        Raises:
            MlbenchError: the library does not take this batch.
        """
        try:
            return self.loss(x, y, None if self.miner is None else self.miner(x, y))
        except _REFUSALS as error:
            names = [type(m).__name__ for m in (self.loss, self.miner) if m is not None]
            reason = " ".join(str(error).split()) or type(error).__name__
            raise MlbenchError(
                f"{' with '.join(names)} of pytorch-metric-learning does not accept a batch of "
                f"{len(y)} embeddings with labels: {reason}; use another loss or miner"
            ) from error


def _loss_of_pairs(
    self: Any,
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: Any,
    ref_emb: Tensor,
    ref_labels: Tensor,
) -> Any:
    """Do as ``GenericPairLoss.compute_loss``, which takes one pair of each kind for none."""
    pairs = convert_to_pairs(indices_tuple, labels, ref_labels)
    if not any(map(len, pairs)):
        return self.zero_losses()
    return self.loss_method(self.distance(embeddings, ref_emb), pairs)


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
    if bins < 1:
        raise MlbenchError("fast_ap: bins must be at least 1")
    return Adapted(losses.FastAPLoss(num_bins=bins))


def by_name(name: str, num_classes: int, embedding_dim: int, **params: ParamValue) -> nn.Module:
    """Build ``LossClass`` or ``LossClass+MinerClass`` of pytorch-metric-learning.

    Args:
        name: of the class, and of the class of its miner.
        num_classes: passed on where the class takes it.
        embedding_dim: passed on as ``embedding_size`` where the class takes it.
        **params: arguments of the loss; those that begin with ``miner_`` are the miner's.

    Raises:
        MlbenchError: an unknown class, arguments that it refuses, or a loss or miner that cannot
            train on embeddings and labels alone.
    """
    loss_name, plus, miner_name = name.partition("+")
    of_miner = {k.removeprefix("miner_"): v for k, v in params.items() if k.startswith("miner_")}
    of_loss = {k: v for k, v in params.items() if not k.startswith("miner_")}
    sizes = {"num_classes": num_classes, "embedding_size": embedding_dim}
    if of_miner and not plus:
        raise MlbenchError(f"pml:{name} has no miner for miner_{next(iter(of_miner))}")
    loss = _build(losses, losses.BaseMetricLossFunction, loss_name, of_loss, sizes)
    miner = _build(miners, miners.BaseMiner, miner_name, of_miner, {}) if plus else None
    adapted = Adapted(loss, miner)
    _try_out(adapted, num_classes, embedding_dim)
    return adapted


def _try_out(adapted: Adapted, num_classes: int, embedding_dim: int) -> None:
    """Make one training step's passes with a copy, so that what cannot train is refused here."""
    with torch.random.fork_rng(devices=[]):
        labels = torch.arange(min(num_classes, 4)).repeat(4)
        leaf = torch.randn(len(labels), embedding_dim).requires_grad_()
        value = copy.deepcopy(adapted)(F.normalize(leaf), labels)
        if not isinstance(value, Tensor) or value.shape != () or not value.requires_grad:
            name = type(adapted.loss).__name__
            raise MlbenchError(f"{name} of pytorch-metric-learning returns no scalar to train with")
        value.backward()


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
        raise MlbenchError(f"{name} of pytorch-metric-learning rejects {given}: {error}") from error


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
