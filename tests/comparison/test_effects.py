import runpy
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mlbench.comparison.crossed import ClassTotals, components
from mlbench.comparison.effects import (
    Levels,
    alias_groups,
    confounded,
    effects,
    gap_between,
    holm_adjusted,
)
from mlbench.comparison.pairs import all_pairs
from mlbench.errors import MlbenchError

FULL: list[Levels] = list(product((-1, 1), repeat=3))
START, END = (-1, -1, -1), (1, 1, 1)


def study() -> list[Levels]:
    """The study's 2^(7-3): E = ABC, F = BCD, G = ACD."""
    rows = product((-1, 1), repeat=4)
    return [(a, b, c, d, a * b * c, b * c * d, a * c * d) for a, b, c, d in rows]


def runs_of(
    design: list[Levels], rng: np.random.Generator, extra: int = 0, noise: float = 0.01
) -> dict[Levels, ClassTotals]:
    queries = rng.integers(10, 40, 30)
    of_class = rng.normal(0.4, 0.1, 30)
    weights = 0.02 * np.arange(1, len(design[0]) + 1)
    runs = {}
    for setting in design:
        count = 1 + extra * (len({*setting}) == 1)
        shift = np.dot(weights, setting) / 2 + rng.normal(0, noise, (count, 1))
        shares = of_class + shift + rng.normal(0, 2 * noise, (count, 30))
        runs[setting] = ClassTotals(queries * shares, queries)
    return runs


def score(runs: ClassTotals) -> float:
    return float(np.sum(runs.totals) / len(np.asarray(runs.totals)) / np.sum(runs.queries))


def test_effects_are_those_of_least_squares() -> None:
    design = study()
    runs = runs_of(design, np.random.default_rng(0), extra=2)
    found = effects(design, runs)
    first = [np.asarray(runs[s].totals)[0].sum() / np.sum(runs[s].queries) for s in design]
    model = np.column_stack([np.ones(16), design])
    coefficients, squares, _, _ = np.linalg.lstsq(model, np.array(first), rcond=None)
    np.testing.assert_allclose([f.value for f in found.factors], 2 * coefficients[1:])
    assert found.residual.freedom == 8
    assert found.residual.sd == pytest.approx(np.sqrt(squares[0] / 8))
    assert found.total.value == pytest.approx(2 * coefficients[1:].sum())


def test_the_gap_and_its_checks_count_the_further_runs() -> None:
    design = study()
    runs = runs_of(design, np.random.default_rng(1), extra=2)
    found = effects(design, runs)
    start, end = score(runs[(-1,) * 7]), score(runs[(1,) * 7])
    assert (found.start, found.end) == (pytest.approx(start), pytest.approx(end))
    assert found.gap.value == pytest.approx(end - start)
    assert found.misfit.value == pytest.approx(found.total.value - (end - start))
    first = [np.asarray(runs[s].totals)[0].sum() / np.sum(runs[s].queries) for s in design]
    assert found.middle.value == pytest.approx((start + end) / 2 - np.mean(first))
    assert found.pure.freedom == 4
    spread = [
        np.var(np.sum(runs[s].totals, axis=1) / np.sum(runs[s].queries), ddof=1)
        for s in ((-1,) * 7, (1,) * 7)
    ]
    assert found.pure.sd == pytest.approx(np.sqrt(np.mean(spread)))


def test_two_settings_are_a_pair_of_rows() -> None:
    """With one factor, the interval is that of two losses in a table."""
    design: list[Levels] = [(-1,), (1,)]
    rng = np.random.default_rng(2)
    queries = rng.integers(10, 40, 30)
    runs: dict[Levels, ClassTotals] = {
        setting: ClassTotals(queries * rng.normal(0.5, 0.05, (4, 30)), queries)
        for setting in design
    }
    found = effects(design, runs)
    pairs = all_pairs(components({"end": runs[1,], "start": runs[-1,]}))
    assert found.factors[0].value == pytest.approx(pairs.difference[0])
    assert found.factors[0].half_width == pytest.approx(pairs.half_widths()[0])
    assert found.factors[0].p == pytest.approx(pairs.p_values()[0])
    assert found.gap.value == pytest.approx(found.factors[0].value)
    assert found.gap.half_width == pytest.approx(found.factors[0].half_width)


