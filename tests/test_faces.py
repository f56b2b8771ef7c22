"""The faces of the rooms, and the import paths that plugins and users rely on."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlbench.registry import BACKBONES, DATASETS, LOSSES

READING = ("recipes", "records", "comparison", "tables", "losses", "datasets", "backbones")
MAKING = ("metrics", "training", "models", "runs")

PUBLIC = (
    "mlbench",
    "mlbench.backbones.weights",
    "mlbench.cli:entry",
    "mlbench.contract:assert_loss",
    "mlbench.contract:check_loss",
    "mlbench.datasets.files",
    "mlbench.interfaces:Backbone",
    "mlbench.interfaces:BackboneEntry",
    "mlbench.interfaces:Dataset",
    "mlbench.interfaces:DatasetEntry",
    "mlbench.interfaces:ImageSet",
    "mlbench.interfaces:LossEntry",
    "mlbench.interfaces:Preprocessing",
    "mlbench.losses.softtriple:SoftTriple",
    "mlbench.metrics:evaluate",
    "mlbench.models:load_model",
)
"""Documented in docs/plugins.md; a change breaks plugins that are installed elsewhere."""


@pytest.mark.parametrize("room", [*READING[:4], *MAKING])
def test_a_face_exports_what_it_says_and_hides_no_file(room: str) -> None:
    face = importlib.import_module(f"mlbench.{room}")
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert name.isupper() or getattr(face, name).__module__.startswith(f"mlbench.{room}.")
        assert importlib.util.find_spec(f"mlbench.{room}.{name}") is None


def test_the_package_exports_what_it_says() -> None:
    package = importlib.import_module("mlbench")
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_stay(path: str) -> None:
    module, _, name = path.partition(":")
    assert not name or hasattr(importlib.import_module(module), name)


def test_the_page_on_plugins_lists_what_stays() -> None:
    page = Path(__file__).parents[1] / "docs" / "plugins.md"
    _, _, section = page.read_text(encoding="utf-8").partition("## Import paths that do not move\n")
    table, _, groups = section.partition("\n## ")[0].partition("\nSo do the entry-point groups ")
    assert sorted(re.findall(r"`([\w.:]+)`", table)) == list(PUBLIC)
    assert set(re.findall(r"`([\w.]+)`", groups)) == {
        registry._group for registry in (LOSSES, DATASETS, BACKBONES)
    }


def test_what_only_reads_loads_no_torch() -> None:
    rooms = ", ".join(f"mlbench.{room}" for room in READING)
    code = f"import sys, mlbench.metrics, mlbench.runs, {rooms}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.parametrize("name", ["no_such_name", "__wrapped__"])
def test_a_name_that_a_face_lacks_is_an_attribute_error(name: str) -> None:
    for room in MAKING:
        with pytest.raises(AttributeError, match=name):
            getattr(importlib.import_module(f"mlbench.{room}"), name)
