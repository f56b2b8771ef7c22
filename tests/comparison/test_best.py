"""The comparison with the best, chances of single rows, and the planner."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.totals import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, studentized_range, t

from mlbench.comparison.best import Behind, behind_best, compare_with_best, rope
from mlbench.comparison.chances import better_than_next, mean_half_widths, share_of_classes
from mlbench.comparison.crossed import (
    ClassTotals,
    components,
    components_of_scores,
    for_these_classes,
)
from mlbench.comparison.pairs import all_pairs
from mlbench.comparison.planning import (
    Design,
    Sources,
    classes_needed,
    detectable_gap,
    half_width,
    seeds_needed,
    sources,
)
from mlbench.errors import MlbenchError


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=2, max_size=6),
    st.integers(0, 10**6),
)
def test_a_row_is_marked_if_and_only_if_its_interval_reaches_zero(
    means: list[float], seed: int
) -> None:
    """Against loops; the point lies in the interval, and the best row is always marked."""
    rng = np.random.default_rng(seed)
    widths = np.triu(rng.choice([0.0, 0.05, 0.3], (len(means),) * 2), 1)
    widths += widths.T
    found = behind_best(np.array(means), widths)
    rows = range(len(means))
    low = [max(0, *(means[j] - means[i] - widths[i, j] for j in rows)) for i in rows]
    low = [0 if value < 1e-9 else value for value in low]
    for i, each in enumerate(found):
        high = max(0, *(means[j] - means[i] + widths[i, j] for j in rows if low[j] == 0))
        assert (each.gap, each.low, each.high) == pytest.approx(
            (max(means) - means[i], low[i], high)
        )
        assert each.low <= each.gap <= each.high
        assert each.reaches_zero == (each.low == 0)
        assert each.reaches_zero or each.gap > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_marks_and_intervals_agree_on_runs(seed: int, runs: list[int]) -> None:
    parts = components(drawn(seed, tuple(runs), 20, hits=True))
    standing = compare_with_best(parts)
    assert standing.judged == (max(runs) > 1)
    for name, each in standing.behind.items():
        assert each.low <= each.gap <= each.high
        assert (name in standing.marked) == (standing.judged and each.low == 0)
    if standing.judged:
        assert parts.names[int(parts.means.argmax())] in standing.marked


def test_two_rows_need_no_correction_and_few_classes_get_bonferronis() -> None:
    assert compare_with_best(components(drawn(0, (3, 3), 40))).tail == 0.025
    assert compare_with_best(components(drawn(0, (3,) * 10, 12))).tail == 0.025 / 45


@pytest.mark.parametrize("rows", [3, 8])
def test_the_level_of_independent_means_is_near_tukeys(rows: int) -> None:
    """Equal independent noise alone: the maximum is the studentized range."""
    rng = np.random.default_rng(0)
    parts = components_of_scores({str(n): rng.normal(0.5, 0.1, 4) for n in range(rows)})
    tail = compare_with_best(parts).tail
    freedom = rows * 3
    wanted = t.sf(studentized_range.ppf(0.96, rows, freedom) / math.sqrt(2), freedom)
    # 160 of 4,000 draws lie beyond the quantile: 8 %.
    assert tail == pytest.approx(wanted, rel=0.25)
    assert 0.025 / (rows * (rows - 1) / 2) <= tail < 0.025


def test_the_level_is_the_same_in_every_process() -> None:
    code = (
        "from helpers.totals import drawn\n"
        "from mlbench.comparison.best import compare_with_best\n"
        "from mlbench.comparison.crossed import components\n"
        "print(repr(compare_with_best(components(drawn(0, (3,) * 5, 60))).tail))"
    )
    command = [sys.executable, "-c", code]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert run.stdout == f"{compare_with_best(components(drawn(0, (3,) * 5, 60))).tail!r}\n"


def test_the_draw_does_not_hang_on_the_order_of_equal_means() -> None:
    """Means that are equal but for rounding come in another order after scaling."""
    rng = np.random.default_rng(0)
    n, base = np.full(30, 10), rng.binomial(10, 0.5, (3, 30)).astype(float)
    rows = {name: rng.permuted(base, axis=1) for name in "abcd"}  # the totals of each run are equal
    tails = [
        compare_with_best(
            components({name: ClassTotals(scale * each, n) for name, each in rows.items()})
        ).tail
        for scale in (1, 0.1, 1 / 3, 0.7)
    ]
    assert tails == pytest.approx([tails[0]] * 4, rel=1e-5)


def test_one_row_has_nothing_to_be_behind() -> None:
    standing = compare_with_best(components(drawn(0, (3,), 20)))
    assert (standing.behind, standing.marked) == ({}, frozenset())


def test_one_seed_shows_the_class_part_and_marks_nothing() -> None:
    parts = components(drawn(0, (1, 1, 1), 40))
    standing = compare_with_best(parts)
    assert standing.marked == frozenset()
    assert all(math.isfinite(each.high) for each in standing.behind.values())


def test_the_narrower_statement_is_of_seeds_alone() -> None:
    parts = components(drawn(0, (3, 3, 3), 12, of_class=0.2))
    narrow = for_these_classes(parts)
    assert (narrow.for_other_classes, narrow.for_other_seeds) == (False, True)
    assert (all_pairs(narrow).half_widths() < all_pairs(parts).half_widths()).all()
    scores = {
        name: np.asarray(row.totals).sum(axis=1) / np.sum(row.queries)
        for name, row in drawn(0, (3, 3, 3), 12, of_class=0.2).items()
    }
    assert compare_with_best(narrow).behind["loss0"].high == pytest.approx(
        compare_with_best(components_of_scores(scores)).behind["loss0"].high, rel=1e-6
    )


def test_equal_losses_are_rarely_left_out_and_a_clear_gap_is_found() -> None:
    wrong, right = [], []
    for seed in range(120):
        rows = drawn(seed, (3,) * 4, 30)
        wrong.append(len(compare_with_best(components(rows)).marked) < 4)
        best = rows["loss1"]
        ahead = np.asarray(best.totals) + 0.2 * np.asarray(best.queries)
        rows["loss1"] = ClassTotals(ahead, best.queries)
        right.append(compare_with_best(components(rows)).marked == {"loss1"})
    assert np.mean(wrong) <= 0.1  # a rate of 0.05 has a standard error of 0.02
    assert np.mean(right) > 0.95


def test_regions_of_practical_equivalence() -> None:
    assert rope(Behind(0.2, 0.0, 0.4), 0.5) == "equal"
    assert rope(Behind(0.9, 0.6, 1.2), 0.5) == "behind"
    assert rope(Behind(0.5, 0.2, 0.8), 0.5) == "open"
    assert rope(Behind(0.5, 0.5, 0.5), 0.5) == "equal"


def test_the_chance_to_beat_the_next_is_that_of_new_runs_on_new_classes() -> None:
    """Drawn: two runs on other classes, against the variance that is estimated from many."""
    rng = np.random.default_rng(0)
    classes, n = 400, np.full(400, 20)
    totals = {
        name: n * (mean + rng.normal(0, 0.1, classes) + rng.normal(0, 0.02, (20, 1)))
        for name, mean in (("a", 0.53), ("b", 0.5))
    }
    parts = components({name: ClassTotals(each, n) for name, each in totals.items()})
    found = better_than_next(parts)
    assert set(found) == {"a"}
    gap = parts.means[0] - parts.means[1]
    spread = math.sqrt(2 * 0.1**2 / classes + 2 * 0.02**2)
    assert found["a"].chance == pytest.approx(norm.cdf(gap / spread), abs=0.03)
    assert 0 <= found["a"].low < found["a"].chance < found["a"].high <= 1


def test_the_chance_is_unknown_of_one_seed_or_without_classes() -> None:
    assert better_than_next(components(drawn(0, (1, 1), 20))) == {}
    assert better_than_next(components_of_scores({"a": [0.5, 0.6], "b": [0.7, 0.8]})) == {}


def test_the_chance_of_rows_that_are_alike_is_a_half() -> None:
    n = np.array([3, 4])
    rows = {name: ClassTotals(np.tile(n, (2, 1)), n) for name in "ab"}
    (found,) = better_than_next(components(rows)).values()
    assert (found.chance, found.low, found.high) == (0.5, 0.5, 0.5)


def test_classes_are_shared_among_those_that_lead() -> None:
    n = [10, 10, 10, 0]
    rows = {
        "a": ClassTotals([[5, 2, 3, 0], [5, 4, 3, 0]], n),
        "b": ClassTotals([[5, 2, 9, 0]], n),
        "c": ClassTotals([[1, 3, 1, 0]], n),
    }
    # The first is a tie of a and b, the second of a and c, the third is led by b.
    assert share_of_classes(rows) == pytest.approx({"a": 1 / 3, "b": 1 / 2, "c": 1 / 6})


def test_means_have_their_interval_over_seeds() -> None:
    rows = drawn(0, (4, 4, 1), 20)
    single = np.asarray(rows["loss1"].totals)[:1]
    rows["loss1"] = ClassTotals(single, rows["loss1"].queries)
    parts = components(rows, deterministic=["loss1"])
    widths = mean_half_widths(parts)
    assert widths["loss1"] is None
    y = np.asarray(rows["loss0"].totals).sum(axis=1) / np.sum(rows["loss0"].queries)
    wanted = t.ppf(0.975, 3) * y.std(ddof=1) / 2
    assert widths["loss0"] == pytest.approx(wanted)
    assert widths["loss2"] == pytest.approx(2 * wanted), "it borrows the noise of the other"
    assert set(mean_half_widths(components(drawn(0, (1, 1), 20))).values()) == {None}


FOUND = Sources(classes=0.0012, both=0.005, seeds=0.00003)


def test_a_plan_repeats_the_runs_it_is_made_from() -> None:
    """At the seeds and classes of the records, the planned half-width is the one they have."""
    rng = np.random.default_rng(0)
    n = np.full(200, 30)
    rows = {}
    for name in "ab":
        noise = rng.normal(0, 0.05, (4, 200)) + rng.normal(0, 0.02, (4, 1))
        rows[name] = ClassTotals(n * (0.5 + rng.normal(0, 0.05, 200) + noise), n)
    parts = components(rows)
    pairs = all_pairs(parts)
    planned = half_width(sources(parts), Design(rows=2, seeds=4, classes=200))
    variance, freedom = pairs.ways[0]
    assert planned == pytest.approx(t.ppf(0.975, freedom[0]) * math.sqrt(variance[0]), rel=1e-6)


def test_a_detectable_gap_is_the_formula() -> None:
    seeds, classes, rows = 3, 100, 10
    both = FOUND.both / seeds / classes
    of_classes, of_seeds = FOUND.classes / classes + both, FOUND.seeds / seeds + both
    variance = of_classes + of_seeds - both
    freedoms = 99, 20, 99 * 20
    parts = of_classes, of_seeds, both
    nu = variance**2 / sum(v**2 / df for v, df in zip(parts, freedoms, strict=True))
    wanted = (t.ppf(1 - 0.025 / 45, nu) + t.ppf(0.8, nu)) * math.sqrt(variance)
    assert detectable_gap(FOUND, Design(rows, seeds, classes)) == pytest.approx(wanted)
    limit = (t.ppf(0.975, 99) + t.ppf(0.8, 99)) * math.sqrt(FOUND.classes / 100)
    assert detectable_gap(FOUND, Design(2, math.inf, 100)) == pytest.approx(limit)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0001, 0.1), st.integers(2, 10), st.integers(2, 300))
def test_the_seeds_needed_are_the_fewest(gap: float, rows: int, classes: int) -> None:
    seeds = seeds_needed(FOUND, gap, rows, classes)
    if seeds is None:
        assert (detectable_gap(FOUND, Design(rows, 10_000, classes)) or 0) > gap
        return
    assert (detectable_gap(FOUND, Design(rows, seeds, classes)) or 1) <= gap
    assert seeds == 2 or (detectable_gap(FOUND, Design(rows, seeds - 1, classes)) or 0) > gap


def test_no_number_of_seeds_finds_a_gap_below_the_limit_of_the_classes() -> None:
    limit = detectable_gap(FOUND, Design(2, math.inf, 100))
    assert limit is not None
    assert seeds_needed(FOUND, 0.99 * limit, 2, 100) is None
    assert seeds_needed(FOUND, 1.2 * limit, 2, 100) is not None
    classes = classes_needed(FOUND, 0.99 * limit, 2, 10)
    assert classes is not None
    assert classes > 100
    assert classes_needed(FOUND, 1e-6, 2, 2) is None


def test_a_limit_is_unknown_where_classes_show_no_variance() -> None:
    assert detectable_gap(Sources(0.0, 0.005, 0.0), Design(2, math.inf, 100)) is None


@pytest.mark.parametrize("runs", [(1, 1), (3,)])
def test_planning_takes_two_losses_with_two_seeds(runs: tuple[int, ...]) -> None:
    with pytest.raises(MlbenchError, match="at least two losses"):
        sources(components(drawn(0, runs, 20)))


@pytest.mark.parametrize("design", [(1, 3, 100), (2, 1, 100), (2, 3, 1)])
def test_a_plan_of_less_than_two_is_refused(design: tuple[int, int, int]) -> None:
    with pytest.raises(MlbenchError, match="two losses, two seeds and two classes"):
        Design(*design)