def test_interactions_cancel_between_the_ends_and_show_in_the_middle() -> None:
    queries = np.full(20, 10)
    runs = {
        s: ClassTotals(queries * np.full((1, 20), 0.5 + 0.1 * s[0] + 0.04 * s[0] * s[1]), queries)
        for s in FULL
    }
    found = effects(FULL, runs)
    assert [each.value for each in found.factors] == pytest.approx([0.2, 0, 0])
    assert alias_groups(FULL) == [((0, 1),), ((0, 2),), ((1, 2),)]
    assert [each.value for each in found.interactions] == pytest.approx([0.08, 0, 0])
    assert found.misfit.value == pytest.approx(0)
    assert found.middle.value == pytest.approx(0.04)


def test_aliases_of_the_study() -> None:
    groups = alias_groups(study())
    assert sorted(map(len, groups)) == [3] * 7
    assert ((0, 1), (2, 4), (5, 6)) in groups  # AB = CE = FG, as ABCE and ABFG are words of it
    assert not confounded(study())


def test_a_design_of_resolution_three_names_what_hides_in_its_effects() -> None:
    half = [(a, b, a * b) for a, b in product((-1, 1), repeat=2)]
    assert confounded(half) == {0: ((1, 2),), 1: ((0, 2),), 2: ((0, 1),)}
    assert alias_groups(half) == []


def test_without_repeats_and_residual_only_classes_are_known() -> None:
    half: list[Levels] = [(a, b, a * b) for a, b in product((-1, 1), repeat=2)]
    runs = runs_of([*half, START], np.random.default_rng(3))
    found = effects(half, runs)
    assert (found.residual.freedom, found.pure.freedom, found.lack) == (0, 0, None)
    assert all(np.isfinite(each.half_width) for each in found.factors)
    repeated = effects(half, runs_of([*half, START], np.random.default_rng(3), extra=2))
    assert (repeated.residual.freedom, repeated.pure.freedom) == (0, 4)


def test_equal_runs_of_all_settings_count_once_as_noise() -> None:
    rng = np.random.default_rng(4)
    queries = np.full(10, 20)
    runs = {s: ClassTotals(queries * rng.normal(0.5, 0.1, (2, 10)), queries) for s in FULL}
    found = effects(FULL, runs)
    scores = np.array([np.sum(runs[s].totals, axis=1) / 200 for s in FULL])
    model = np.repeat(np.column_stack([np.ones(8), FULL]), 2, axis=0)
    squares = np.linalg.lstsq(model, scores.ravel(), rcond=None)[1]
    assert (found.residual.freedom, found.pure.freedom) == (12, 8)
    assert found.residual.sd == pytest.approx(np.sqrt(squares[0] / 12))
    means = scores.mean(axis=1)
    assert found.factors[0].value == pytest.approx(means[4:].mean() - means[:4].mean())


def test_the_gap_elsewhere_borrows_the_noise() -> None:
    runs = runs_of(FULL, np.random.default_rng(5), extra=2)
    ends = ClassTotals(np.asarray(runs[START].totals)[:1], runs[START].queries), runs[END]
    wide = gap_between(FULL, runs, ends)
    assert wide.value == pytest.approx(score(ends[1]) - score(ends[0]))
    assert wide.half_width > effects(FULL, runs).gap.half_width


def test_runs_on_other_queries_are_refused() -> None:
    runs = runs_of(FULL, np.random.default_rng(6))
    runs[END] = ClassTotals(runs[END].totals, np.asarray(runs[END].queries) + 1)
    with pytest.raises(MlbenchError, match="other classes or queries"):
        effects(FULL, runs)


def test_holm_adjusts_in_steps() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm_adjusted([0.9, 0.8]) == (1.0, 1.0)
    assert holm_adjusted([]) == ()


def test_the_simulation_covers() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "stress" / "effects.py"))
    found = script["rates"](script["CASES"][0], 40)
    assert min(found.effect, found.gap, found.misfit, found.middle) >= 0.85
    assert found.error <= 0.15  # 40 trials: a rate of 0.05 has a standard error of 0.034
    assert found.power_2 >= 0.9
