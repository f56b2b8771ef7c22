"""A results folder in one file, read as the folder is."""

import gzip
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command import assert_refused, mlbench
from helpers.runs import RUNS, record, with_totals

import mlbench as package
from mlbench.comparison import cache
from mlbench.errors import MlbenchError
from mlbench.records import store
from mlbench.records.packs import read_pack, write_pack
from mlbench.records.record import RunRecord


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two losses with three seeds each, in a folder."""
    for number, spec in enumerate(RUNS):
        store.save(tmp_path / "results", with_totals(record(spec, 0.4 + number / 100)), None)
    return tmp_path / "results"


def _pack(folder: Path) -> Path:
    result = mlbench("pack", folder)
    assert result.exit_code == 0, result.output
    return folder.with_name(f"{folder.name}.mlpack")


def test_a_pack_is_read_as_the_folder_is(results: Path, tmp_path: Path) -> None:
    result = mlbench("pack", results)
    pack = tmp_path / "results.mlpack"
    assert result.stdout == f"{pack}: {len(RUNS)} records, 0.00 MB\n"
    assert result.stderr == ""
    assert package.load_results(pack) == package.load_results(results)
    assert mlbench("table", pack).stdout == mlbench("table", results).stdout
    for form in ("json", "csv"):
        tables = [mlbench("table", each, "--format", form).stdout for each in (pack, results)]
        assert tables[0].replace(f"{pack}/", f"{results}/") == tables[1]
    page = tmp_path / "page.html"
    assert mlbench("report", pack, "-o", page).exit_code == 0
    assert "softtriple" in page.read_text()
    one = store.record_path(results, RUNS[0])
    within = pack / one.relative_to(results)
    assert store.load(within) == store.load(one)
    assert mlbench("diff", within, one).stdout == "no difference\n"


def test_the_records_come_back_byte_by_byte(results: Path) -> None:
    written = {p.relative_to(results).as_posix(): p.read_bytes() for p in results.rglob("*.json")}
    pack = _pack(results)
    assert dict(read_pack(pack)) == written
    first = pack.read_bytes()
    assert _pack(results).read_bytes() == first


def test_a_folder_may_hold_packs(results: Path, tmp_path: Path) -> None:
    before = mlbench("table", results).stdout
    pack = _pack(results)
    (study := tmp_path / "study").mkdir()
    inner = shutil.move(pack, study / "results.mlpack")
    more = store.save(study, with_totals(record(replace(RUNS[0], seed=7))), None)
    found = store.read_results(study).records
    assert len(found) == len(RUNS) + 1
    assert more in found
    assert sum(inner in path.parents for path in found) == len(RUNS)
    again = _pack(study)
    assert [name for name, _ in read_pack(again)] == sorted(
        str(path.relative_to(inner if inner in path.parents else study)) for path in found
    )
    more.unlink()
    assert mlbench("table", study).stdout == before


def test_records_that_differ_under_one_name_are_not_packed(results: Path, tmp_path: Path) -> None:
    pack = _pack(results)
    shutil.move(pack, results / "old.mlpack")
    assert mlbench("pack", results).exit_code == 0  # the same ones, twice
    store.record_path(results, RUNS[0]).unlink()
    store.save(results, with_totals(record(RUNS[0], 0.6)), None)
    before = pack.read_bytes()
    assert_refused(mlbench("pack", results), "two records that differ are called glyphs-")
    assert pack.read_bytes() == before


def test_what_a_pack_lacks_is_said(results: Path) -> None:
    store.save(results, record(replace(RUNS[0], seed=7)), None)
    store.save(results, record(replace(RUNS[0], seed=8), status="diverged", metrics={}), None)
    (results / "bad.json").write_text("{")
    result = mlbench("pack", results)
    assert f"skipped: {results / 'bad.json'}: not valid JSON" in result.stderr
    assert "1 records have no totals by class" in result.stderr
    assert f"{len(RUNS) + 2} records" in result.stdout


def test_a_pack_needs_its_name_and_records(results: Path, tmp_path: Path) -> None:
    assert_refused(mlbench("pack", results, "-o", tmp_path / "x.zip"), "must end with .mlpack")
    assert_refused(mlbench("pack", tmp_path / "none"), "no results folder")
    assert_refused(mlbench("table", tmp_path / "none.mlpack"), "no results folder")
    assert_refused(mlbench("run", "--out", _pack(results)), "cannot write to the results folder")
    with pytest.raises(MlbenchError, match=r"results\.mlpack: it contains no record 'x\.json'"):
        store.load(tmp_path / "results.mlpack" / "x.json")


def _written(path: Path, header: Any, rest: bytes = b"{}") -> Path:
    path.write_bytes(gzip.compress(json.dumps(header).encode() + b"\n" + rest))
    return path


def _listing(*entries: Any) -> dict[str, Any]:
    return {"mlbench_pack": 1, "records": list(entries)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "no pack of mlbench's results"),
        ({"mlbench_pack": True}, "no pack of mlbench's results"),
        ({"mlbench_pack": 2}, "made by a newer mlbench"),
        ({"mlbench_pack": 1}, "its list of records is damaged"),
        (_listing(["a.json"]), "its list of records is damaged"),
        (_listing(["a.json", -1]), "its list of records is damaged"),
        (_listing(["a.json", 2.0]), "its list of records is damaged"),
        (_listing(["a.json", 10**9]), "its list of records is damaged"),
        (_listing(["/etc/a.json", 2]), "its list of records is damaged"),
        (_listing(["../a.json", 2]), "its list of records is damaged"),
        (_listing(["b/../../a.json", 2]), "its list of records is damaged"),
        (_listing(["b//a.json", 2]), "its list of records is damaged"),
        (_listing(["b\\a.json", 2]), "its list of records is damaged"),
        (_listing(["a\n.json", 2]), "its list of records is damaged"),
        (_listing(["a\x1b[2J.json", 2]), "its list of records is damaged"),
        (_listing(["a.exe", 2]), "its list of records is damaged"),
        (_listing(["a.json", 1], ["a.json", 1]), "a record occurs twice"),
        (_listing(*([f"{i}.json", 1 << 26] for i in range(65))), "there is extra content"),
        (_listing(["a.json", 3]), "it ends before its last record"),
        (_listing(["a.json", 1]), "more follows than it lists"),
    ],
)
def test_foreign_packs_are_refused_in_one_line(tmp_path: Path, header: Any, message: str) -> None:
    pack = _written(tmp_path / "x.mlpack", header)
    with pytest.raises(MlbenchError, match=rf"^{pack}: .*{message}"):
        list(read_pack(pack))
    result = mlbench("table", pack)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "\x1b" not in result.stderr


def test_damaged_packs_are_refused_whole(results: Path, tmp_path: Path) -> None:
    content = _pack(results).read_bytes()
    pack = tmp_path / "x.mlpack"
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 255
    wrong_sum = content[:-8] + bytes(4) + content[-4:]
    for damaged in (b"", b"text", content[: len(content) // 2], content[:-1], spoilt, wrong_sum):
        pack.write_bytes(damaged)
        assert store.read_results(pack).records == {}
        (problem,) = store.read_results(pack).problems
        assert problem.startswith(f"{pack}: ")
    os.mkfifo(tmp_path / "pipe.mlpack")
    found = store.read_results(tmp_path)
    assert len(found.records) == len(RUNS) * 2  # of the folder, and of results.mlpack
    assert len(found.problems) == 2


def test_a_damaged_record_in_a_pack_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    good = with_totals(record(RUNS[0])).to_json().encode()
    edited = good.replace(b'"seed": 0', b'"seed": 9')
    write_pack(tmp_path / "x.mlpack", {"a.json": edited, "b.json": good})
    found = store.read_results(tmp_path / "x.mlpack")
    assert list(found.records) == [tmp_path / "x.mlpack" / "b.json"]
    assert found.problems[0].startswith(f"{tmp_path}/x.mlpack/a.json: its content does not match")


def _read_by(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows by each file that is read for a table."""
    seen: list[Path] = []
    read = cache.read_records

    def told(files: Any) -> Any:
        return read([seen.append(file) or file for file in files])

    monkeypatch.setattr(cache, "read_records", told)
    return seen


