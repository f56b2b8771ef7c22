"""What is said of the runs of several rows: the formulas by hand, and what each case allows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import RUNS, record, with_hits, with_totals
from scipy.stats import t

from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, compare
from mlbench.comparison.judgement import Scope, judge
from mlbench.comparison.rows import Row
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records.record import RunRecord
from mlbench.tables.formats import render
from mlbench.tables.layout import distance, sheet

Hits = Sequence[Sequence[int]]

# Hits at 1 of two seeds on nine classes of ten queries.
SOFTTRIPLE = [[9, 8, 7, 9, 6, 8, 9, 7, 8], [8, 8, 8, 9, 7, 9, 9, 6, 9]]
NPAIRS = [[4, 5, 4, 6, 3, 5, 6, 4, 4], [5, 5, 3, 6, 4, 5, 5, 4, 5]]
NEAR = [[9, 7, 8, 8, 6, 8, 8, 7, 9], [8, 8, 7, 9, 7, 8, 9, 7, 8]]


def runs(loss: str, hits: Hits) -> list[RunRecord]:
    spec = RunSpec(RUNS[0].recipe, make_plan(Request(losses=("npairs",))).losses[0], 0)
    name = LossSpec(loss)
    return [
        with_hits(record(replace(spec, loss=name, seed=seed), metrics=_metrics(seed)), each)
        for seed, each in enumerate(hits)
    ]


def _metrics(seed: int) -> dict[str, int | float]:
    return {**record(RUNS[0]).metrics, "NMI": 0.3 + seed / 100}


def compared(*rows: list[RunRecord]) -> Comparison:
    flat = [run for row in rows for run in row]
    (comparison,) = compare({Path(f"{number}.json"): run for number, run in enumerate(flat)})
    return comparison


def row_of(comparison: Comparison, label: str) -> Row:
    return next(row for row in comparison.rows if row.label.startswith(label))


def test_a_small_case_by_hand() -> None:
    """Two losses, two seeds, nine classes of equal size: the variances as sums over loops."""
    comparison = compared(runs("triplet", SOFTTRIPLE), runs("npairs", NPAIRS))
    a, b = np.array(SOFTTRIPLE), np.array(NPAIRS)
    scores = [each.sum(axis=1) / 90 for each in (a, b)]
    means = [each.mean() for each in scores]
    u = [(each - 10 * y[:, None]) / 90 for each, y in zip((a, b), scores, strict=True)]
    ubar = [each.mean(axis=0) for each in u]

    kappa, classes, seeds = 9 / 8, 8.0, 2.0
    of_classes = kappa * sum((ubar[0] - ubar[1]) ** 2)
    of_seeds = sum(float(((y - y.mean()) ** 2).sum()) for y in scores) / seeds
    both = sum(float(((r - m) ** 2).sum()) for r, m in zip(u, ubar, strict=True)) / seeds * kappa
    v_s, v_i = of_seeds * (1 / 2 + 1 / 2), both * (1 / 2 + 1 / 2)
    v = max(of_classes + v_s - v_i, of_classes, v_s)
    nu = v**2 / (of_classes**2 / classes + v_s**2 / seeds + v_i**2 / (seeds * classes))
    nu = min(max(nu, min(classes, seeds)), classes + seeds)
    h = max(
        t.ppf(0.975, df) * math.sqrt(part)
        for df, part in ((nu, v), (seeds, v_s), (classes, of_classes))
    )

    gap = means[0] - means[1]
    behind = row_of(comparison, "npairs").behind["R@1"]
    assert (behind.gap, behind.low, behind.high) == pytest.approx((gap, gap - h, gap + h))
    assert behind.low > 0
    assert comparison.scope is Scope.CLASSES_AND_SEEDS
    assert row_of(comparison, "triplet").marked >= {"R@1"}
    assert "R@1" not in row_of(comparison, "npairs").marked
    width = row_of(comparison, "npairs").estimates["R@1"].half_width
    assert width == pytest.approx(t.ppf(0.975, seeds) * math.sqrt(of_seeds / 2))
    printed = f"{100 * gap:.1f} ({100 * (gap - h):.1f} to {100 * (gap + h):.1f})"
    assert distance(behind) == printed
    assert printed in render([comparison], "text")


def test_mark_and_interval_agree_in_every_metric() -> None:
    comparison = compared(runs("triplet", SOFTTRIPLE), runs("npairs", NPAIRS), runs("xbm", NEAR))
    assert {row.label for row in comparison.rows if "R@1" in row.marked} == {"triplet", "xbm"}
    for row in comparison.rows:
        for metric, behind in row.behind.items():
            reaches = behind.low == 0 and comparison.scopes[metric] is comparison.scope
            assert (metric in row.marked) == reaches


def test_nmi_is_over_seeds_alone_and_never_marked_under_other_classes() -> None:
    comparison = compared(runs("triplet", SOFTTRIPLE), runs("npairs", SOFTTRIPLE))
    assert comparison.scopes["NMI"] is Scope.SEEDS
    for row in comparison.rows:
        assert "R@1" in row.marked
        assert "NMI" not in row.marked
        assert row.behind["NMI"].low == 0


def test_one_seed_marks_nothing_and_shows_the_part_of_the_classes() -> None:
    comparison = compared(runs("triplet", SOFTTRIPLE[:1]), runs("npairs", NPAIRS[:1]))
    assert comparison.scope is Scope.CLASSES
    assert not any(row.marked for row in comparison.rows)
    u = [(np.array(each[0]) - sum(each[0]) / 9) / 90 for each in (SOFTTRIPLE, NPAIRS)]
    h = t.ppf(0.975, 8) * math.sqrt(9 / 8 * sum((u[0] - u[1]) ** 2))
    behind = row_of(comparison, "npairs").behind["R@1"]
    assert behind.high - behind.gap == pytest.approx(h)
    assert all(row.estimates["R@1"].half_width is None for row in comparison.rows)


def test_a_row_of_one_seed_among_others_says_whose_noise_it_has() -> None:
    comparison = compared(runs("triplet", SOFTTRIPLE), runs("npairs", NPAIRS[:1]))
    assert comparison.scope is Scope.CLASSES_AND_SEEDS
    assert "estimated from the other rows" in row_of(comparison, "npairs").notes[0]
    assert row_of(comparison, "triplet").notes == ()


def test_copies_are_one_run_without_noise_of_seeds_and_keep_their_classes() -> None:
    copies = runs("features", [NPAIRS[0]] * 3)
    comparison = compared(copies, runs("triplet", SOFTTRIPLE))
    row = row_of(comparison, "features")
    assert row.runs == 1
    assert len(row.files) == 3
    assert {each.half_width for each in row.estimates.values()} == {None}
    assert sheet(comparison).lines[0].cells[-1] == "1"
    trained = [runs("triplet", SOFTTRIPLE), copies]
    alike = compared(runs("npairs", [NPAIRS[0]] * 3), runs("triplet", SOFTTRIPLE))
    assert row_of(alike, "npairs").runs == 3  # trained, so three runs that happen to agree
    single = judge({"a": trained[0], "b": trained[1]}, ["R@1"])["R@1"]
    once = judge({"a": trained[0], "b": runs("npairs", NPAIRS[:1])}, ["R@1"])["R@1"]
    assert single.half_widths["b"] is None
    assert single.differences is not None
    assert once.differences is not None
    assert 0 < single.differences.half_width[0] < once.differences.half_width[0]


def test_without_totals_means_stand_and_seeds_alone_are_spoken_of() -> None:
    old = [replace(run, class_totals=None) for run in runs("npairs", NPAIRS)]
    comparison = compared(runs("triplet", SOFTTRIPLE), old)
    assert comparison.scope is Scope.SEEDS
    (note,) = comparison.notes
    assert note.startswith("2 of 4 records have no totals by test class")
    assert note.endswith("mlbench results upgrade FOLDER")
    assert row_of(comparison, "npairs").estimates["R@1"].mean == pytest.approx(83 / 180)
    both = compared(runs("triplet", SOFTTRIPLE), runs("npairs", NPAIRS))
    (narrow,) = compare(
        {
            Path(f"{n}.json"): run
            for n, run in enumerate([*runs("triplet", SOFTTRIPLE), *runs("npairs", NPAIRS)])
        },
        "these-classes",
    )
    assert both.notes == narrow.notes == ()
    assert narrow.scope is Scope.SEEDS
    widths = [
        row_of(each, "npairs").behind["R@1"].high - row_of(each, "npairs").behind["R@1"].low
        for each in (comparison, narrow, both)
    ]
    assert widths[0] == pytest.approx(widths[1])
    assert widths[1] < widths[2]


def test_a_metric_that_lacks_totals_is_of_seeds_alone() -> None:
    """Records that were upgraded have none of R-Precision."""
    rows = [runs("triplet", SOFTTRIPLE), runs("npairs", NPAIRS)]
    for row in rows:
        for number, run in enumerate(row):
            assert run.totals is not None
            sums = {n: each for n, each in run.totals.sums.items() if n != "R-Precision"}
            row[number] = replace(run, class_totals=replace(run.totals, sums=sums).pack())
    comparison = compared(*rows)
    assert comparison.scopes["R-Precision"] is Scope.SEEDS
    assert comparison.scope is Scope.CLASSES_AND_SEEDS
    assert comparison.notes == ()


def test_runs_of_other_queries_are_not_compared() -> None:
    other = [
        with_totals(replace(run, dataset=replace(run.dataset, test_classes=10)))
        for run in runs("npairs", NPAIRS)
    ]
    comparison = compared(runs("triplet", SOFTTRIPLE), other)
    assert "different queries" in comparison.notes[0]
    assert comparison.scope is Scope.NOTHING
    assert not any(row.behind or row.marked for row in comparison.rows)
    assert row_of(comparison, "npairs").estimates["R@1"].mean == pytest.approx(83 / 180)


def test_a_noisy_row_is_named_with_its_metrics() -> None:
    rng = np.random.default_rng(0)
    quiet = [runs(name, [NEAR[0], NEAR[1]] * 3) for name in ("triplet", "npairs")]
    wild = runs("xbm", [rng.binomial(10, rate, 9).tolist() for rate in (0.1, 0.9, 0.2, 0.8, 0.5)])
    comparison = compared(*quiet, wild)
    assert comparison.noisy == {"xbm": ("R@1",)}
    (note,) = (note for note in sheet(comparison).notes if "xbm varies more" in note)
    assert "than the other losses in R@1, so its own variance is used there" in note


def in_folds(loss: str, hits: Hits) -> list[RunRecord]:
    return [replace(run, seed=0, fold=number) for number, run in enumerate(runs(loss, hits))]


def test_folds_are_compared_over_those_that_all_rows_have() -> None:
    """Paired: what counts is the difference in each fold, and the classes, each of them once."""
    folds = SOFTTRIPLE + NEAR, [*NPAIRS, *NPAIRS]
    comparison = compared(in_folds("triplet", folds[0]), in_folds("npairs", folds[1]))
    assert comparison.scope is Scope.TEST_CLASSES
    a, b = (np.array(each) / 90 for each in folds)
    gaps = (a - b).sum(axis=1)
    residuals = (a - b - (gaps / 9)[:, None]).mean(axis=0)
    of_classes, of_folds = 9 / 8 * (residuals**2).sum(), gaps.var(ddof=1) / 4
    v = of_classes + of_folds
    nu = v**2 / (of_classes**2 / 8 + of_folds**2 / 3)
    behind = row_of(comparison, "npairs").behind["R@1"]
    assert behind.gap == pytest.approx(gaps.mean())
    assert behind.high - behind.gap == pytest.approx(t.ppf(0.975, nu) * math.sqrt(v))
    assert comparison.scopes["NMI"] is Scope.SPLITS
    assert row_of(comparison, "triplet").runs == 4

    fewer = compared(in_folds("triplet", folds[0]), in_folds("npairs", folds[1])[:2])
    assert fewer.scope is Scope.TEST_CLASSES
    apart = compared(in_folds("triplet", folds[0]), in_folds("npairs", folds[1])[:1])
    assert apart.scope is Scope.NOTHING
    assert not any(row.behind for row in apart.rows)


def on_split(runs: list[RunRecord], split: int) -> list[RunRecord]:
    """Return runs on a random split, which tests other classes."""
    made = []
    for run in runs:
        assert run.totals is not None
        totals = replace(run.totals, classes=run.totals.classes + 3 * split)
        made.append(replace(run, split=split, class_totals=totals.pack()))
    return made


def test_random_splits_test_other_classes_and_are_compared_in_each() -> None:
    """Three splits of two seeds; 15 classes in all, of which each counts once."""
    hits = {"triplet": (SOFTTRIPLE, NEAR, SOFTTRIPLE), "npairs": (NPAIRS, NPAIRS, NEAR)}
    rows = [
        [run for number in range(3) for run in on_split(runs(name, each[number]), number)]
        for name, each in hits.items()
    ]
    comparison = compared(*rows)
    assert comparison.scope is Scope.TEST_CLASSES
    means = {name: [np.array(h).mean(axis=0) / 90 for h in each] for name, each in hits.items()}
    residuals, gaps = np.zeros(15), []
    for number, (a, b) in enumerate(zip(means["triplet"], means["npairs"], strict=True)):
        gaps.append((a - b).sum())
        residuals[3 * number : 3 * number + 9] += (a - b - gaps[-1] / 9) / 3
    of_classes, of_splits = 15 / 14 * (residuals**2).sum(), np.var(gaps, ddof=1) / 3
    v = of_classes + of_splits
    nu = v**2 / (of_classes**2 / 14 + of_splits**2 / 2)
    behind = row_of(comparison, "npairs").behind["R@1"]
    assert behind.high - behind.gap == pytest.approx(t.ppf(0.975, nu) * math.sqrt(v))
    assert row_of(comparison, "triplet").runs == 6
    assert "±: 95 % interval of the mean over splits" in sheet(comparison).notes[0]
    assert "--splits" in advise(comparison)


def test_one_loss_alone_is_behind_nothing() -> None:
    (row,) = compared(runs("triplet", SOFTTRIPLE)).rows
    assert (row.behind, row.marked) == ({}, frozenset())
    assert row.estimates["R@1"].half_width is not None


def test_thirty_losses_take_less_than_a_fifth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    many = {
        f"loss{number}": runs("triplet", rng.binomial(10, 0.5, (10, 9)).tolist())
        for number in range(30)
    }
    metrics = ("R@1", "R@2", "R@4", "R@8", "NMI", "MAP@R", "R-Precision")
    judge(many, metrics)  # imports, draws, totals unpacked
    start = time.process_time()
    judge(many, metrics)
    assert time.process_time() - start < 0.6  # 0.1 on a quiet machine
