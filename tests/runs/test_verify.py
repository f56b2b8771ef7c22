"""Records made again, and what a bug report says of the machine."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.settings import QUICK
from PIL import Image

import mlbench
from mlbench.cli import main
from mlbench.cli.checks import _print_verification
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.runs.verify import Finding, Verification, compare_results


@pytest.fixture
def made(photos: Path, tmp_path: Path) -> tuple[Path, RunRecord]:
    """A record, and its file."""
    out = tmp_path / "results"
    record = mlbench.run("softtriple", dataset=f"folder:{photos}", settings=QUICK, out=out)
    return store.record_path(out, record.spec), record


def verified(path: Path, root: Path) -> Result:
    """Call ``mlbench verify``; it must write nothing into the results folder."""
    before = {p: p.stat().st_mtime_ns for p in path.parent.rglob("*")}
    command = ["verify", str(path), "--data-root", str(root)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, command)
    assert {p: p.stat().st_mtime_ns for p in path.parent.rglob("*")} == before
    return result


def test_a_record_comes_out_again(made: tuple[Path, RunRecord], photos: Path) -> None:
    result = verified(made[0], photos.parent)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "identical"
    assert "R@1" in result.output
    assert "loss by epoch" in result.output
    assert "torch" in result.output


@pytest.mark.parametrize("change", ["metrics", "curve", "selected_epoch"])
def test_other_results_are_named_with_by_how_much(
    made: tuple[Path, RunRecord], photos: Path, change: str
) -> None:
    path, record = made
    row = record.curve[1]
    assert row.loss is not None
    changes: dict[str, dict[str, Any]] = {
        "metrics": {"metrics": record.metrics | {"NMI": record.metrics["NMI"] - 0.125}},
        "curve": {"curve": (record.curve[0], replace(row, loss=row.loss + 0.5))},
        "selected_epoch": {"selected_epoch": 0},
    }
    path.write_text(replace(record, **changes[change]).to_json())
    result = verified(path, photos.parent)
    assert result.exit_code == 1, result.output
    words = " ".join(result.output.split())
    expected = {"metrics": "+0.12", "curve": "from epoch 1 on, by at most 0.5"}
    assert expected.get(change, "selected_epoch 0 1 DIFFERENT") in words
    assert words.endswith("different")


@pytest.mark.parametrize(("device", "said"), [("cpu", False), ("cuda", True)])
def test_a_difference_on_a_gpu_may_be_the_order_of_its_sums(
    capsys: pytest.CaptureFixture[str], device: str, said: bool
) -> None:
    finding = Finding("R@1", "0.5", "0.25", same=False)
    _print_verification(Verification((finding,), made=True), device)
    output = capsys.readouterr().out
    assert ("sums are added in another order" in output) == said
    assert output.splitlines()[-1] == "different"
    _print_verification(Verification((), made=True), device)
    assert capsys.readouterr().out.splitlines()[-1] == "identical"


def test_versions_and_hardware_are_shown_but_not_judged(
    made: tuple[Path, RunRecord], photos: Path
) -> None:
    path, record = made
    other = replace(record.provenance, hardware="another chip", packages={"torch": "1.0"})
    path.write_text(replace(record, provenance=other).to_json())
    result = verified(path, photos.parent)
    assert result.exit_code == 0, result.output
    assert result.output.count("other (not compared)") >= 2


def test_other_data_is_named_before_any_training(
    made: tuple[Path, RunRecord], photos: Path
) -> None:
    Image.new("RGB", (40, 36)).save(photos / "class0" / "0.png")
    result = verified(made[0], photos.parent)
    assert result.exit_code == 1
    assert "the run was not repeated" in result.output
    assert "R@1" not in result.output


def test_a_folder_that_is_elsewhere_is_asked_for(made: tuple[Path, RunRecord]) -> None:
    """A record names its folder of images without a path."""
    result = CliRunner().invoke(main, ["verify", str(made[0])])
    assert result.exit_code == 2, result.output
    assert result.stderr == (
        "Error: data set 'folder:photos' of the record is not at photos; pass the folder that "
        "contains it with --data-root\n"
    )


def test_a_changed_weights_file_option_is_one_line(
    made: tuple[Path, RunRecord], photos: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"0")
    command = ["verify", str(made[0]), "--data-root", str(photos), "--weights", str(weights)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "leave --weights out" in result.output


@pytest.mark.parametrize("damage", ["no data", "no record", "damaged", "unknown loss"])
def test_what_cannot_be_run_is_one_line(
    made: tuple[Path, RunRecord], photos: Path, tmp_path: Path, damage: str
) -> None:
    path, record = made
    root = tmp_path / "nowhere" if damage == "no data" else photos.parent
    if damage == "no record":
        path.unlink()
    if damage == "damaged":
        path.write_text(path.read_text()[:-30])
    if damage == "unknown loss":
        path.write_text(replace(record, loss="of_a_plugin_not_here").to_json())
    result = CliRunner().invoke(main, ["verify", str(path), "--data-root", str(root)])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")


def test_a_run_that_diverged_elsewhere_is_different(made: tuple[Path, RunRecord]) -> None:
    record = made[1]
    diverged = replace(record, status="diverged", metrics={}, curve=record.curve[:1])
    other = {each.what for each in compare_results(diverged, record) if not each.same}
    assert {"status", "R@1", "NMI", "loss by epoch"} <= other
    assert all(each.same for each in compare_results(record, record))


def test_env_says_what_a_bug_report_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3\x1b[31m")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    started = time.perf_counter()
    facts = json.loads(CliRunner().invoke(main, ["env", "--json"]).output)
    assert time.perf_counter() - started < 10
    assert facts["mlbench"]["version"] == mlbench.__version__
    assert facts["packages"]["torch"]
    assert facts["cache"]["folder"]
    assert facts["plugins"]["problems"] == []
    assert facts["variables"]["OMP_NUM_THREADS"].startswith("3")
    plain = CliRunner().invoke(main, ["env"]).output
    assert "hidden" not in plain
    assert "\x1b" not in plain
    assert "machine.cpu" in plain
