"""Trained networks as files for other programs."""

import builtins
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from helpers.command import said
from helpers.settings import QUICK
from safetensors import safe_open

import mlbench
from mlbench.cli import main
from mlbench.models import export
from mlbench.models.model import Model
from mlbench.records import store
from mlbench.registry import BACKBONES
from mlbench.training.network import preprocessing_of


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Path:
    """The record of a run with its model, whose network wants BGR."""
    settings = QUICK | {"input.channels": "bgr", "input.interpolation": "bicubic"}
    made = mlbench.run(
        "triplet",
        dataset=f"folder:{photos}",
        settings=settings,
        out=tmp_path / "out",
        keep_model=True,
    )
    return store.record_path(tmp_path / "out", made.spec)


def exported(run: Path, form: str, output: Path) -> Result:
    return CliRunner().invoke(main, ["export", str(run), "--format", form, "-o", str(output)])


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8)


def check_facts(text: str) -> None:
    found = json.loads(text)
    assert found["input"] == "uint8 RGB (B, 3, 16, 16)"
    steps = found["preprocessing"]
    assert steps["resize"]["shorter_side"] == 20
    assert steps["resize"]["filter"] == "bicubic"
    assert steps["crop"]["size"] == 16
    assert steps["normalization"]["channels"] == "bgr"
    assert found["loss"]["name"] == "triplet"
    assert found["recipe"]["head"]["dim"] == 8


def test_onnx_gives_the_same_embeddings_for_any_batch(run: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    output = tmp_path / "net.onnx"
    result = exported(run, "onnx", output)
    assert result.exit_code == 0, result.output
    assert "largest difference to the original: " in result.stderr
    session = runtime.InferenceSession(output, providers=["CPUExecutionProvider"])
    model = mlbench.load_model(run, device="cpu")
    for count in (1, 3, 7):
        given = pixels(count)
        (found,) = session.run(["embeddings"], {"pixels": given.numpy()})
        assert found.dtype == np.float32
        assert np.abs(found - model(given).numpy()).max() < 1e-5
    check_facts(session.get_modelmeta().custom_metadata_map["mlbench"])


def test_pt2_gives_the_same_embeddings_for_any_batch(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.pt2"
    assert exported(run, "pt2", output).exit_code == 0
    extra = {"mlbench.json": ""}
    program = torch.export.load(io.BytesIO(output.read_bytes()), extra_files=extra).module()
    model = mlbench.load_model(run, device="cpu")
    for count in (1, 3, 7):
        given = pixels(count)
        torch.testing.assert_close(program(given), model(given), rtol=0, atol=1e-6)
    check_facts(extra["mlbench.json"])


def test_safetensors_hold_the_whole_network(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    assert exported(run, "safetensors", output).exit_code == 0
    state = safetensors.torch.load_file(output)
    with safe_open(output, framework="pt") as file:
        text = file.metadata()["mlbench"]
    check_facts(text)
    # Put together by hand, so that nothing of mlbench's loader is trusted.
    backbone = BACKBONES.get("convnet").load()("none")
    trunk = backbone.trunk.eval()
    names = {k.removeprefix("trunk.backbone."): v for k, v in state.items() if k[:5] == "trunk"}
    trunk.load_state_dict(names)
    given = pixels(3)
    recipe = store.load(run).recipe
    wanted = preprocessing_of(backbone.preprocessing, recipe.input)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (wanted.mean, wanted.std))
    prepared = (given.flip(1) / 255 - mean) / std
    rule = json.loads(text)["preprocessing"]["normalization"]
    factor, offset = (torch.tensor(rule[key]).view(1, 3, 1, 1) for key in ("factor", "offset"))
    torch.testing.assert_close(given.flip(1) * factor + offset, prepared)
    features = trunk(prepared)
    raw = features @ state["head.weight"].T + state["head.bias"]
    expected = raw / raw.norm(dim=1, keepdim=True)
    model = mlbench.load_model(run, device="cpu")
    torch.testing.assert_close(model(given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_an_unfaithful_export_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def read(content: bytes, model: Model):
        return lambda given: model(given) + wrong

    writes = export._write_safetensors
    monkeypatch.setitem(export._FORMS, "safetensors", (writes, read))
    output = tmp_path / "net.safetensors"
    output.write_text("old")
    result = exported(run, "safetensors", output)
    assert result.exit_code == 1
    assert "is not written" in result.stderr
    assert output.read_text() == "old"


def test_what_cannot_be_exported_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def branching(self: Model, given: torch.Tensor) -> torch.Tensor:
        return self.network(given) * (1 if given.float().mean() > 3 else 2)

    monkeypatch.setattr(Model, "forward", branching)
    result = exported(run, "pt2", tmp_path / "net.pt2")
    assert result.exit_code == 2
    (line,) = said(result)
    assert line.startswith("Error: cannot export backbone 'convnet' as pt2: ")
    assert not (tmp_path / "net.pt2").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_onnx_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    whole = importlib.import_module

    def without(name: str, *rest: str):
        if name == missing:
            raise ModuleNotFoundError(name)
        return whole(name, *rest) if name not in export._ONNX_PACKAGES else builtins

    monkeypatch.setattr(export.importlib, "import_module", without)
    result = exported(run, "onnx", tmp_path / "net.onnx")
    assert result.exit_code == 2
    assert f"needs the package {missing}, which is not installed; run: pip" in result.stderr


def test_a_run_without_a_model_is_one_line(run: Path, tmp_path: Path) -> None:
    run.with_suffix(".safetensors").unlink()
    result = exported(run, "pt2", tmp_path / "net.pt2")
    assert result.exit_code == 2
    (line,) = said(result)
    assert "its model was not saved" in line
