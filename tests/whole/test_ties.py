"""Choices between figures that only the order of a sum tells apart."""

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.rounding import round_by_shape
from torch import nn

import mlbench
from mlbench.comparison.best import compare_with_best
from mlbench.comparison.crossed import components_of_scores
from mlbench.losses.baselines import principal_components, project
from mlbench.metrics.evaluation import NmiRestart, nmi
from mlbench.metrics.ties import first_highest
from mlbench.recipes.spec import LossSpec
from mlbench.records.trials import Trial, Tuned
from mlbench.runs.evaluation import Selection

pytestmark = pytest.mark.numeric

ONE_WAY, OTHER_WAY = 0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1


def test_these_sums_are_equal_but_for_rounding() -> None:
    assert ONE_WAY != OTHER_WAY
    assert first_highest([OTHER_WAY, ONE_WAY]) == first_highest([ONE_WAY, OTHER_WAY]) == 0
    assert first_highest([0.5, 0.5 + 1 / 60502, 0.2]) == 1


@pytest.mark.parametrize("scores", [(ONE_WAY, OTHER_WAY), (OTHER_WAY, ONE_WAY)])
def test_of_epochs_that_tie_the_earliest_is_kept(scores: tuple[float, float]) -> None:
    ingredients: Any = SimpleNamespace(
        recipe=SimpleNamespace(selection=SimpleNamespace(rule="", patience=0))
    )
    selection = Selection(ingredients, cast(Any, SimpleNamespace(seed=0)), cast(Any, None))
    selection._value = lambda network: scores[len(seen) - 1]
    seen: list[int] = []
    network = cast(Any, nn.Linear(1, 1))
    for epoch in range(2):
        seen.append(epoch)
        selection.score(network, epoch)
    assert selection.restore(network, 1) == 0


@pytest.mark.parametrize("scores", [(ONE_WAY, OTHER_WAY), (OTHER_WAY, ONE_WAY)])
def test_of_trials_that_tie_the_earliest_is_chosen(scores: tuple[float, float]) -> None:
    trials = tuple(Trial(LossSpec("triplet", ()), score, False, 0) for score in scores)
    assert Tuned(trials, ()).chosen is trials[0]


@pytest.mark.parametrize("more", [0.0, 1e-12, -1e-12])
def test_of_restarts_that_tie_the_first_counts(more: float, monkeypatch: Any) -> None:
    runs = [NmiRestart(7.0, 0.4), NmiRestart(7.0 + more, 0.5), NmiRestart(7.5, 0.6)]
    monkeypatch.setattr("mlbench.metrics.evaluation.nmi_restarts", lambda *_, **__: runs)
    assert nmi(torch.eye(3), [0, 1, 2]) == 0.4


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_that_differ_by_rounding_alone_are_not_told_apart(sign: int) -> None:
    """Of five seeds, the last digit of every figure is another."""
    figures = np.array([0.6 + s / 100 for s in range(5)])
    standing = compare_with_best(
        components_of_scores({"a": figures, "b": figures + sign * 2e-16}, ())
    )
    assert standing.marked == {"a", "b"}
    assert [each.gap for each in standing.behind.values()] == [0, 0]
    assert standing.pairs.p_values() == pytest.approx(1)


def test_pca_keeps_no_direction_without_variance() -> None:
    """Ten points have nine; which others a library returns is its own affair."""

    def pca(train: torch.Tensor, test: torch.Tensor, dim: int) -> torch.Tensor:
        return project(test, *principal_components(train, dim))

    train = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    test = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    assert pca(train, test, 20).shape == (5, 9)
    assert pca(train, test, 4).shape == (5, 4)
    assert pca(train.repeat(3, 1), test, 20).shape == (5, 9)
    assert pca(torch.ones(4, 3), test[:, :3], 2).shape == (5, 1)


def test_centres_are_one_or_two_whatever_the_halves_of_a_product_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a cosine of 0.99, which rounding puts on either side."""
    loss = mlbench.build_loss("softtriple", 1, 3, centers_per_class=2)
    sine = math.sqrt(1 - 0.99**2)
    pair = torch.tensor([[[1.0, 0.0, 0.0], [0.99, sine, 0.0]]])
    loss.get_parameter("centers").data.copy_(pair)
    for seed in range(20):
        with monkeypatch.context() as patch:
            round_by_shape(patch, seed)
            count = cast(Any, loss).report()["distinct_centers"]
        assert count in (1, 2)
