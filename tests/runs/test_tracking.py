"""Trackers are told what records say, once, and never stop a run."""

import sqlite3
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command import assert_refused, mlbench, run
from helpers.runs import RUNS, record

from mlbench.errors import MlbenchError, MlbenchWarning
from mlbench.records import store
from mlbench.records.record import EpochRow, RunRecord
from mlbench.runs import tracking
from mlbench.runs.tracking import MLflow, TensorBoard, TrackerSpec, Tracking, parse_tracker

CURVE = (EpochRow(0, 2.5, 0.1, 0.25), EpochRow(1, 1.5, 0.1, 0.5), EpochRow(2, None, 0.1, None))
MADE = record(RUNS[0], curve=CURVE)


def test_tensorboard_shows_curves_parameters_and_final_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2
    Tracking([TrackerSpec("tensorboard")], tmp_path).log(
        store.record_path(tmp_path, MADE.spec), MADE
    )
    (folder,) = {path.parent for path in tmp_path.rglob("events*")}
    assert folder.name == store.record_path(tmp_path, MADE.spec).stem
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 2.5), (1, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("score")] == [(0, 0.25), (1, 0.5)]
    assert events.Scalars("R@1")[0].value == pytest.approx(MADE.metrics["R@1"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    data: Any = vars(plugin_data_pb2)["HParamsPluginData"]
    shown = data.FromString(content).session_start_info.hparams
    assert shown["schedule.epochs"].number_value == MADE.recipe.schedule.epochs
    assert shown["softtriple.tau"].number_value == MADE.params["tau"]
    assert shown["evaluation.ks"].string_value == str(MADE.recipe.evaluation.ks)
    assert set(tracking.parameters(MADE)) == set(shown)


def test_mlflow_has_a_run_for_each_record(tmp_path: Path) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="the extra mlflow is not installed")
    long = tuple(EpochRow(epoch, 1 / (1 + epoch), 0.1, None) for epoch in range(250))
    path = store.record_path(tmp_path, MADE.spec)
    told = Tracking([TrackerSpec("mlflow")], tmp_path)
    told.log(path, replace(MADE, curve=long))
    told.log(path, replace(MADE, status="diverged", metrics={}))
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        runs = db.execute("SELECT run_uuid, name, status FROM runs ORDER BY start_time").fetchall()
        first, second = runs
        assert first[1:] == (f"{path.parent.name}/{path.stem}", "FINISHED")
        assert second[2] == "FAILED"
        key = "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
        losses = db.execute(key, (first[0], "loss")).fetchall()
        assert losses == [(row.epoch, row.loss) for row in long]
        assert db.execute(key, (first[0], "R_at_1")).fetchall() == [(0, MADE.metrics["R@1"])]
        params = dict(
            db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (first[0],)).fetchall()
        )
    db.close()
    assert params == {name: str(value) for name, value in tracking.parameters(MADE).items()}
    assert params["loss"] == "softtriple"
    assert params["seed"] == "0"


class Broken:
    """A tracker that takes one run and then fails."""

    def __init__(self) -> None:
        self.told = 0

    def log(self, name: str, record: RunRecord) -> None:
        self.told += 1
        if self.told > 1:
            raise ConnectionError("no\nroute")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    tracker = Broken()
    monkeypatch.setattr(tracking, "_opener", lambda *_: lambda: tracker)
    return tracker


def test_a_tracker_that_fails_is_named_once_and_then_off(tmp_path: Path, broken: Broken) -> None:
    told = Tracking([TrackerSpec("mlflow", "http://x")], tmp_path)
    path = store.record_path(tmp_path, MADE.spec)
    told.log(path, MADE)
    with pytest.warns(MlbenchWarning) as seen:
        told.log(path, MADE)
    off = "--track mlflow:http://x: logging stopped: ConnectionError: no route"
    assert [str(warning.message) for warning in seen] == [off]
    told.log(path, MADE)  # a second warning would be an error here
    assert broken.told == 2


def test_a_tracker_that_cannot_be_opened_is_off_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Listening:
        def log(self, name: str, record: RunRecord) -> None:
            told.append(name)

    def opener(spec: TrackerSpec, out: Path) -> Any:
        return Listening if spec.kind == "mlflow" else lambda: 1 / 0

    monkeypatch.setattr(tracking, "_opener", opener)
    both = Tracking([TrackerSpec("tensorboard"), TrackerSpec("mlflow")], tmp_path)
    with pytest.warns(MlbenchWarning, match="--track tensorboard: .*stopped: ZeroDivision"):
        both.log(tmp_path / "a" / "b-1.json", MADE)
    both.log(tmp_path / "a" / "c-1.json", MADE)
    assert told == ["a/b-1", "a/c-1"]


def test_runs_are_tracked_when_made_and_not_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(TensorBoard, "log", lambda self, name, record: told.append(record.loss))
    monkeypatch.setattr(tracking, "_NEEDS", {"tensorboard": ()})
    for losses in ("npairs", "npairs,triplet"):
        result = run(photos, tmp_path / "out", "--losses", losses, "--track", "tensorboard")
        assert result.exit_code == 0, result.output
    assert told == ["untrained", "features", "pca", "npairs", "triplet"]


@pytest.mark.filterwarnings("default::mlbench.errors.MlbenchWarning")
def test_a_run_outlives_its_tracker(photos: Path, tmp_path: Path, broken: Broken) -> None:
    result = run(photos, tmp_path / "out", "--losses", "npairs", "--track", "tensorboard")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "--track" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Warning: --track tensorboard: logging stopped")
    assert "npairs" in result.stdout


def test_what_cannot_be_tracked_is_refused_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = mlbench("run", "--track", "tensorbord", "--out", tmp_path / "out")
    assert_refused(refused, "unknown tracker 'tensorbord'; did you mean tensorboard?")
    monkeypatch.setattr(tracking, "_NEEDS", {"mlflow": ("no_such_package",)})
    with pytest.raises(MlbenchError, match=r"pip install 'dmlbench\[mlflow\]'"):
        parse_tracker("mlflow")


def test_where_a_tracker_writes_follows_the_first_colon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_NEEDS", {"mlflow": (), "tensorboard": ()})
    assert parse_tracker("mlflow:http://host:5000") == TrackerSpec("mlflow", "http://host:5000")
    assert parse_tracker("tensorboard:runs/a") == TrackerSpec("tensorboard", "runs/a")
    assert parse_tracker("mlflow") == TrackerSpec("mlflow")


def test_the_default_of_mlflow_is_its_own_variable_or_the_results_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(MLflow, "__init__", lambda self, uri: opened.append(uri))
    monkeypatch.setattr(MLflow, "log", lambda *_: None)
    specs: Sequence[TrackerSpec] = [TrackerSpec("mlflow")]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Tracking(specs, tmp_path).log(tmp_path / "a.json", MADE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    Tracking(specs, tmp_path).log(tmp_path / "a.json", MADE)
    assert opened == [f"sqlite:///{tmp_path / 'mlflow.db'}", "http://host"]
