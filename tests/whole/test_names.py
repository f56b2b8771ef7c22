"""Names that file systems do not take, or only just."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.settings import QUICK

import mlbench
from mlbench.cli import main
from mlbench.errors import MlbenchError
from mlbench.losses import BUILTIN
from mlbench.metrics.embeddings import read_embeddings
from mlbench.models.search import query_files
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records import store
from mlbench.registry import LOSSES
from mlbench.report import write_report
from mlbench.report.drawings import check_picture
from mlbench.system.files import check_path, expanded

LONGEST = 255
"""Bytes of a file name on the usual file systems."""


@pytest.fixture
def long_loss(monkeypatch: pytest.MonkeyPatch) -> str:
    (triplet,) = (entry for entry in BUILTIN if entry.name == "triplet")
    name = "long" * 100
    monkeypatch.setitem(LOSSES._entries, name, triplet.__class__(**{**vars(triplet), "name": name}))
    return name


@pytest.mark.parametrize("name", ["x" * LONGEST, "é" * (LONGEST // 2)])
def test_the_longest_names_are_run(photos: Path, tmp_path: Path, long_loss: str, name: str) -> None:
    photos = photos.rename(photos.parent / name)
    out = tmp_path / "out"
    settings = {**QUICK}
    made = mlbench.run(
        long_loss, dataset=f"folder:{photos}", settings=settings, out=out, keep_model=True
    )
    assert made.status == "ok"
    path = store.record_path(out, made.spec)
    assert path.is_file()
    assert mlbench.load_model(path, device="cpu").dim > 0
    again = mlbench.run(long_loss, dataset=f"folder:{photos}", settings=settings, out=out)
    assert again == store.load(path)
    for file in [tmp_path, *out.rglob("*")]:
        assert len(file.name.encode()) <= LONGEST


def test_names_that_fit_stay_as_they_are_and_others_apart() -> None:
    recipe = load_recipe("default")
    fits = store.record_path(Path(), RunSpec(recipe, LossSpec("a" * 160), 0))
    assert fits.name.startswith("a" * 160 + "-seed0-")
    longer = [
        store.record_path(Path(), RunSpec(recipe, LossSpec("a" * 300 + end), 2**63 - 1))
        for end in "bc"
    ]
    assert len(set(longer)) == 2
    assert all(len(path.name) <= 210 for path in longer)


@pytest.mark.parametrize("name", ["x" * 300, "é" * 128, "a\0b"])
def test_names_that_no_file_can_have_are_one_line(tmp_path: Path, name: str) -> None:
    for check in (check_path, expanded, store.check_writable):
        with pytest.raises(MlbenchError, match="invalid file name") as caught:
            check(tmp_path / name)
        assert "\0" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(MlbenchError, match="invalid file name"):
        mlbench.run("triplet", dataset=f"folder:{tmp_path / name}", settings=QUICK)
    with pytest.raises(MlbenchError, match="invalid file name"):
        mlbench.run("triplet", settings=QUICK, out=tmp_path / name)


READERS: dict[str, Callable[[Path], object]] = {
    "load_results": mlbench.load_results,
    "load_model": mlbench.load_model,
    "embeddings": read_embeddings,
    "query": lambda path: query_files([path]),
    "recipe": lambda path: load_recipe(f"{path}.toml"),
    "report": lambda path: write_report(path, path.parent / "report.html"),
    "page": lambda path: write_report(path.parent, path),
    "picture": lambda path: check_picture(path / "ladder.png"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_readers_take_such_names_for_bad_input(
    tmp_path: Path, read: Callable[[Path], object], name: str
) -> None:
    with pytest.raises(MlbenchError, match="invalid file name"):
        read(tmp_path / name)


def test_a_long_name_on_the_command_line() -> None:
    result = CliRunner().invoke(main, ["data", "verify", "folder:" + "x" * 300])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "File name too long" in line
