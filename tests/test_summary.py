"""Comparisons are kept while no file changes, and never longer."""

import os
from pathlib import Path

import pytest
from test_record import RUNS, record

from mlbench import store, summary
from mlbench.errors import MlbenchError
from mlbench.summary import Summary, summarise


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    for run in RUNS:
        store.save(tmp_path / "results", record(run, 0.5 + 0.01 * run.seed), None)
    (tmp_path / "results" / "bad.json").write_text("{")
    settle(tmp_path / "results")
    return tmp_path / "results"


def settle(folder: Path) -> None:
    """Make all files an hour old."""
    for path in folder.rglob("*.*"):
        seconds = path.stat().st_mtime - 3600
        os.utime(path, (seconds, seconds))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were read."""
    seen: list[Path] = []

    def counted(folder: Path) -> store.Results:
        seen.append(folder)
        return store.read_results(folder)

    monkeypatch.setattr(summary, "read_results", counted)
    return seen


def recalls(found: Summary) -> list[float]:
    return [row.estimates["R@1"].mean for each in found.comparisons for row in each.rows]


def test_an_unchanged_folder_is_not_read_again(folder: Path, reads: list[Path]) -> None:
    first = summarise(folder)
    assert len(first.problems) == 1
    assert recalls(first) == pytest.approx([0.51, 0.51])
    assert summarise(folder) == first
    assert len(reads) == 1


def test_a_changed_a_new_and_a_removed_file_are_seen(folder: Path, reads: list[Path]) -> None:
    summarise(folder)
    path = store.save(folder, record(RUNS[0], 0.2), None)
    settle(folder)
    assert recalls(summarise(folder)) != pytest.approx([0.51, 0.51])
    path.unlink()
    assert [row.runs for row in summarise(folder).comparisons[0].rows] == [3, 2]
    (folder / "bad.json").unlink()
    assert summarise(folder).problems == ()
    assert len(reads) == 4


def test_what_has_just_changed_is_not_kept(folder: Path, reads: list[Path]) -> None:
    store.save(folder, record(RUNS[0]), None)
    assert summarise(folder) == summarise(folder)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"key": 1}', b"\xff"])
def test_a_damaged_cache_is_made_anew(folder: Path, reads: list[Path], damage: bytes) -> None:
    first = summarise(folder)
    (kept,) = Path(os.environ["MLBENCH_CACHE"], "tables").iterdir()
    kept.write_bytes(damage)
    assert summarise(folder) == first
    assert len(reads) == 2


def test_without_a_cache_it_does_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBENCH_CACHE", str(folder / "bad.json"))
    assert recalls(summarise(folder)) == pytest.approx([0.51, 0.51])


def test_no_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(MlbenchError, match="no results folder"):
        summarise(folder / "none")
