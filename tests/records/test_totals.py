"""Totals by class: what a record keeps of a run for the statistics."""

import base64
import json
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.runs import RUNS, record, with_totals

from mlbench.errors import MlbenchError
from mlbench.metrics.evaluation import evaluate_queries, summarize
from mlbench.records.record import RunRecord
from mlbench.records.totals import PackedTotals, RunTotals, totals_by_class


def test_totals_are_sums_over_the_queries_of_a_class() -> None:
    scores = {"R@1": np.array([True, False, True, True]), "MAP@R": np.array([0.5, 0.25, 1.0, 0.0])}
    totals = totals_by_class(scores, np.array([0, 1, 0, 1]), np.array([7, 9]))
    assert totals.classes.tolist() == [7, 9]
    assert totals.queries.tolist() == [2, 2]
    assert totals.sums["R@1"].tolist() == [2.0, 1.0]
    assert totals.sums["MAP@R"].tolist() == [1.5, 0.25]
    assert totals.means == {"R@1": 0.75, "MAP@R": 0.4375}


def test_packed_totals_come_back_to_half_a_unit() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 40
    found = evaluate_queries(rng.normal(size=(300, 4)), labels)
    totals = totals_by_class(found.scores, labels, np.arange(60, 100))
    again = totals.pack().unpack()
    assert list(again.sums) == ["R@1", "R@2", "R@4", "R@8", "MAP@R", "R-Precision"]
    assert (again.classes == totals.classes).all()
    assert (again.queries == totals.queries).all()
    for name, sums in totals.sums.items():
        bound = 0.0 if name.startswith("R@") else 2.0**-25
        assert np.abs(again.sums[name] - sums).max() <= bound
    summary = summarize(found)
    assert again.means == pytest.approx({name: summary[name] for name in again.means}, abs=1e-9)


def test_many_classes_take_few_bytes() -> None:
    """Stanford Online Products has 11,316 test classes of about five images."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(11_316, size=60_502))
    labels = np.unique(labels, return_inverse=True)[1]
    scores = {f"R@{k}": rng.random(len(labels)) < 0.7 for k in (1, 10, 100, 1000)}
    scores |= {"MAP@R": rng.random(len(labels)), "R-Precision": rng.random(len(labels))}
    packed = totals_by_class(scores, labels, np.arange(labels.max() + 1)).pack()
    assert len(packed.packed) < 160_000


def test_a_record_keeps_its_totals() -> None:
    made = with_totals(record(RUNS[0]))
    again = RunRecord.from_json(made.to_json(), "x")
    assert again == made
    assert again.totals is not None
    assert again.totals.queries.tolist() == [10] * 9
    assert again.totals.sums["R@1"] == pytest.approx([5.0] * 9)
    assert record(RUNS[0]).totals is None


def _packed(rows: Any, *, metrics: tuple[str, ...] = ("R@1",), classes: int = 2) -> PackedTotals:
    planes = np.array(rows, "<i8").reshape(-1, 1).view(np.uint8).T.tobytes()
    return PackedTotals(metrics, classes, base64.b64encode(zlib.compress(planes)).decode())


ONE = 2**24


def test_the_form_is_the_one_that_is_described() -> None:
    totals = _packed([[3, 8], [5, 4], [2 * ONE, ONE // 2]]).unpack()
    assert totals.classes.tolist() == [3, 8]
    assert totals.queries.tolist() == [5, 4]
    assert totals.sums["R@1"].tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    "packed",
    [
        _packed([[8, 3], [5, 4], [0, 0]]),
        _packed([[3, 3], [5, 4], [0, 0]]),
        _packed([[-1, 3], [5, 4], [0, 0]]),
        _packed([[3, 8], [5, 0], [0, 0]]),
        _packed([[3, 8], [5, 4], [-1, 0]]),
        _packed([[3, 8], [5, 4], [6 * ONE, 0]]),
        _packed([[3, 8], [5, 4]]),
        _packed([[3, 8], [5, 4], [0, 0], [0, 0]]),
        _packed([[3, 8], [5, 4], [0, 0], [0, 0]], metrics=("R@1", "R@1")),
        PackedTotals(("R@1",), 2, "%%%"),
        PackedTotals(("R@1",), 2, base64.b64encode(b"no zlib").decode()),
        PackedTotals(("R@1",), 0, base64.b64encode(zlib.compress(b"")).decode()),
        PackedTotals(("R@1",), -2, base64.b64encode(zlib.compress(b"")).decode()),
        PackedTotals(("R@1",), 10**15, base64.b64encode(zlib.compress(bytes(10**6))).decode()),
        PackedTotals(("R@1",), 2, base64.b64encode(zlib.compress(bytes(10**6))).decode()),
    ],
)
def test_what_are_no_totals_of_any_run_is_refused(packed: PackedTotals) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        packed.unpack()
    made = replace(record(RUNS[0]), class_totals=packed)
    with pytest.raises(MlbenchError, match=r"^a\.json: class_totals cannot be read \(.+\)"):
        RunRecord.from_json(made.to_json(), "a.json")


def _changed(change: str) -> RunRecord:
    made = with_totals(record(RUNS[0]))
    totals = made.totals
    assert totals is not None
    sums, queries, numbers = dict(totals.sums), totals.queries, totals.classes
    if change == "hits":
        sums["R@1"] = sums["R@1"] + np.eye(9)[0] * 0.01
    elif change == "missing":
        del sums["MAP@R"]
    elif change == "other":
        sums["R@3"] = sums["R@1"]
    elif change == "queries":
        queries = queries + 1
    else:
        assert change == "classes"
        sums = {name: np.append(each[:-2], each[-2:].sum()) for name, each in sums.items()}
        queries, numbers = np.append(queries[:-2], queries[-2:].sum()), numbers[:-1]
    return replace(made, class_totals=RunTotals(numbers, queries, sums).pack())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hits", "class_totals give R@1 0.500"),
        ("missing", "class_totals give MAP@R nan, metrics 0.2"),
        ("other", "class_totals give R@3 0.5"),
        ("queries", "class_totals give n_query 99, metrics 90"),
        ("classes", "of 8 classes, the data set has 9"),
    ],
)
def test_totals_must_add_up_to_the_metrics(change: str, message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        RunRecord.from_json(_changed(change).to_json(), "a.json")


def test_older_records_have_none_unless_upgraded() -> None:
    table = json.loads(record(RUNS[0]).to_json()) | {"schema_version": 2}
    del table["checksum"]
    with pytest.raises(MlbenchError, match="class_totals does not belong to its schema"):
        RunRecord.from_json(json.dumps(table), "x")
