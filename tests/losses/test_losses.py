"""The four losses against formulas written from the papers, value and gradient."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor

import mlbench
from mlbench.contract import check_loss
from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry
from mlbench.losses.softtriple import _mean_center_distance
from mlbench.registry import LOSSES

pytestmark = pytest.mark.numeric

C, D = 5, 6


def softtriple_formula(
    x: Tensor, y: Tensor, w: Tensor, la: float, gamma: float, tau: float, margin: float
) -> Tensor:
    """Qian et al. 2019, eq. 6-9, term by term (1e-5 under the root: the authors' code)."""
    classes, k, _ = w.shape
    w = w / w.norm(dim=2, keepdim=True)
    total = x.new_zeros(())
    for i in range(len(x)):
        scores = []
        for c in range(classes):
            sims = [torch.dot(x[i], w[c, j]) for j in range(k)]
            powers = [torch.exp(s / gamma) for s in sims]
            scores.append(sum(p * s for p, s in zip(powers, sims, strict=True)) / sum(powers))
        logits = [la * (s - margin * (c == int(y[i]))) for c, s in enumerate(scores)]
        total = total - logits[int(y[i])] + torch.stack(logits).exp().sum().log()
    loss = total / len(x)
    if k == 1:
        return loss
    distance = x.new_zeros(())
    for c in range(classes):
        for s in range(k):
            for t in range(s + 1, k):
                distance = distance + torch.sqrt(2 + 1e-5 - 2 * torch.dot(w[c, s], w[c, t]))
    return loss + tau * distance / (classes * k * (k - 1))


def npairs_formula(x: Tensor, y: Tensor, l2_reg: float) -> Tensor:
    """Sohn 2016, eq. 6, with the L2 term of its section 3.2.2."""
    pairs = []
    for c in sorted(set(y.tolist())):
        rows = [i for i in range(len(y)) if y[i] == c]
        if len(rows) > 1:
            pairs.append((x[rows[0]], x[rows[1]]))
    total = x.new_zeros(())
    for i, (a, p) in enumerate(pairs):
        others = [
            torch.exp(torch.dot(a, q) - torch.dot(a, p)) for j, (_, q) in enumerate(pairs) if j != i
        ]
        total = total + torch.log(1 + torch.stack(others).sum())
    return total / len(pairs) + l2_reg * sum(torch.dot(v, v) for v in x) / len(x)


def triplet_formula(x: Tensor, y: Tensor, margin: float) -> Tensor:
    """Schroff et al. 2015, eq. 1 over the semi-hard triplets of eq. 4."""
    terms = []
    n = len(x)
    for a in range(n):
        for p in range(n):
            for q in range(n):
                if a == p or y[a] != y[p] or y[a] == y[q]:
                    continue
                ap, an = (x[a] - x[p]).square().sum(), (x[a] - x[q]).square().sum()
                if ap < an < ap + margin:
                    terms.append(ap - an + margin)
    assert terms, "the test needs a semi-hard triplet"
    return torch.stack(terms).mean()


def unit(n: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(n, D, dtype=torch.float64)
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


def assert_same(
    ours: Callable[[Tensor], Tensor], formula: Callable[[Tensor], Tensor], x: Tensor, tol: float
) -> None:
    mine = x.clone().requires_grad_()
    reference = x.double().clone().requires_grad_()
    value, expected = ours(mine), formula(reference)
    (gradient,) = torch.autograd.grad(value, mine)
    (expected_gradient,) = torch.autograd.grad(expected, reference)
    assert value.shape == ()
    assert abs(value.item() - expected.item()) < tol
    assert (gradient.double() - expected_gradient).abs().max() < tol


def test_softtriples_regulariser_is_finite_where_products_are_rounded() -> None:
    """TF32 leaves the squares of unit centres up to a thousandth above 1."""
    centers = (1.001 * unit(12, torch.float32)).view(3, 4, -1).requires_grad_()
    value = _mean_center_distance(centers)
    value.backward()
    assert centers.grad is not None
    assert value.isfinite()
    assert centers.grad.isfinite().all()


PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-6)]


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_softtriple_is_the_papers(dtype: torch.dtype, tol: float, k: int) -> None:
    parameters = {"la": 3.0, "gamma": 0.2, "tau": 0.7, "margin": 0.1}
    loss = mlbench.build_loss("softtriple", C, D, centers_per_class=k, **parameters).to(dtype)
    x, y = unit(7, dtype), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    w = loss.get_parameter("centers")

    assert_same(
        lambda v: loss(v, y),
        lambda v: softtriple_formula(v, y, w.detach().double(), **parameters),
        x,
        tol,
    )
    centers = w.detach().double().requires_grad_()
    expected = torch.autograd.grad(
        softtriple_formula(x.double(), y, centers, **parameters), centers
    )
    (gradient,) = torch.autograd.grad(loss(x, y), w)
    # Centres are short (0.1), so gradients are ten times those of unit vectors.
    assert (gradient.double() - expected[0]).abs().max() < 10 * tol


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
def test_softmax_norm_is_cross_entropy_of_cosines(dtype: torch.dtype, tol: float) -> None:
    loss = mlbench.build_loss("softmax_norm", C, D).to(dtype)
    x, y = unit(7, dtype), torch.tensor([0, 1, 2, 3, 4, 0, 2])
    w = loss.get_parameter("centers").detach().double()[:, 0]
    w = w / w.norm(dim=1, keepdim=True)

    def formula(v: Tensor) -> Tensor:
        scores = torch.exp(20 * (v @ w.T))
        return -torch.log(scores[torch.arange(7), y] / scores.sum(dim=1)).mean()

    assert_same(lambda v: loss(v, y), formula, x, tol * 10 if dtype == torch.float32 else tol)


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
def test_npairs_is_the_papers(dtype: torch.dtype, tol: float) -> None:
    loss = mlbench.build_loss("npairs", C, D, l2_reg=0.03)
    x = 0.5 * torch.randn(9, D, dtype=dtype)
    y = torch.tensor([3, 1, 3, 0, 0, 1, 3, 4, 0])  # class 4 has no pair
    assert_same(lambda v: loss(v, y), lambda v: npairs_formula(v, y, 0.03), x, tol)


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
def test_triplet_is_the_papers(dtype: torch.dtype, tol: float) -> None:
    loss = mlbench.build_loss("triplet", C, D, margin=0.3)
    x, y = unit(12, dtype), torch.arange(12) % 4
    assert_same(lambda v: loss(v, y), lambda v: triplet_formula(v, y, 0.3), x, tol)


