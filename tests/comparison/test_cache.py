"""Comparisons are kept while no file changes, and never longer."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import RUNS, record, with_totals

from mlbench.comparison import cache as summary
from mlbench.comparison.cache import Summary, summarise
from mlbench.comparison.judgement import Scope
from mlbench.errors import MlbenchError
from mlbench.records import store
from mlbench.records.record import RunRecord


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
    """The files that were read."""
    seen: list[Path] = []

    def counted(paths: Iterable[Path]) -> store.Results:
        listed = list(paths)
        seen.extend(listed)
        return store.read_records(listed)

    monkeypatch.setattr(summary, "read_records", counted)
    return seen


def other_recipe(seed: int) -> RunRecord:
    """A record that stands in another table than those of ``folder``."""
    run = RUNS[0]
    recipe = replace(run.recipe, head=replace(run.recipe.head, dim=32))
    return record(replace(run, recipe=recipe, seed=seed), 0.7)


def recalls(found: Summary) -> list[float]:
    return [row.estimates["R@1"].mean for each in found.comparisons for row in each.rows]


def test_the_folder_may_be_the_one_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = recalls(summarise(folder))
    monkeypatch.chdir(folder)
    assert recalls(summarise(Path())) == elsewhere
    assert recalls(summarise(Path())) == elsewhere  # from the cache


def test_an_unchanged_folder_is_not_read_again(folder: Path, reads: list[Path]) -> None:
    first = summarise(folder)
    assert len(first.problems) == 1
    assert recalls(first) == pytest.approx([0.51, 0.51])
    reads.clear()
    assert summarise(folder) == first
    assert reads == [folder / "bad.json"], "no comparison has it"


def test_a_changed_a_new_and_a_removed_file_are_seen(folder: Path) -> None:
    summarise(folder)
    path = store.save(folder, record(RUNS[0], 0.2), None)
    settle(folder)
    assert recalls(summarise(folder)) != pytest.approx([0.51, 0.51])
    path.unlink()
    assert [row.runs for row in summarise(folder).comparisons[0].rows] == [3, 2]
    (folder / "bad.json").unlink()
    assert summarise(folder).problems == ()


def test_only_the_comparison_that_changed_is_read_again(folder: Path, reads: list[Path]) -> None:
    summarise(folder)
    reads.clear()
    added = store.save(folder, other_recipe(0), None)
    settle(added.parent)
    assert len(summarise(folder).comparisons) == 2
    assert set(reads) == {added, folder / "bad.json"}
    reads.clear()
    more = store.save(folder, other_recipe(1), None)
    settle(added.parent)
    found = summarise(folder)
    assert set(reads) == {added, more, folder / "bad.json"}
    assert sorted(len(each.files) for each in found.comparisons) == [2, len(RUNS)]
    assert found == uncached(folder), "in the order and with the differences of a first reading"


def uncached(folder: Path) -> Summary:
    for kept in Path(os.environ["MLBENCH_CACHE"], "tables").iterdir():
        kept.unlink()
    return summarise(folder)


def test_the_narrower_statement_is_kept_apart(folder: Path) -> None:
    for path in folder.rglob("*-*.json"):
        store.save(folder, with_totals(store.load(path)), None)
    settle(folder)
    scopes = [
        summarise(folder, statement).comparisons[0].scope
        for statement in ("other-classes", "these-classes", "other-classes")
    ]
    assert scopes == [Scope.CLASSES_AND_SEEDS, Scope.SEEDS, Scope.CLASSES_AND_SEEDS]


def test_what_has_just_changed_is_not_kept(folder: Path, reads: list[Path]) -> None:
    path = store.save(folder, record(RUNS[0]), None)
    first = summarise(folder)
    reads.clear()
    assert summarise(folder) == first
    assert path in reads


def test_comparisons_with_a_plugins_loss_are_not_kept(folder: Path, reads: list[Path]) -> None:
    path = store.save(folder, replace(other_recipe(0), loss="of-a-plugin"), None)
    settle(path.parent)
    first = summarise(folder)
    reads.clear()
    assert summarise(folder) == first
    assert set(reads) == {path, folder / "bad.json"}


def test_a_folder_whose_name_is_no_text(folder: Path) -> None:
    (folder / os.fsdecode(b"b\xff")).mkdir()
    for path in list(folder.glob("*/*.json")):
        path.rename(folder / os.fsdecode(b"b\xff") / path.name)
    assert summarise(folder) == summarise(folder)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"key": 1}', b"\xff"])
def test_a_damaged_cache_is_made_anew(folder: Path, reads: list[Path], damage: bytes) -> None:
    first = summarise(folder)
    reads.clear()
    (kept,) = Path(os.environ["MLBENCH_CACHE"], "tables").iterdir()
    kept.write_bytes(damage)
    assert summarise(folder) == first
    assert len(reads) == len(RUNS) + 1


def test_without_a_cache_it_does_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBENCH_CACHE", str(folder / "bad.json"))
    assert recalls(summarise(folder)) == pytest.approx([0.51, 0.51])


def test_no_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(MlbenchError, match="no results folder"):
        summarise(folder / "none")
