"""`mlbench plan`: the sheet, the shipped variances, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.command import assert_refused, mlbench
from helpers.runs import PLAN, record, with_hits

from mlbench.comparison.planning import Sources, shipped
from mlbench.records import store
from mlbench.tables.planning import Question, answer, planning_sheet

CUB = shipped()


def question(gap: float, rows: int = 2, classes: int = 100) -> Question:
    return Question(CUB.what, CUB.sources, gap, rows, classes)


def test_the_answers_for_cub() -> None:
    # Those of the study's own variances, worked out apart from this code: the limit of seeds is
    # (t(99, .975) + t(99, .8)) sqrt(classes / 100) = (1.98422 + 0.84516) * 0.0033319.
    assert [question(gap).seeds for gap in (0.005, 0.01, 0.02)] == [None, 41, 3]
    limit = (1.98422 + 0.84516) * (CUB.sources.classes / 100) ** 0.5
    assert planning_sheet(question(0.01)).lines[-1].cells[:2] == (
        "any number",
        f"{100 * limit:.2f}",
    )
    assert answer(question(0.02)) == (
        "Detecting a gap of 2 percentage points on 100 test classes takes 3 seeds per loss."
    )
    told = answer(question(0.005))
    assert told.startswith("No number of seeds detects a gap of 0.5 percentage points on 100 test")
    assert f"smallest detectable gap is {100 * limit:.2f}" in told
    few, many = question(0.005).classes_with(3), question(0.005).classes_with(10)
    assert few is not None
    assert many is not None
    assert f"{few:,} with 3 seeds or {many:,} with 10 seeds" in told
    assert question(0.005, classes=many).seeds == 10, "as many classes as it says are enough"
    assert (question(0.005, classes=many - 1).seeds or 11) > 10


def test_more_losses_take_more() -> None:
    gap = 0.02
    pair, table = question(gap).seeds, question(gap, rows=10).seeds
    assert pair is not None
    assert table is not None
    assert table > pair
    assert "Bonferroni's correction for 45 pairs" in planning_sheet(question(gap, rows=10)).notes[0]


def test_a_limit_that_is_not_known_is_not_given() -> None:
    asked = Question("variants of one loss", Sources(0.0, 0.005, 0.0), 0.0001, 2, 12)
    assert planning_sheet(asked).lines[-1].cells == ("any number", "not known", "not known")
    assert "the least that" not in answer(asked)


def test_records_at_hand_are_planned_by(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for spec in PLAN.runs():
        store.save(tmp_path, with_hits(record(spec), rng.integers(3, 7, size=9)), None)
    (planned,) = json.loads(mlbench("plan", tmp_path, "--gap", "3", "--json").stdout)
    assert planned["test_classes"] == 9
    assert all(value >= 0 for value in planned["variances"].values())
    text = mlbench("plan", tmp_path, "--gap", "3", "--classes", "500").stdout
    assert text.startswith("2 losses on 500 test classes\n")
    assert f"variances of {planned['what']}" in text


@pytest.mark.parametrize("gap", ["0", "-1", "nan", "inf", "101"])
def test_gaps_that_are_none_are_refused(gap: str) -> None:
    assert_refused(
        mlbench("plan", "--gap", gap), "expected percentage points, above 0 and at most 100"
    )


def test_records_that_do_not_tell_are_refused(tmp_path: Path) -> None:
    store.save(tmp_path, record(PLAN.runs()[0]), None)
    assert_refused(mlbench("plan", tmp_path, "--gap", "1"), "planning needs records of at least")
    assert_refused(mlbench("plan", tmp_path / "none", "--gap", "1"), "no results folder")