def test_triplet_is_pytorch_metric_learnings() -> None:
    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    theirs = losses.TripletMarginLoss(margin=0.2, distance=squared)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=squared)
    x, y = unit(40, torch.float64), torch.arange(40) % 8
    ours = mlbench.build_loss("triplet", C, D)
    assert_same(lambda v: ours(v, y), lambda v: theirs(v, y, miner(v, y)), x, 1e-9)


def test_triplet_without_semihard_triplets_is_zero() -> None:
    x = torch.eye(D)[[0, 0, 1, 1]].requires_grad_()
    value = mlbench.build_loss("triplet", C, D)(x, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == 0


def test_npairs_without_negatives_is_its_l2_term() -> None:
    loss = mlbench.build_loss("npairs", C, D, l2_reg=0.5)
    x = torch.ones(2, D)
    assert float(loss(x, torch.tensor([1, 1]))) == pytest.approx(0.5 * D)


@pytest.mark.parametrize("init", ["kaiming-uniform", "xavier-normal"])
def test_centres_start_as_the_authors_do(init: str) -> None:
    loss = mlbench.build_loss("softtriple", 40, 64, centers_per_class=10, init=init)
    centers = loss.get_parameter("centers").detach()
    matrix = torch.empty(64, 400)
    if init == "kaiming-uniform":
        torch.nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        assert float(centers.abs().max()) == pytest.approx(float(matrix.abs().max()), rel=1e-2)
    else:
        torch.nn.init.xavier_normal_(matrix)
    assert float(centers.std()) == pytest.approx(float(matrix.std()), rel=0.02)


def test_autocast_does_not_break_near_equal_centres() -> None:
    loss = mlbench.build_loss("softtriple", C, D)
    with torch.no_grad():
        loss.get_parameter("centers").copy_(torch.randn(C, 1, D).expand(C, 10, D))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(loss(unit(3, torch.bfloat16), torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("softtripel", {}, "did you mean softtriple"),
        ("softtriple", {"lambda_": 2.0}, "unknown parameter of softtriple 'lambda_'"),
        ("softtriple", {"la": "x"}, "expected a number"),
        ("softtriple", {"centers_per_class": 0}, "at least 1"),
        ("softtriple", {"init": "zeros"}, "unknown init 'zeros'"),
    ],
)
def test_bad_losses_are_named(name: str, params: dict[str, str | float], message: str) -> None:
    with pytest.raises(mlbench.MlbenchError, match=message):
        mlbench.build_loss(name, C, D, **params)


@pytest.mark.parametrize(("classes", "dim"), [(0, 4), (-1, 4), (4, 0), (2.5, 4), (None, 4)])
def test_impossible_sizes_are_named(classes: Any, dim: Any) -> None:
    with pytest.raises(mlbench.MlbenchError, match="integer of at least 1"):
        mlbench.build_loss("softtriple", classes, dim)


def test_numbers_of_numpy_and_torch_build_the_same_loss() -> None:
    torch.manual_seed(0)
    plain = mlbench.build_loss("softtriple", 4, 3, centers_per_class=2, la=1.5)
    torch.manual_seed(0)
    numbers: Any = {"centers_per_class": np.int8(2), "la": np.float32(1.5)}
    other = mlbench.build_loss("softtriple", np.int64(4), torch.tensor(3), **numbers)  # type: ignore[arg-type]
    assert torch.equal(plain.get_parameter("centers"), other.get_parameter("centers"))
    assert (type(other.la), other.la) == (float, 1.5)


def test_a_declaration_in_numbers_of_numpy_is_pythons_own() -> None:
    entry = LossEntry(
        name="mine",
        target="mlbench.losses.pairs:contrastive",
        summary="",
        images_per_class=np.int64(4),  # type: ignore[arg-type]
        lr=np.float64(0.5),
        defaults={"margin": np.float32(1)},  # type: ignore[dict-item]
    )
    assert [type(v) for v in (entry.images_per_class, entry.lr, entry.defaults["margin"])] == [
        int,
        float,
        float,
    ]
    assert all(result.passed for result in check_loss(replace(entry, lr=None)))


def test_a_loss_whose_code_is_not_there_is_named() -> None:
    for target in ("no_such_module:Loss", "mlbench.losses.pairs:no_such_loss"):
        entry = LossEntry(name="mine", target=target, summary="")
        with pytest.raises(mlbench.MlbenchError, match="'mine' cannot be loaded"):
            entry.build(4, 3, {})


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES.entries() if not entry.prefix])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_embeddings_that_have_diverged_give_a_value_and_no_error(name: str, value: float) -> None:
    x = torch.randn(12, D)
    x[3, 2] = value
    context = ({"step": 10**6},) if LOSSES.get(name).context else ()
    loss = mlbench.build_loss(name, C, D)(x.requires_grad_(), torch.arange(12) % 4, *context)
    loss.backward()
    assert loss.shape == ()


@pytest.mark.parametrize("name", ["histogram", "fast_ap"])
@pytest.mark.parametrize("bins", [0, -1])
def test_histograms_without_bins_are_refused(name: str, bins: int) -> None:
    with pytest.raises(MlbenchError, match="bins must be at least 1"):
        mlbench.build_loss(name, C, D, bins=bins)


def test_a_histogram_of_nan_is_nan() -> None:
    x = torch.randn(12, D)
    x[3, 2] = math.nan
    assert mlbench.build_loss("histogram", C, D)(x, torch.arange(12) % 4).isnan()
