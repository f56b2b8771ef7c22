"""Differences over splits of the classes, against loops over the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from mlbench.comparison.crossed import ClassTotals
from mlbench.comparison.splits import Split, over_splits
from mlbench.errors import MlbenchError


def split(rng: np.random.Generator, classes: list[int], effects: np.ndarray) -> Split:
    n = np.full(len(classes), 10)
    rows = {
        name: ClassTotals(n * (effects[row, classes] + rng.normal(0, 0.02, (2, len(classes)))), n)
        for row, name in enumerate("ab")
    }
    return Split(classes, rows, train_classes=10)


def halves(seed: int, *, disjoint: bool) -> list[Split]:
    rng = np.random.default_rng(seed)
    effects = rng.normal(0.5, 0.1, (2, 20))
    order = rng.permutation(20).tolist()
    parts = (
        [order[:10], order[10:]]
        if disjoint
        else [rng.permutation(20)[:10].tolist() for _ in range(3)]
    )
    return [split(rng, each, effects) for each in parts]


def residuals(each: Split) -> tuple[float, dict[object, float]]:
    """Return the difference of a split, and its residual by class."""
    a, b = (np.asarray(row.totals).mean(axis=0) for row in each.rows.values())
    n = np.asarray(each.rows["a"].queries)
    gap = (a - b).sum() / n.sum()
    return gap, dict(zip(each.classes, ((a - b) - n * gap) / n.sum(), strict=True))


@pytest.mark.parametrize("disjoint", [False, True])
def test_each_class_counts_once_however_many_splits_test_it(disjoint: bool) -> None:
    splits = halves(0, disjoint=disjoint)
    found = over_splits(splits)
    gaps, by_split = zip(*map(residuals, splits), strict=True)
    tested = {c for each in splits for c in each.classes}
    z = [sum(each.get(c, 0) for each in by_split) / len(splits) for c in tested]
    k, r = len(tested), len(splits)
    of_classes, of_splits = k / (k - 1) * sum(x**2 for x in z), np.var(gaps, ddof=1) / r
    variance, freedom = (each[0] for each in found.other_test_classes.ways[0])
    if disjoint:
        assert variance == pytest.approx(max(of_classes, of_splits))
        assert freedom == (k - 1 if of_classes > of_splits else r - 1)
    else:
        wanted = of_classes + of_splits
        assert variance == pytest.approx(wanted)
        assert freedom == pytest.approx(
            wanted**2 / (of_classes**2 / (k - 1) + of_splits**2 / (r - 1))
        )
    assert found.other_test_classes.difference[0] == pytest.approx(np.mean(gaps))
    assert found.means[0] - found.means[1] == pytest.approx(np.mean(gaps))


def test_nadeau_and_bengio_widen_the_t_test_of_splits() -> None:
    splits = halves(1, disjoint=False)
    gaps = [residuals(each)[0] for each in splits]
    low, high = ttest_1samp(gaps, 0).confidence_interval()
    found = over_splits(splits).other_training_classes
    wanted = (high - low) / 2 * math.sqrt((1 / 3 + 10 / 10) / (1 / 3))
    assert found.half_widths()[0] == pytest.approx(wanted)


def test_the_order_of_splits_and_classes_changes_nothing() -> None:
    splits = halves(2, disjoint=False)
    turned = []
    for each in splits[::-1]:
        rows = {
            name: ClassTotals(np.asarray(row.totals)[:, ::-1], row.queries)
            for name, row in each.rows.items()
        }
        turned.append(Split(list(each.classes)[::-1], rows, each.train_classes))
    a, b = (over_splits(each).other_test_classes.half_widths() for each in (splits, turned))
    assert a == pytest.approx(b)


def test_what_is_no_comparison_over_splits_is_refused() -> None:
    one, two, _ = halves(3, disjoint=False)
    with pytest.raises(MlbenchError, match="at least two"):
        over_splits([one])
    with pytest.raises(MlbenchError, match="has a run of: b"):
        over_splits([one, Split(two.classes, {"a": two.rows["a"]}, 10)])
    with pytest.raises(MlbenchError, match="names 9 classes"):
        over_splits([one, Split(list(two.classes)[1:], two.rows, 10)])
    with pytest.raises(MlbenchError, match="twice"):
        over_splits([one, Split([1, 1, *list(two.classes)[2:]], two.rows, 10)])
