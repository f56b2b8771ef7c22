"""Records and their store."""

import hashlib
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import RUNS, record

import mlbench
from mlbench.comparison.comparison import compare
from mlbench.errors import MlbenchError
from mlbench.metrics.evaluation import evaluate_queries
from mlbench.recipes.spec import FORMER_PARAMS, LossSpec
from mlbench.records import scores, store
from mlbench.records.migrations import SCHEMA_VERSION
from mlbench.records.record import (
    RunRecord,
    _read_checked,
    _read_whole,
)
from mlbench.registry import LOSSES
from mlbench.tables.formats import render


def test_a_record_survives_its_json() -> None:
    made = record(RUNS[0], 1 / 3)
    assert RunRecord.from_json(made.to_json(), "x") == made
    assert made.spec == RUNS[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema_version": 99}, "schema 99, made by a newer mlbench"),
        ({"schema_version": 0}, "unknown schema_version 0;"),
        ({"schema_version": True}, "unknown schema_version True;"),
        ({"schema_version": 1}, "skipped does not belong to its schema"),
        ({"seed": 1}, "does not match its checksum"),
        ({"checksum": "0" * 64}, "does not match its checksum"),
        ({"metrics": record(RUNS[0]).metrics | {"R@1": 0.51}}, "does not match its checksum"),
        ({"seed": "one"}, "expected an integer"),
        ({"metrics": {}}, "metrics are missing or unexpected"),
        ({"metrics": record(RUNS[0]).metrics | {"R@1": -5.0}}, "R@1 is -5.0"),
        ({"metrics": record(RUNS[0]).metrics | {"R@x": 0.5}}, "R@x"),
        ({"metrics": record(RUNS[0]).metrics | {"R@1": 0.95}}, "R@1 is above R@2"),
        ({"metrics": record(RUNS[0]).metrics | {"MAP@R": 0.3}}, "MAP@R is above R-Precision"),
        ({"status": "foo"}, "not one of ok, diverged"),
        ({"status": "diverged"}, "status is 'diverged' but there are metrics"),
        ({"seed": -1}, "at least 0"),
        ({"recipe_id": "0" * 12}, "does not match"),
        ({"nonsense": 1}, "unknown key 'nonsense'"),
        ({"curve": 7}, "expected a list"),
        ({"dataset": None}, "expected a table"),
    ],
)
def test_damaged_records_are_named(edit: dict[str, Any], message: str) -> None:
    table = json.loads(record(RUNS[0]).to_json()) | edit
    with pytest.raises(MlbenchError, match=f"file.json.*{message}"):
        RunRecord.from_json(json.dumps(table), "file.json")


def test_the_quick_way_reads_what_the_checked_way_reads() -> None:
    """And nothing that is not as it was written, such as one with a row of the curve spoilt."""
    for path in sorted((FIXTURES / SCHEMAS[-1]).rglob("*.json")):
        text = path.read_bytes()
        assert _read_whole(text) == _read_checked(text, "x"), path
        spoilt = text.replace(b'"epoch": 0', b'"epoch": 0, "x": 1', 1)
        assert spoilt != text
        assert _read_whole(spoilt) is None
    for path in (FIXTURES / SCHEMAS[0]).rglob("*.json"):
        assert _read_whole(path.read_bytes()) is None


@pytest.mark.parametrize("loss", FORMER_PARAMS)
def test_parameters_of_before_their_declaration_are_what_they_were(loss: str) -> None:
    """A record of before reads with them, keeps its place, and is found by naming them."""
    entry, former = LOSSES.get(loss), FORMER_PARAMS[loss]
    assert former.keys() <= entry.defaults.keys()
    old = {name: value for name, value in entry.defaults.items() if name not in former}
    made = record(replace(RUNS[0], loss=LossSpec(loss, tuple(sorted(old.items())))))
    for text in (made.to_json(), json.dumps(json.loads(made.to_json()))):
        read = RunRecord.from_json(text, "x")
        assert read.params == old | former
        assert read.spec == replace(RUNS[0], loss=LossSpec.of(entry, former))
        assert store.record_path(Path(), read.spec) == store.record_path(Path(), made.spec)
    other = replace(RUNS[0], loss=LossSpec.of(entry, {"init": "unit"}))
    assert other.run_id != made.spec.run_id


def test_parts_that_were_added_later_are_left_out_where_they_say_nothing() -> None:
    made = record(RUNS[0], 1 / 3)
    table = json.loads(made.to_json())
    assert not table.keys() & {"needs", "split"}
    assert json.loads(replace(made, needs="any batch", split=3).to_json())["split"] == 3
    assert _read_whole(made.to_json().encode()) == made
    written = made.to_json().replace(' "seed": 0,', ' "seed": 0,\n "seed": 0,')
    assert _read_whole(written.encode()) is None


def test_a_record_may_be_laid_out_anew() -> None:
    made = record(RUNS[0], 1 / 3)
    assert RunRecord.from_json(json.dumps(json.loads(made.to_json())), "x") == made


FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"
SCHEMAS = [f"schema{version}" for version in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_records_of_every_schema_are_read_as_of_the_newest(schema: str) -> None:
    results = store.read_results(FIXTURES / schema)
    assert results.problems == ()
    assert len(results.records) == 4
    for path, made in results.records.items():
        assert made.schema_version == SCHEMA_VERSION
        written = json.loads(path.read_text())
        assert f"schema{written['schema_version']}" == schema
        assert made.metrics == written["metrics"]
        assert store.record_path(FIXTURES / schema, made.spec) == path
        assert scores.query_scores(path, "R@1", made.queries_sha256) is not None
        assert RunRecord.from_json(made.to_json(), "x") == made


def test_what_schema_1_could_not_say_is_filled_in() -> None:
    (made, *_) = store.read_results(FIXTURES / "schema1").records.values()
    assert made.dataset.skipped == ()
    assert made.provenance.execution == "eager"
    assert made.cost.interruptions == 0
    assert made.queries_sha256 is None


def test_schemas_are_compared_in_one_table() -> None:
    (comparison,) = compare(store.read_results(FIXTURES).records)
    assert [row.label for row in comparison.rows] == ["npairs", "softtriple"]
    assert len(comparison.files) == 12
    for form in ("text", "markdown", "latex", "html", "csv", "json"):
        assert "softtriple" in render([comparison], form)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}', "\x00"])
def test_what_is_no_record_is_named(text: str) -> None:
    with pytest.raises(MlbenchError, match=r"file\.json: not"):
        RunRecord.from_json(text, "file.json")


def test_store_keeps_records_and_hits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    queries = evaluate_queries(rng.normal(size=(20, 4)), np.arange(20) % 5)
    path = store.save(tmp_path, record(RUNS[0]), queries)
    with zipfile.ZipFile(path.with_suffix(".npz")) as archive:
        members = b"".join(archive.read(f"{name}.npy") for name in ("ks", "hits", "ap_at_r"))
    sha256 = hashlib.sha256(members).hexdigest()
    found = store.find(tmp_path, RUNS[0], "f" * 64, "built-in")
    assert found == record(RUNS[0], queries_sha256=sha256)
    assert store.find(tmp_path, RUNS[1], "f" * 64, "built-in") is None
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as beside:
        hits = np.unpackbits(beside["hits"], axis=0, count=20).astype(bool)
        assert (hits == queries.hits).all()
        assert (beside["ap_at_r"] == queries.ap_at_r.astype(np.float32)).all()
    neighbors = scores.query_neighbors(path, sha256)
    assert neighbors is not None
    assert (neighbors == queries.neighbors[:, :10]).all()
    hits_at_1 = scores.query_scores(path, "R@1", sha256)
    assert hits_at_1 is not None
    assert (hits_at_1 == queries.hits[:, 0]).all()


def test_the_results_of_another_run_are_not_taken(tmp_path: Path) -> None:
    for run, seed in zip(RUNS[:2], (0, 1), strict=True):
        rows = np.random.default_rng(seed).normal(size=(20, 4))
        store.save(tmp_path, record(run), evaluate_queries(rows, np.arange(20) % 5))
    one, other = (store.record_path(tmp_path, run) for run in RUNS[:2])
    sha256 = store.load(one).queries_sha256
    assert scores.query_scores(one, "MAP@R", sha256) is not None
    shutil.copy(other.with_suffix(".npz"), one.with_suffix(".npz"))
    assert scores.query_scores(one, "MAP@R", sha256) is None
    assert scores.query_neighbors(one, sha256) is None
    assert scores.query_scores(one, "MAP@R") is not None


def test_what_a_query_lacks_stays_marked(tmp_path: Path) -> None:
    queries = evaluate_queries(np.eye(3), np.array([0, 0, 1]))
    path = store.save(tmp_path, record(RUNS[0]), queries)
    neighbors = scores.query_neighbors(path)
    assert neighbors is not None
    assert (neighbors[:, -1] == -1).all()  # two others for each of the three
    assert (neighbors == queries.neighbors).all()


def test_a_damaged_record_is_set_aside_to_be_made_anew(tmp_path: Path) -> None:
    path = store.save(tmp_path, record(RUNS[0]), None)
    path.write_text(path.read_text()[:100])
    assert store.find(tmp_path, RUNS[0], "f" * 64, "built-in") is None
    store.save(tmp_path, record(RUNS[0]), None)
    assert {p.suffix for p in path.parent.iterdir()} == {".damaged", ".json"}


@pytest.mark.parametrize(("data", "source"), [("0" * 64, "built-in"), ("f" * 64, "mine 2.0")])
def test_a_record_of_other_data_or_another_loss_is_not_taken(
    tmp_path: Path, data: str, source: str
) -> None:
    path = store.save(tmp_path, record(RUNS[0]), None)
    assert store.find(tmp_path, RUNS[0], data, source) is None
    assert path.is_file()  # until there is another in its place
    store.save(tmp_path, record(RUNS[0], loss_source="mine 2.0"), None)
    assert {p.suffix for p in path.parent.iterdir()} == {".outdated", ".json"}
    assert store.load(path).loss_source == "mine 2.0"


def test_results_name_the_damaged_and_keep_the_rest(tmp_path: Path) -> None:
    store.save(tmp_path, record(RUNS[0]), None)
    (tmp_path / "bad.json").write_text("{")
    results = store.read_results(tmp_path)
    assert list(results.records.values()) == [record(RUNS[0])]
    assert len(results.problems) == 1
    assert "bad.json" in results.problems[0]
    with pytest.warns(UserWarning, match="bad.json"):
        assert mlbench.load_results(tmp_path) == [record(RUNS[0])]


def test_no_folder_and_no_records_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MlbenchError, match="no records in"):
        mlbench.load_results(tmp_path)
    with pytest.raises(MlbenchError, match="no results folder"):
        mlbench.load_results(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MlbenchError, match="cannot write"):
        store.save(tmp_path / "file", record(RUNS[0]), None)
