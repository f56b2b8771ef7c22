"""How class vectors start, and how far Adam's first step turns them."""

import math

import pytest
import torch

import mlbench
from mlbench.losses.starts import NAMES, class_vectors
from mlbench.registry import LOSSES

SPREADS = {
    "kaiming-uniform": 1 / math.sqrt(3 * 400),
    "kaiming-normal": math.sqrt(2 / 400),
    "xavier-normal": math.sqrt(2 / 464),
    "caffe-xavier": 1 / math.sqrt(64),
    "linear": 1 / math.sqrt(3 * 64),
    "unit": 1 / math.sqrt(64),
    "normal-0.01": 0.01,
}


def test_every_start_has_its_spread() -> None:
    assert set(NAMES) == SPREADS.keys() - {"normal-0.01"}
    for init, spread in SPREADS.items():
        vectors = class_vectors(100, 4, 64, init=init)
        assert isinstance(vectors, torch.nn.Parameter)
        assert vectors.shape == (100, 4, 64)
        assert float(vectors.detach().std()) == pytest.approx(spread, rel=0.03), init
    assert torch.allclose(class_vectors(9, 5, init="unit").norm(dim=1), torch.ones(9))


def test_starts_draw_what_was_drawn_before_they_were_declared() -> None:
    former = {
        "normal-1": lambda: torch.randn(10, 3, 7),
        "normal-0.125": lambda: torch.randn(10, 3, 7) / 8,
        "kaiming-normal": lambda: torch.nn.init.kaiming_normal_(
            torch.empty(30, 7), mode="fan_out"
        ).view(10, 3, 7),
    }
    for init, draw in former.items():
        torch.manual_seed(3)
        expected = draw()
        torch.manual_seed(3)
        assert torch.equal(class_vectors(10, 3, 7, init=init), expected)


@pytest.mark.parametrize("init", ["zeros", "normal-", "normal-x", "normal-0", "normal-inf", "-0.1"])
def test_unknown_starts_are_named(init: str) -> None:
    with pytest.raises(mlbench.MlbenchError, match=f"unknown init '{init}'"):
        mlbench.build_loss("arcface", 4, 3, init=init)


def test_every_loss_with_class_vectors_declares_their_start() -> None:
    for entry in LOSSES.entries():
        if entry.proxies == "unit":
            assert entry.defaults.get("init"), entry.name


@pytest.mark.parametrize(("init", "degrees"), [("normal-1", 0.57), ("normal-0.01", 45.0)])
def test_the_start_says_how_far_adams_first_step_turns(init: str, degrees: float) -> None:
    loss = mlbench.build_loss("cosface", 100, 64, init=init)
    vectors = loss.get_parameter("proxies")
    before = vectors.detach().clone()
    x = torch.nn.functional.normalize(torch.randn(200, 64))
    loss(x, torch.arange(200) % 100).backward()
    torch.optim.Adam(loss.parameters(), lr=1e-2).step()
    turned = torch.nn.functional.cosine_similarity(before, vectors.detach(), dim=-1).acos().mean()
    assert math.degrees(float(turned)) == pytest.approx(degrees, rel=0.15)
