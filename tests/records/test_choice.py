"""The record that is meant by a file, a folder or ``FOLDER:LOSS``."""

from pathlib import Path

import pytest
from helpers.runs import RUNS, record

from mlbench.errors import MlbenchError
from mlbench.records import store
from mlbench.records.choice import choose_record
from mlbench.records.packing import pack_results


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three seeds of softtriple, then three of npairs."""
    return [store.save(tmp_path / "out", record(spec), None) for spec in RUNS]


def test_a_record_a_folder_of_one_and_a_loss_are_found(tmp_path: Path, paths: list[Path]) -> None:
    out = tmp_path / "out"
    assert choose_record(paths[0]) == paths[0]
    for path in paths[1:]:
        seed, loss = path.stem.split("-")[1], path.stem.split("-")[0]
        assert choose_record(Path(f"{out}:{loss}-{seed}")) == path
        assert choose_record(Path(f"{path.parent}:{path.stem}")) == path
    for path in paths[1:]:
        path.unlink()
    assert choose_record(out) == choose_record(Path(f"{out}:softtriple")) == paths[0]


def test_what_is_there_is_listed(tmp_path: Path, paths: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(MlbenchError, match=r"6 records are .* '.*out:\w+-seed0'.* npairs-seed2"):
        choose_record(out)
    with pytest.raises(MlbenchError, match="3 records of 'npairs' are there") as several:
        choose_record(Path(f"{out}:npairs"))
    assert "softtriple" not in str(several.value)
    with pytest.raises(MlbenchError, match="no record of 'triplet'; there are: npairs-seed0"):
        choose_record(Path(f"{out}:triplet"))
    with pytest.raises(MlbenchError, match=r"no record '.*x\.json'; in .*npairs-seed1"):
        choose_record(paths[0].with_name("x.json"))
    with pytest.raises(MlbenchError, match="no record or results folder"):
        choose_record(tmp_path / "nowhere")


def test_only_runs_with_a_kept_network_are_meant(tmp_path: Path, paths: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(MlbenchError, match=r"no trained network .* 6 record.*--keep-model"):
        choose_record(out, kept=True)
    paths[4].with_suffix(".safetensors").touch()
    assert choose_record(out, kept=True) == choose_record(Path(f"{out}:npairs"), kept=True)
    assert choose_record(out, kept=True) == paths[4]


def test_records_of_a_pack_go_by_loss_too(tmp_path: Path, paths: list[Path]) -> None:
    pack = pack_results(tmp_path / "out", None).path
    found = choose_record(Path(f"{pack}:softtriple-seed1"))
    assert found == pack / paths[1].relative_to(tmp_path / "out")
    assert store.load(found) == store.load(paths[1])
    assert choose_record(found) == found