def _settle(folder: Path) -> None:
    past = time.time() - 100
    for path in folder.rglob("*"):
        os.utime(path, (past, past))


def test_comparisons_of_packs_are_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack with two comparisons, one of which has records of a second pack and of the folder."""
    other = replace(
        RUNS[0], recipe=replace(RUNS[0].recipe, head=replace(RUNS[0].recipe.head, dim=8))
    )
    texts = [with_totals(record(run)).to_json().encode() for run in (*RUNS[:2], other)]
    folder = tmp_path / "results"
    folder.mkdir()
    write_pack(folder / "a.mlpack", {"a.json": texts[0], "c.json": texts[2]})
    write_pack(folder / "b.mlpack", {"b.json": texts[1]})
    _settle(folder)
    seen = _read_by(monkeypatch)

    def read() -> tuple[list[str], list[int]]:
        seen.clear()
        summary = cache.summarise(folder)
        assert summary.problems == ()
        return sorted(p.name for p in seen), sorted(len(c.files) for c in summary.comparisons)

    assert read() == (["a.mlpack", "b.mlpack"], [1, 2])
    assert read() == ([], [1, 2])
    (path := folder / "d.json").write_bytes(with_totals(record(RUNS[2])).to_json().encode())
    _settle(folder)
    assert read() == (["a.mlpack", "b.mlpack", "d.json"], [1, 3])
    assert read() == ([], [1, 3])
    path.unlink()
    (folder / "b.mlpack").unlink()
    _settle(folder)
    assert read() == (["a.mlpack"], [1, 1])
    assert read() == ([], [1, 1])


def test_a_pack_with_a_damaged_record_is_named_each_time(tmp_path: Path) -> None:
    good = with_totals(record(RUNS[0])).to_json().encode()
    write_pack(tmp_path / "x.mlpack", {"a.json": b"{", "b.json": good})
    _settle(tmp_path)
    for _ in range(2):
        summary = cache.summarise(tmp_path / "x.mlpack")
        assert len(summary.comparisons) == 1
        assert len(summary.problems) == 1


def test_a_pack_of_older_records_holds_them_in_the_newest_form(tmp_path: Path) -> None:
    fixtures = Path(__file__).parents[1] / "fixtures" / "records"
    shutil.copytree(fixtures, tmp_path / "records")
    pack = _pack(tmp_path / "records")
    assert package.load_results(pack) == package.load_results(fixtures)
    for _, content in read_pack(pack):
        assert RunRecord.from_json(content, "x").to_json().encode() == content
