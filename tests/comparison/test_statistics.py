"""Intervals and tests, by closed forms and by simulation."""

from collections.abc import Hashable

import numpy as np
import pytest

from mlbench.comparison.statistics import (
    compare_all,
    estimate,
    holm,
    paired_difference,
    pooled_noise,
)

pytestmark = pytest.mark.numeric


def test_t_interval_of_known_numbers() -> None:
    value = estimate([1.0, 2.0, 3.0, 4.0])
    assert value.mean == 2.5
    # t = 3.182446 at 3 degrees of freedom, standard deviation 1.290994.
    assert value.half_width == pytest.approx(3.182446 * 1.290994 / 2, rel=1e-6)
    assert estimate([2.0]).half_width is None


def test_the_t_interval_covers_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.1, (2000, 4))
    covered = [abs(e.mean - 0.3) <= (e.half_width or 0) for e in map(estimate, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def hits(
    rng: np.random.Generator, shifts: list[float], seeds: int, queries: int, seed_noise: float
) -> dict[str, np.ndarray]:
    """Draw hits of several losses: queries differ in difficulty, losses in which they find hard."""
    difficulty = rng.normal(0.2, 1, queries)
    drawn = {}
    for number, shift in enumerate(shifts):
        own = rng.normal(0, 0.3, queries)
        noise = rng.normal(0, seed_noise, (seeds, 1)) + rng.normal(0, 0.7, (seeds, queries))
        drawn[f"loss{number}"] = (difficulty + own + shift + noise > 0).astype(float)
    return drawn


@pytest.mark.parametrize(("seeds", "seed_noise"), [(3, 0.02), (3, 0.1), (10, 0.05)])
def test_paired_intervals_cover_and_do_not_cry_wolf(seeds: int, seed_noise: float) -> None:
    rng = np.random.default_rng(1)
    large = [hits(rng, [0.1, 0.0], 20, 20_000, seed_noise) for _ in range(4)]
    true = np.mean([h["loss0"].mean() - h["loss1"].mean() for h in large])
    covered, false = [], []
    for _ in range(300):
        a, b = hits(rng, [0.1, 0.0], seeds, 400, seed_noise).values()
        difference = paired_difference(a, b)
        covered.append(abs(difference.mean - true) <= difference.half_width)
        a, b = hits(rng, [0.0, 0.0], seeds, 400, seed_noise).values()
        false.append(paired_difference(a, b).p < 0.05)
    # 300 trials: a rate of 0.95 has a standard error of 0.013.
    assert 0.91 <= np.mean(covered) <= 0.995
    assert np.mean(false) <= 0.09


def by_run(scores: dict[str, np.ndarray]) -> dict[str, dict[Hashable, np.ndarray]]:
    return {loss: dict(enumerate(runs)) for loss, runs in scores.items()}


def test_losses_are_compared_over_the_runs_that_both_have() -> None:
    rng = np.random.default_rng(5)
    scores = by_run(hits(rng, [1.0, 0.0, 0.9], 4, 1000, 0.02))
    full = compare_all(scores)[1]["loss1"]
    del scores["loss2"][3], scores["loss2"][2]
    assert compare_all(scores)[1]["loss1"].mean == full.mean
    scores["loss2"] = {9: scores["loss2"][0]}
    best, behind, tied = compare_all(scores)
    assert (best, set(behind)) == ("loss0", {"loss1"})
    assert tied == {"loss0", "loss2"}, "what could not be compared was not shown to differ"


def test_ten_equal_losses_are_rarely_called_different() -> None:
    rng = np.random.default_rng(6)
    wrong = [
        len(compare_all(by_run(hits(rng, [0.0] * 10, 3, 200, 0.1)))[2]) < 10 for _ in range(60)
    ]
    assert np.mean(wrong) <= 0.12


def test_pooling_finds_with_three_seeds_what_stands_out_of_all_noise() -> None:
    rng = np.random.default_rng(7)
    scores = by_run(hits(rng, [0.0] * 7 + [-0.5], 3, 1000, 0.05))
    _, behind, tied = compare_all(scores)
    assert "loss7" not in tied
    a, b = (np.stack(list(scores[name].values())) for name in ("loss0", "loss7"))
    alone = paired_difference(a, b)
    pooled = paired_difference(a, b, noise=pooled_noise([a - b, b - a], 2))
    assert pooled.mean == alone.mean
    assert pooled.half_width < alone.half_width
    assert behind


def test_equal_losses_are_rarely_called_different() -> None:
    rng = np.random.default_rng(2)
    wrong = [len(compare_all(by_run(hits(rng, [0.0] * 4, 3, 300, 0.1)))[2]) < 4 for _ in range(200)]
    assert np.mean(wrong) <= 0.09


def test_equal_losses_with_unequal_seeds_are_rarely_called_different() -> None:
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(300):
        scores = by_run(hits(rng, [0.0, 0.0], 10, 300, 0.1))
        for run in range(2, 10):
            del scores["loss1"][run]
        wrong += len(compare_all(scores)[2]) < 2
    # A rate of 0.05 has a standard error of 0.013; counting all runs as shared gave 0.2.
    assert wrong / 300 <= 0.09


def test_a_clear_difference_is_found() -> None:
    rng = np.random.default_rng(3)
    best, behind, tied = compare_all(by_run(hits(rng, [1.0, 0.0, 0.98], 3, 2000, 0.02)))
    assert best in ("loss0", "loss2")
    assert tied == {"loss0", "loss2"}
    assert behind["loss1"].p < 1e-3
    effect = behind["loss1"].effect
    assert effect is not None
    assert effect > 2


def test_p_value_and_interval_agree() -> None:
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.05, 0.1, 0.2):
        a, b = hits(rng, [shift, 0.0], 4, 500, 0.05).values()
        difference = paired_difference(a, b)
        assert (difference.p < 0.05) == (abs(difference.mean) > difference.half_width)


def test_identical_losses_do_not_differ() -> None:
    a = np.ones((3, 10))
    same = paired_difference(a, a)
    assert (same.mean, same.half_width, same.p, same.effect) == (0.0, 0.0, 1.0, None)


def test_one_column_is_the_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    a, b = np.array([[0.5], [0.6], [0.55]]), np.array([[0.4], [0.52], [0.5]])
    assert paired_difference(a, b).p == pytest.approx(ttest_rel(a, b).pvalue[0], rel=1e-6)


def test_figures_that_agree_leave_no_doubt() -> None:
    a = np.array([[0.5], [0.75], [0.25]])
    assert paired_difference(a, a).p == 1
    assert paired_difference(a + 0.125, a).p == 0


def test_holm_is_stepwise() -> None:
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert holm({"a": 0.01, "b": 0.04, "c": 0.04}) == {"a"}
    assert holm({"a": 0.02, "b": 0.03}) == {"a", "b"}
    assert holm({"a": 0.03, "b": 0.03}) == set()
