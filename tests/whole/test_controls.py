"""The negative controls: that they pass, and that each can fail."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.command import mlbench
from helpers.runs import RUNS, record

from mlbench import controls
from mlbench.comparison.pairs import Pairs
from mlbench.controls import (
    ALLOWED,
    FOUND,
    Totals,
    equalised,
    share_of_tables,
)
from mlbench.registry import DATASETS, LOSSES


@pytest.fixture(scope="module")
def drawn() -> tuple[Totals, Totals]:
    """Four rows of five runs on fifty classes, with effects of class, of seed and of both."""
    rng, queries = np.random.default_rng(0), np.full(50, 24.0)
    of_class = rng.normal(0, 0.03, (4, 1, 50)) + rng.normal(0, 0.1, 50)
    noise = rng.normal(0, 0.07, (4, 5, 50)) + rng.normal(0, 0.004, (4, 5, 1))
    means = np.array([0.5, 0.45, 0.6, 0.3])[:, None, None]
    return queries * (means + of_class + noise), queries


@pytest.mark.parametrize(("width", "passes"), [(1.0, True), (0.3, False)])
def test_tables_of_equal_losses_leave_out_few_unless_intervals_are_too_narrow(
    drawn: tuple[Totals, Totals], monkeypatch: pytest.MonkeyPatch, width: float, passes: bool
) -> None:
    monkeypatch.setattr(controls, "_TABLES", 150)
    whole = Pairs.half_widths
    monkeypatch.setattr(Pairs, "half_widths", lambda self, tail=0.025: width * whole(self, tail))
    totals, queries = drawn
    wrong = share_of_tables(equalised(totals, queries), queries, lambda marked: len(marked) < 4)
    assert (wrong <= ALLOWED) is passes, wrong


def test_a_loss_far_ahead_is_marked_alone(
    drawn: tuple[Totals, Totals], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "_TABLES", 50)
    totals, queries = drawn
    ahead = equalised(totals, queries, 0.2)
    assert share_of_tables(ahead, queries, lambda marked: marked == {"0"}) >= FOUND
    means = ahead.sum(axis=2).mean(axis=1) / queries.sum()
    assert means - means[1] == pytest.approx([0.2, 0, 0, 0])


def test_figures_that_differ_in_one_bit_are_not_equal() -> None:
    first = record(RUNS[0])
    nudged = replace(first, metrics={**first.metrics, "R@1": np.nextafter(0.5, 1)})
    assert controls._equal("x", [first], [first]).passed
    found = controls._equal("x", [first], [nudged])
    assert (found.passed, found.found) == (False, "different, by up to 1.1e-16")
    retrained = replace(first, curve=(replace(first.curve[0], loss=1.25),))
    assert not controls._equal("x", [first], [retrained]).passed, "of training, too"


def test_labels_that_are_not_permuted_are_above_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CLASSES": 12, "_IMAGES": 12}.items():
        monkeypatch.setattr(controls, name, value)
    with controls._registered():
        assert controls._permuted_labels(lambda *_: None).passed
    monkeypatch.setattr(controls, "_permuted", controls._small)
    with controls._registered():
        assert not controls._permuted_labels(lambda *_: None).passed


def test_the_command_prints_every_control_and_leaves_nothing_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"_CLASSES": 8, "_IMAGES": 6, "_RUNS": 3, "_TABLES": 5}.items():
        monkeypatch.setattr(controls, name, value)
    before = (set(LOSSES._entries), set(DATASETS._entries))
    result = mlbench("check", "--statistics", "--json")
    found = {each["name"]: each for each in json.loads(result.stdout)}
    assert len(found) == 6
    equal = [each for each in found.values() if each["found"] == "bit-identical"]
    assert len(equal) == 2
    assert all(each["passed"] for each in equal)
    assert found["one loss under two names: table"]["passed"]
    assert result.exit_code == (0 if all(each["passed"] for each in found.values()) else 1)
    assert (set(LOSSES._entries), set(DATASETS._entries)) == before


def test_single_losses_have_no_statistics_to_check() -> None:
    result = mlbench("check", "triplet", "--statistics")
    assert result.exit_code == 2
    assert "--statistics does not test single losses" in result.stderr
