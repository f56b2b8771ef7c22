from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mlbench.comparison.contrasts import chance_of_order, contrast, totals_of
from mlbench.comparison.crossed import ClassTotals, components
from mlbench.comparison.pairs import all_pairs
from mlbench.errors import MlbenchError

STUDY = Path(__file__).parents[2] / "results" / "study"


def drawn(seed: int = 1, noisy: float = 1.0) -> dict[str, ClassTotals]:
    """Return four rows of four runs on thirty classes; the last is ``noisy`` times as noisy."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(20, 40, 30)
    rows = {}
    for number, name in enumerate("abcd"):
        spread = noisy if name == "d" else 1.0
        seeds = rng.normal(0, 0.01 * spread, (4, 1))
        score = 0.5 - 0.01 * number + seeds + rng.normal(0, 0.05, (1, 30))
        rows[name] = ClassTotals((score + rng.normal(0, 0.02 * spread, (4, 30))) * queries, queries)
    return rows


@pytest.mark.parametrize("noisy", [1.0, 30.0])
def test_a_contrast_of_two_rows_is_their_pair(noisy: float) -> None:
    rows = drawn(noisy=noisy)
    for name, other in (("e", "a"), ("f", "b")):
        copied = np.asarray(rows[other].totals)[[0, 0]]
        rows[name] = ClassTotals(copied, rows[other].queries)
    parts = components(rows)
    assert parts.noise.own.any() == (noisy > 1)
    pairs = all_pairs(parts)
    columns = pairs.first, pairs.second, pairs.difference, pairs.half_widths(), pairs.p_values()
    for first, second, difference, width, p in zip(*columns, strict=True):
        found = contrast(rows, {parts.names[first]: 1, parts.names[second]: -1})
        assert [found.value, found.half_width, found.p] == pytest.approx([difference, width, p])


def test_a_contrast_scales_and_ignores_what_has_no_weight() -> None:
    rows = drawn()
    one = contrast(rows, {"a": 1, "b": -0.5, "c": -0.5})
    twice = contrast(rows, {"a": -2, "b": 1, "c": 1, "d": 0})
    assert (-twice.value, twice.half_width) == pytest.approx((2 * one.value, 2 * one.half_width))
    assert twice.p == pytest.approx(one.p)
    means = [float(np.sum(rows[n].totals) / 4 / np.sum(rows[n].queries)) for n in "abc"]
    assert one.value == pytest.approx(means[0] - (means[1] + means[2]) / 2)


def test_the_chance_of_an_order_is_that_of_the_normal_distribution() -> None:
    rows = drawn()
    parts = components(rows)
    noise = np.maximum(parts.noise.seeds - parts.noise.both, 0) / 4
    covariance = 2 * (parts.class_products + np.diag(noise))[:3, :3]
    steps = np.array([[-1, 1, 0], [0, -1, 1]])  # both differences are below zero
    normal: Any = multivariate_normal
    expected = normal(steps @ parts.means[:3], steps @ covariance @ steps.T).cdf([0, 0])
    assert chance_of_order(rows, ["a", "b", "c"]) == pytest.approx(expected, abs=0.006)


def test_the_orders_of_some_rows_share_all_chance() -> None:
    rows = drawn()
    orders = ["abc", "acb", "bac", "bca", "cab", "cba"]
    assert sum(chance_of_order(rows, order) for order in orders) == pytest.approx(1, abs=0.01)


def test_rows_have_the_names_of_the_table_and_the_means_of_the_records() -> None:
    rows = totals_of(STUDY / "modes", "glyphs")
    centers = [f"softtriple (centers_per_class={k})" for k in (1, 2, 5)]
    assert list(rows) == ["softmax_norm", "softtriple", *centers]
    assert {"features", "pca"} <= set(totals_of(STUDY / "centers-50"))
    row = rows["softtriple"]
    assert np.shape(row.totals) == (5, 162)
    assert np.sum(row.totals) / np.sum(row.queries) / 5 == pytest.approx(0.883, abs=5e-4)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(MlbenchError, match="2 tables in "):
        totals_of(STUDY / "modes")
    with pytest.raises(MlbenchError, match="unknown row 'x'"):
        contrast(drawn(), {"x": 1})
    one = {
        name: ClassTotals(np.asarray(row.totals)[:1], row.queries) for name, row in drawn().items()
    }
    with pytest.raises(MlbenchError, match="one seed or one class"):
        chance_of_order(one, "ab")
