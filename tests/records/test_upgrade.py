"""Totals by class for records that were made before records held them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command import assert_refused, mlbench
from helpers.runs import RUNS, record

from mlbench.errors import MlbenchError
from mlbench.records import store
from mlbench.records.upgrade import upgrade

FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for schema in ("schema1", "schema2"):
        shutil.copytree(FIXTURES / schema, tmp_path / "results" / schema)
    return tmp_path / "results"


@pytest.mark.usefixtures("photos")
def test_records_with_scores_beside_them_get_their_totals(results: Path, tmp_path: Path) -> None:
    before = store.read_results(results).records
    done = upgrade(results, tmp_path)
    assert (done.added, done.complete, done.left) == (8, 0, ())
    for path, made in store.read_results(results).records.items():
        assert json.loads(path.read_text())["schema_version"] == 3
        assert made.totals is not None
        assert made.totals.classes.tolist() == [3, 4, 5]
        assert made.totals.queries.tolist() == [8, 8, 8]
        assert list(made.totals.sums) == ["R@1", "R@2", "R@4", "R@8", "MAP@R"]
        assert replace(made, class_totals=None) == before[path]
    contents = {path: path.read_bytes() for path in results.rglob("*.json")}
    again = upgrade(results, tmp_path)
    assert (again.added, again.complete, again.left) == (0, 8, ())
    assert contents == {path: path.read_bytes() for path in results.rglob("*.json")}


def test_totals_are_of_the_classes_of_the_data_set(photos: Path, tmp_path: Path) -> None:
    """Hits of known queries, in images that lie class by class."""
    path = sorted((FIXTURES / "schema1").rglob("*.json"))[0]
    target = tmp_path / "results" / path.name
    target.parent.mkdir()
    table = json.loads(path.read_text())
    table["metrics"] |= {"R@1": 13 / 24, "R@2": 0.75, "MAP@R": 0.25}
    target.write_text(json.dumps(table))
    hits = np.ones((24, 4), dtype=bool)
    hits[[0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 23], 0] = False
    hits[8:14, 1] = False
    ap_at_r = np.repeat(np.array([0.5, 0.25, 0], np.float32), 8)
    packed = np.packbits(hits, axis=0)
    np.savez(target.with_suffix(".npz"), ks=np.array([1, 2, 4, 8]), hits=packed, ap_at_r=ap_at_r)
    assert upgrade(tmp_path / "results", photos.parent).added == 1
    totals = store.load(target).totals
    assert totals is not None
    assert totals.sums["R@1"].tolist() == [6, 0, 7]
    assert totals.sums["R@2"].tolist() == [8, 2, 8]
    assert totals.sums["MAP@R"].tolist() == [4, 2, 0]


def test_what_cannot_be_upgraded_is_left_and_named(
    results: Path, photos: Path, tmp_path: Path
) -> None:
    paths = sorted(results.rglob("*.json"))
    paths[0].with_suffix(".npz").unlink()
    paths[1].write_text("{")
    table = json.loads(paths[2].read_text())
    table["dataset"]["fingerprint"] = "0" * 64
    paths[2].write_text(json.dumps(table))
    table = json.loads(paths[3].read_text())
    table["metrics"]["R@1"] = 0.5
    paths[3].write_text(json.dumps(table))
    store.save(results, record(RUNS[0], status="diverged", metrics={}), None)
    contents = [path.read_bytes() for path in paths[:4]]
    command = ("results", "upgrade", results, "--data-root", tmp_path)
    result = mlbench(*command)
    assert result.exit_code == 0
    assert result.stdout == "4 of 9 records upgraded; 1 had totals, 4 not changed\n"
    for path, reason in zip(
        paths,
        (
            "the per-query scores of its run are not next to it",
            "not valid JSON",
            "data set 'folder:photos' here differs from that of the record",
            "class_totals give R@1 1.0, metrics 0.5",
        ),
        strict=False,
    ):
        assert f"{path}: {reason}" in result.stderr
    assert contents == [path.read_bytes() for path in paths[:4]]


def test_without_the_data_set_nothing_is_done(results: Path, tmp_path: Path) -> None:
    contents = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.raises(MlbenchError, match="the labels of data set 'folder:photos' are needed"):
        upgrade(results, tmp_path / "elsewhere")
    assert contents == {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert_refused(mlbench("results", "upgrade", results), "'folder:photos' are needed")
    assert_refused(mlbench("results", "upgrade", tmp_path / "none"), "no results folder")
