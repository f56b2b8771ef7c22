"""The losses of 2019 and later that are not in test_golden.py, against their equations in loops."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers.formulas import (
    cross_entropy,
    distance,
    hinge,
    mean,
    negatives,
    pairs,
    positives,
    total,
    unit,
)
from torch import Tensor, nn

import mlbench
from mlbench.errors import MlbenchError
from mlbench.interfaces import ParamValue
from mlbench.losses import BUILTIN, ranking
from mlbench.losses.batch import PairLoss
from mlbench.losses.hist import HIST
from mlbench.losses.memory import COMPARABLE, CrossBatchMemory
from mlbench.losses.synthesis import ProxySynthesis
from mlbench.registry import LOSSES

pytestmark = pytest.mark.numeric

C, D = 5, 6
LABELS = [3, 1, 3, 0, 0, 1, 3, 4, 0]  # classes of two and three, a lone image, a class not there


def contrastive_cosine(x: Tensor, y: list[int], _: nn.Module, margin: float) -> Tensor:
    terms = [1 - torch.dot(x[a], x[p]) for a, p in pairs(y)]
    terms += [hinge(torch.dot(x[a], x[n]) - margin) for a in range(len(y)) for n in negatives(y, a)]
    return total([*terms, 0 * x.sum()]) / len(y)


def ranked_list(
    x: Tensor,
    y: list[int],
    _: nn.Module,
    alpha: float,
    margin: float,
    temperature: float,
    balance: float,
) -> Tensor:
    terms = []
    for a in range(len(y)):
        far = [distance(x[a], x[p]) - (alpha - margin) for p in positives(y, a)]
        near = [alpha - distance(x[a], x[n]) for n in negatives(y, a)]
        far, near = ([v for v in each if v.item() > 0] for each in (far, near))
        weights = [math.exp(temperature * v.item()) for v in near]
        zero = 0 * x[a].sum()
        pull = mean(far) if far else zero
        weighted = [w * v for w, v in zip(weights, near, strict=True)]
        push = total(weighted) / sum(weights) if near else zero
        terms.append((1 - balance) * pull + balance * push)
    return mean(terms)


def roadmap(
    x: Tensor,
    y: list[int],
    _: nn.Module,
    temperature: float,
    slope: float,
    delta: float,
    positive_margin: float,
    negative_margin: float,
    calibration: float,
) -> Tensor:
    def bound(t: Tensor) -> Tensor:
        if t.item() <= 0:
            return torch.sigmoid(t / temperature)
        if t.item() <= delta:
            return torch.sigmoid(t / temperature) + 0.5
        return slope * (t - delta) + 1 / (1 + math.exp(-delta / temperature)) + 0.5

    losses, calibrated = [], []
    for q in range(len(y)):
        s = [torch.dot(x[q], v) for v in x]
        precisions = []
        for p in positives(y, q):
            rank = 1 + sum(s[j].item() >= s[p].item() for j in positives(y, q) if j != p)
            wrong = total([bound(s[n] - s[p]) for n in negatives(y, q)])
            precisions.append(rank / (rank + wrong))
        if precisions:
            losses.append(1 - mean(precisions))
        low = [hinge(positive_margin - s[p]) for p in positives(y, q)]
        high = [hinge(s[n] - negative_margin) for n in negatives(y, q)]
        calibrated += [sum(mean(each) for each in (low, high) if each)]
    return (1 - calibration) * mean(losses) + calibration * mean(calibrated)  # type: ignore[arg-type]


def recall_surrogate(
    x: Tensor,
    y: list[int],
    _: nn.Module,
    largest_k: int,
    rank_temperature: float,
    k_temperature: float,
) -> Tensor:
    assert largest_k == 4
    terms = []
    for q in range(len(y)):
        s = [torch.dot(x[q], v) for v in x]
        found = positives(y, q)
        for k in (1, 2, 4) if found else ():
            inside = []
            for p in found:
                before = [j for j in range(len(y)) if j not in (p, q)]
                rank = 1 + total([torch.sigmoid((s[j] - s[p]) / rank_temperature) for j in before])
                inside.append(torch.sigmoid((k - rank) / k_temperature))
            terms.append(1 - torch.clamp(total(inside), max=k) / min(k, len(found)))
    return mean(terms)


def p2sgrad(x: Tensor, y: list[int], loss: nn.Module) -> Tensor:
    w = loss.get_parameter("proxies")
    terms = []
    for v, c in zip(x, y, strict=True):
        cosines = [torch.dot(v, unit(p)) for p in w]
        terms.append(total([(s - float(k == c)) ** 2 for k, s in enumerate(cosines)]) / 2)
    return mean(terms)


def adaface(
    x: Tensor,
    y: list[int],
    loss: nn.Module,
    margin: float,
    scale: float,
    concentration: float,
    momentum: float,
) -> Tensor:
    lengths = torch.stack([v.detach().square().sum().sqrt().clamp(1e-3, 100) for v in x])
    average = (1 - momentum) * 20 + momentum * lengths.mean()
    spread = (lengths - lengths.mean()).square().sum() / (len(y) - 1)
    deviation = (1 - momentum) * 100 + momentum * spread.sqrt()
    terms = []
    for v, c, length in zip(x, y, lengths, strict=True):
        q = torch.clamp(concentration * (length - average) / (deviation + 1e-3), -1, 1)
        cosines = [torch.dot(unit(v), unit(p)) for p in loss.get_parameter("proxies")]
        logits = [scale * s for s in cosines]
        angular, additive = -margin * q, margin + margin * q
        logits[c] = scale * (torch.cos(torch.acos(cosines[c]) + angular) - additive)
        terms.append(cross_entropy(logits, c))
    return mean(terms)


def hist(
    x: Tensor,
    y: list[int],
    loss: nn.Module,
    tau: float,
    alpha: float,
    weight: float,
    hidden: int,
) -> Tensor:
    assert isinstance(loss, HIST)
    assert loss.network.first.out_features == hidden
    n, present = len(y), sorted(set(y))
    squared = [
        [
            total(
                [
                    (a - m) ** 2 / torch.exp(torch.clamp(v, 0, 6))
                    for a, m, v in zip(unit(row), unit(mu), variances, strict=True)
                ]
            )
            for mu, variances in zip(loss.means, loss.log_variances, strict=True)
        ]
        for row in x
    ]
    first = mean([cross_entropy([-tau * d for d in squared[i]], y[i]) for i in range(n)])
    one = torch.ones((), dtype=x.dtype)
    h = torch.stack(
        [
            torch.stack([one if c == y[i] else torch.exp(-alpha * squared[i][c]) for c in present])
            for i in range(n)
        ]
    )
    node, edge = h.sum(dim=1), h.sum(dim=0)
    g = torch.diag(node**-0.5) @ h @ torch.diag(1 / edge) @ h.T @ torch.diag(node**-0.5)
    inner = g @ (x @ loss.network.first.weight.T + loss.network.first.bias)
    inner = (inner - inner.mean(dim=0)) / (inner.var(dim=0, unbiased=False) + 1e-5).sqrt()
    inner = inner * loss.network.norm.weight + loss.network.norm.bias
    inner = torch.where(inner > 0, inner, 0.1 * inner)
    logits = g @ (inner @ loss.network.second.weight.T + loss.network.second.bias)
    second = mean([cross_entropy(list(logits[i]), y[i]) for i in range(n)])
    return first + weight * second


def proxy_synthesis(
    x: Tensor, y: list[int], loss: nn.Module, scale: float, mixing: float, ratio: float
) -> Tensor:
    assert isinstance(loss, ProxySynthesis)
    assert (loss.mixing, loss.ratio) == (mixing, ratio)
    torch.manual_seed(1)
    first, second, share, real = loss.draw(torch.tensor(y))
    proxies = [unit(p) for p in loss.get_parameter("proxies")]
    images, targets = list(x), list(y)
    assert len(first) == int(ratio * len(y))
    for i, j in zip(first[real].tolist(), second[real].tolist(), strict=True):
        assert y[i] != y[j]
        images.append(unit(share * x[i] + (1 - share) * x[j]))
        targets.append(len(proxies))
        proxies.append(unit(share * proxies[y[i]] + (1 - share) * proxies[y[j]]))
    terms = [
        cross_entropy([scale * torch.dot(v, p) for p in proxies], c)
        for v, c in zip(images, targets, strict=True)
    ]
    return mean(terms)


def xbm(
    x: Tensor,
    y: list[int],
    module: nn.Module,
    /,
    margin: float,
    weight: float,
    **_: ParamValue,
) -> Tensor:
    """Contrastive loss of the batch and against what two batches before it have left."""
    within = contrastive_cosine(x, y, module, margin)
    rows, classes = module.get_buffer("rows"), module.get_buffer("classes").tolist()
    terms = [
        1 - torch.dot(v, row) if c == k else hinge(torch.dot(v, row) - margin)
        for v, c in zip(x, y, strict=True)
        for row, k in zip(rows, classes, strict=True)
        if k >= 0
    ]
    return within + weight * total([*terms, 0 * x.sum()]) / len(y)


@dataclass(frozen=True)
class Case:
    """A loss with parameters unlike its defaults, so that each must reach its place."""

    name: str
    formula: Callable[..., Tensor]
    params: dict[str, ParamValue] = field(default_factory=dict)
    of_reference: dict[str, ParamValue] = field(default_factory=dict)


MEMORY = {"loss": "contrastive_cosine", "memory": 11, "start": 3, "weight": 0.7}
CASES = [
    Case("contrastive_cosine", contrastive_cosine, {"margin": 0.2}),
    Case(
        "ranked_list",
        ranked_list,
        {"alpha": 1.3, "margin": 0.6, "temperature": 3.0, "balance": 0.3},
    ),
    Case(
        "roadmap",
        roadmap,
        {
            "temperature": 0.05,
            "slope": 3.0,
            "delta": 0.1,
            "positive_margin": 0.7,
            "negative_margin": 0.1,
            "calibration": 0.4,
        },
    ),
    Case(
        "recall_surrogate",
        recall_surrogate,
        {"largest_k": 4, "rank_temperature": 0.1, "k_temperature": 0.7},
    ),
    Case("p2sgrad", p2sgrad),
    Case(
        "adaface",
        adaface,
        {"margin": 0.3, "scale": 9.0, "concentration": 0.8, "momentum": 0.6},
    ),
    Case("hist", hist, {"tau": 3.0, "alpha": 0.5, "weight": 0.7, "hidden": 4}),
    Case("proxy_synthesis", proxy_synthesis, {"scale": 4.0, "mixing": 0.9, "ratio": 0.8}),
    Case("xbm", xbm, MEMORY, {"margin": 0.5}),
]
ENTRIES = {entry.name: entry for entry in BUILTIN}


def batch(name: str, count: int, length: float = 1.0) -> Tensor:
    raw = torch.randn(count, D, dtype=torch.float64)
    return torch.stack([unit(v) for v in raw]) if ENTRIES[name].unit_length else length * raw


def called(name: str, loss: nn.Module, x: Tensor, y: list[int], step: int = 5) -> Tensor:
    context = ({"step": step},) if ENTRIES[name].context else ()
    return loss(x, torch.tensor(y), *context)


@pytest.mark.parametrize("length", [0.5, 30.0])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_is_the_papers(case: Case, length: float) -> None:
    loss = mlbench.build_loss(case.name, C, D, **case.params).double()
    if case.name == "xbm":
        for _ in range(2):
            called("xbm", loss, batch("xbm", 4), [0, 1, 2, 3])
    x = batch(case.name, len(LABELS), length).requires_grad_()
    inputs = [x, *loss.parameters()]
    expected = case.formula(x, LABELS, loss, **case.params, **case.of_reference)
    gradients = torch.autograd.grad(expected, inputs)
    torch.manual_seed(1)
    value = called(case.name, loss, x, LABELS)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), abs=1e-9)
    found = torch.autograd.grad(value, inputs)
    assert found[0].abs().max() > 1e-6, "the test needs a gradient"
    for one, other in zip(found, gradients, strict=True):
        assert (one - other).abs().max() < 1e-9


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_set_every_parameter(case: Case) -> None:
    assert set(case.params) | {"init"} >= set(ENTRIES[case.name].defaults)


@pytest.mark.parametrize("labels", [[0, 0, 1], [1, 3, 1, 4], [2, 0, 2, 0], [1, 1, 1, 0]])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss_is_the_papers_on_a_tiny_batch(case: Case, labels: list[int]) -> None:
    loss = mlbench.build_loss(case.name, C, D, **case.params).double()
    x = batch(case.name, len(labels))
    expected = case.formula(x, labels, loss, **case.params, **case.of_reference)
    torch.manual_seed(1)
    assert called(case.name, loss, x, labels).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("name", COMPARABLE)
def test_a_memory_of_the_batch_alone_is_the_batch(name: str) -> None:
    """Against other images of the same embeddings, self-pairs apart, a loss of pairs is itself."""
    loss = mlbench.build_loss(name, C, D)
    assert isinstance(loss, PairLoss)
    x, y = batch(name, 4).float(), torch.tensor([0, 1, 2, 3])
    others, classes = batch(name, 8).float(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    value = loss.against(x, y, others, classes)
    empty = torch.cat([classes, torch.full((3,), -1)])
    rows = torch.cat([others, torch.zeros(3, D)])
    assert loss.against(x, y, rows, empty).item() == pytest.approx(value.item(), rel=1e-5)
    assert loss.against(x, y, torch.zeros(2, D), torch.full((2,), -1)).item() == 0


def test_every_loss_of_pairs_of_unit_length_can_have_a_memory() -> None:
    entries = [e for e in LOSSES.entries() if e.source == "built-in" and not e.prefix]
    found = {e.name for e in entries if isinstance(e.build(C, D, e.defaults), PairLoss)}
    assert found == set(COMPARABLE)
    assert all(ENTRIES[name].unit_length for name in COMPARABLE)


def test_the_memory_holds_the_last_embeddings_from_its_start_on() -> None:
    loss: Any = mlbench.build_loss("xbm", C, D, memory=5, start=2)
    assert isinstance(loss, CrossBatchMemory)
    x = batch("xbm", 9).float()
    called("xbm", loss, x[:3], [0, 1, 2], step=1)
    assert loss.classes.tolist() == [-1] * 5
    called("xbm", loss, x[:3], [0, 1, 2], step=2)
    assert loss.classes.tolist() == [0, 1, 2, -1, -1]
    called("xbm", loss, x[3:6], [3, 4, 0], step=3)
    assert loss.classes.tolist() == [0, 1, 2, 3, 4]
    assert loss.oldest.item() == 1
    assert torch.equal(loss.rows[0], x[5])
    called("xbm", loss, x[:9], [0, 0, 0, 0, 1, 1, 2, 3, 4], step=4)
    assert sorted(loss.classes.tolist()) == [1, 1, 2, 3, 4]
    before = loss.rows.clone()
    loss.eval()
    called("xbm", loss, x[:3], [0, 1, 2], step=5)
    assert torch.equal(loss.rows, before)


def test_adaface_keeps_running_statistics_in_training_alone() -> None:
    loss = mlbench.build_loss("adaface", C, D, momentum=0.25)
    x, y = 4 * torch.eye(D)[:3], torch.tensor([0, 1, 2])
    x[0] *= 2
    loss(x, y)
    assert loss.get_buffer("mean").item() == pytest.approx(0.75 * 20 + 0.25 * 16 / 3)
    assert loss.get_buffer("deviation").item() == pytest.approx(75 + 0.25 * math.sqrt(16 / 3))
    kept = loss.get_buffer("mean").clone()
    loss.eval()(x, y)
    assert torch.equal(loss.get_buffer("mean"), kept)
    loss.train()(x[:1], y[:1])
    assert loss.get_buffer("deviation").isfinite()


@pytest.mark.parametrize("name", ["roadmap", "recall_surrogate"])
def test_rankings_of_large_batches_are_computed_in_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = mlbench.build_loss(name, C, D).double()
    x, y = batch(name, 24).requires_grad_(), torch.arange(24) % 5
    whole = loss(x, y)
    (expected,) = torch.autograd.grad(whole, x)
    monkeypatch.setattr(ranking, "_BLOCK", 7 * 24)
    sizes: list[int] = []
    sigmoid = torch.sigmoid

    def counted(values: Tensor) -> Tensor:
        sizes.append(len(values))
        return sigmoid(values)

    monkeypatch.setattr(torch, "sigmoid", counted)
    value = loss(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    pairs_in_all = int((y[:, None] == y).sum()) - len(y)
    assert [n for n in sizes if n != pairs_in_all][:3] == [7, 7, 7]
    assert value.item() == pytest.approx(whole.item(), abs=1e-12)
    assert (gradient - expected).abs().max() < 1e-12


def test_supap_is_never_below_the_loss_of_average_precision() -> None:
    loss = mlbench.build_loss("roadmap", C, D, calibration=0.0)
    for _ in range(20):
        x = batch("roadmap", len(LABELS)).float()
        cosine = (x @ x.T).fill_diagonal_(-2)
        losses = []
        for q in range(len(LABELS)):
            order = cosine[q].argsort(descending=True).tolist()
            hits = [j for j in order if j in positives(LABELS, q)]
            ranks = [order.index(p) + 1 for p in hits]
            if hits:
                losses.append(1 - sum((i + 1) / r for i, r in enumerate(ranks)) / len(hits))
        exact = sum(losses) / len(losses)
        assert loss(x, torch.tensor(LABELS)).item() >= exact - 1e-6


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("xbm", {"loss": "npairs"}, "unknown loss of pairs for xbm.loss 'npairs'"),
        ("xbm", {"memory": 0}, "memory must be at least 1"),
        ("proxy_synthesis", {"ratio": 1.5}, "ratio from 0 to 1"),
        ("hist", {"hidden": 0}, "hidden must be at least 1"),
        ("recall_surrogate", {"largest_k": 0}, "largest_k must be at least 1"),
    ],
)
def test_bad_arguments_are_named(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        mlbench.build_loss(name, C, D, **params)
