"""Models kept beside their records, and loaded to embed images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.settings import QUICK
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms

import mlbench
from mlbench.cli import main
from mlbench.errors import MlbenchError
from mlbench.metrics.evaluation import evaluate
from mlbench.models.export import export
from mlbench.models.kept import SUFFIXES
from mlbench.recipes.plan import Request, make_plan
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.runs.executors import ray
from mlbench.runs.executors.crew import Site
from mlbench.runs.executors.maker import Maker

DIVERGING: dict[str, Any] = {"optimizer.head_lr": 1e38}
FROZEN = {"backbone.trunk": "frozen", "optimizer.lr": 0.0}


def kept(photos: Path, out: Path, loss: str = "softtriple", **changes: Any) -> Path:
    """Make a run with its model; return the record's file."""
    settings = QUICK | changes
    data = f"folder:{photos}"
    record = mlbench.run(loss, dataset=data, settings=settings, out=out, keep_model=True)
    return store.record_path(out, record.spec)


def evaluated(photos: Path) -> tuple[list[Path], np.ndarray]:
    """Return the test images in the data set's order, and their classes."""
    paths = [path for number in (3, 4, 5) for path in sorted((photos / f"class{number}").iterdir())]
    return paths, np.repeat([0, 1, 2], 8)


def figures(record: RunRecord) -> dict[str, float]:
    return {k: v for k, v in record.metrics.items() if k not in ("NMI", "n_query", "n_gallery")}


@pytest.mark.parametrize("changes", [{}, FROZEN, FROZEN | {"head.kind": "relu-bn-linear"}])
def test_a_loaded_model_gives_the_figures_of_its_record(
    photos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = kept(photos, tmp_path / "out", **changes)
    paths, labels = evaluated(photos)
    model, tf32 = mlbench.load_model(path, device="cpu"), set()
    model.register_forward_hook(lambda *_: tf32.add(torch.backends.cudnn.allow_tf32))
    embeddings = model.embed(paths)
    assert tf32 == {False}, "the run was made in fp32"
    assert embeddings.dtype == torch.float32
    assert embeddings.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    record = store.load(path)
    measured = evaluate(embeddings, labels, ks=record.recipe.evaluation.ks)
    assert {name: measured[name] for name in figures(record)} == pytest.approx(figures(record))
    stored = np.load(path.with_suffix(".embeddings.npy"), allow_pickle=False)
    assert stored.dtype == np.float16
    assert np.abs(stored - embeddings.numpy()).max() < 1e-3


def test_the_model_prepares_images_as_torchvision_does(photos: Path, tmp_path: Path) -> None:
    path = kept(photos, tmp_path / "out")
    model = mlbench.load_model(path, device="cpu")
    crop = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16)])
    picture = Image.open(photos / "class4" / "2.png").convert("RGB")
    pixels = torch.from_numpy(np.array(crop(picture))).permute(2, 0, 1)[None]
    expected = model(pixels)
    torch.testing.assert_close(model(pixels.float()), expected, rtol=0, atol=0)
    array = np.array(picture)
    given = [photos / "class4" / "2.png", picture, array, torch.from_numpy(array)]
    given.append(array[..., ::-1].copy()[..., ::-1])
    torch.testing.assert_close(
        model.embed(given), expected.expand(len(given), -1), rtol=0, atol=1e-6
    )
    assert not model.training
    assert len(model.embed([])) == 0


def test_what_is_stored_is_the_network_and_the_centres(photos: Path, tmp_path: Path) -> None:
    path = kept(photos, tmp_path / "out")
    stored = load_file(path.with_suffix(".safetensors"))
    classes, centres, dim = 3, 10, 8
    own = {name: value for name, value in stored.items() if name.startswith("loss.")}
    assert sum(value.numel() for value in own.values()) == classes * centres * dim
    assert stored["head.weight"].shape == (8, 128)
    assert any(name.startswith("trunk.") for name in stored)


def test_a_frozen_trunk_of_known_weights_is_not_stored(photos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "trunk.safetensors"
    trunk = mlbench.load_model(kept(photos, tmp_path / "first"), device="cpu").network.trunk
    state = {
        name: value.contiguous()
        for name, value in trunk.get_submodule("backbone").state_dict().items()
    }
    save_file(state, weights)
    path = kept(photos, tmp_path / "out", **FROZEN, **{"backbone.weights": str(weights)})
    stored = load_file(path.with_suffix(".safetensors"))
    assert not any(name.startswith("trunk.") for name in stored)
    paths, labels = evaluated(photos)
    record = store.load(path)
    model = mlbench.load_model(path, device="cpu", weights=weights)
    measured = evaluate(model.embed(paths), labels, ks=record.recipe.evaluation.ks)
    assert {name: measured[name] for name in figures(record)} == pytest.approx(figures(record))
    with pytest.raises(MlbenchError, match="pass its path with --weights"):
        mlbench.load_model(path)
    state["0.weight"][0] += 1
    save_file(state, weights)
    with pytest.raises(MlbenchError, match=r"has weights file:.* here, and those of the run are"):
        mlbench.load_model(path, weights=weights)


@pytest.mark.parametrize("loss", ["features", "pca", "untrained"])
@pytest.mark.parametrize("trunk", ["train", "frozen"])
def test_baselines_are_kept_as_trained_models_are(
    photos: Path, tmp_path: Path, loss: str, trunk: str
) -> None:
    path = kept(photos, tmp_path / "out", loss, **{"backbone.trunk": trunk})
    paths, labels = evaluated(photos)
    record, model = store.load(path), mlbench.load_model(path, device="cpu")
    embeddings = model.embed(paths)
    assert embeddings.shape == (24, {"features": 128, "pca": 8, "untrained": 8}[loss])
    assert model.dim == embeddings.shape[1]
    measured = evaluate(embeddings, labels, ks=record.recipe.evaluation.ks)
    assert {name: measured[name] for name in figures(record)} == pytest.approx(figures(record))
    beside = np.load(path.with_suffix(".embeddings.npy"))
    assert embeddings.numpy() == pytest.approx(beside.astype(np.float32), abs=2e-3)
    assert export(model, "safetensors").faithful


def test_pca_of_few_images_has_fewer_components_than_the_recipe_asks_for(
    photos: Path, tmp_path: Path
) -> None:
    """The 24 training images span 23 directions."""
    path = kept(photos, tmp_path / "out", "pca", **{"head.dim": 64})
    model = mlbench.load_model(path, device="cpu")
    assert model.dim == 23
    assert model.embed(evaluated(photos)[0][:2]).shape == (2, 23)


def run_command(photos: Path, out: Path, *more: str) -> Result:
    settings = [f"--set={key}={value}" for key, value in QUICK.items()]
    command = ["run", f"--dataset=folder:{photos}", "--losses=triplet", f"--out={out}", *settings]
    return CliRunner().invoke(main, [*command, *more])


@pytest.mark.filterwarnings("default::mlbench.errors.MlbenchWarning")
def test_a_run_without_its_model_is_made_again_with_the_same_result(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_command(photos, out).exit_code == 0
    (path,) = out.rglob("triplet*.json")
    before = store.load(path)
    assert not any(path.with_suffix(suffix).exists() for suffix in SUFFIXES)
    with pytest.raises(MlbenchError, match=r"its model was not saved; create it .* --keep-model"):
        mlbench.load_model(path)

    again = run_command(photos, out, "--keep-model")
    assert again.exit_code == 0, again.output
    assert "their records exist without the saved model: triplet seed 0" in again.stderr
    assert again.stderr.count("already there") == 3, "baselines are kept where --losses names one"
    assert store.load(path).metrics == before.metrics
    mlbench.load_model(path)

    third = run_command(photos, out, "--keep-model")
    assert third.stderr.count("already there") == 4
    assert "not kept" not in third.stderr


def test_models_come_from_workers_too(photos: Path, tmp_path: Path) -> None:
    plan = make_plan(
        Request(
            losses=("triplet",),
            dataset=f"folder:{photos}",
            settings=tuple(QUICK.items()),
            keep_model=True,
        )
    )
    out = tmp_path / "out"
    (spec,) = plan.runs()
    made = Maker("worker", lambda _: None).make(spec, Site(plan.files, "cpu", out, out))
    assert made is not None
    sent = ray._files(made.path)
    assert list(sent) == [".npz", ".safetensors", ".embeddings.npy", ".json"], "the record is last"
    elsewhere = tmp_path / made.path.name
    for suffix, content in sent.items():
        elsewhere.with_suffix(suffix).write_bytes(content)
    assert mlbench.load_model(elsewhere, device="cpu").dim == 8


def test_a_model_of_another_result_is_refused_and_set_aside(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = kept(photos, out)
    stale = path.with_suffix(".safetensors").read_bytes()
    Image.new("RGB", (30, 30), "red").save(photos / "class5" / "9.png")
    mlbench.run("softtriple", dataset=f"folder:{photos}", settings=QUICK, out=out)
    assert not any(path.with_suffix(suffix).exists() for suffix in SUFFIXES)
    assert Path(f"{path.with_suffix('.safetensors')}.outdated").read_bytes() == stale
    path.with_suffix(".safetensors").write_bytes(stale)
    with pytest.raises(MlbenchError, match="belongs to another run than the record"):
        mlbench.load_model(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_model_is_one_line(photos: Path, tmp_path: Path, damage: str) -> None:
    path = kept(photos, tmp_path / "out")
    model = path.with_suffix(".safetensors")
    whole = model.read_bytes()
    model.write_bytes({"empty": b"", "cut": whole[:-9], "noise": bytes(range(256))}[damage])
    with pytest.raises(MlbenchError, match="damaged, or not a model of mlbench"):
        mlbench.load_model(path)


def test_what_has_no_model_says_so(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_command(photos, out, "--keep-model").exit_code == 0
    (baseline,) = out.rglob("pca*.json")
    with pytest.raises(MlbenchError, match="its model was not saved"):
        mlbench.load_model(baseline)
    with pytest.raises(MlbenchError, match="a diverged run has no model"):
        mlbench.load_model(kept(photos, tmp_path / "diverged", **DIVERGING))
    (path,) = out.rglob("triplet*.json")
    assert mlbench.load_model(out).record == mlbench.load_model(f"{out}:triplet").record
    with pytest.raises(MlbenchError, match="needs no weights file"):
        mlbench.load_model(path, weights=baseline)
    with pytest.raises(MlbenchError, match="keep_model requires out"):
        mlbench.run("triplet", dataset=f"folder:{photos}", settings=QUICK, keep_model=True)
    model = mlbench.load_model(path)
    with pytest.raises(MlbenchError, match="requires a list of images"):
        model.embed(str(photos))
    (photos / "bad.png").write_bytes(b"")
    with pytest.raises(MlbenchError, match=r"bad\.png: the file is empty"):
        model.embed([photos / "class0" / "1.png", photos / "bad.png"])


def test_the_file_of_a_model_depends_on_the_result_alone(photos: Path, tmp_path: Path) -> None:
    first, second = (kept(photos, tmp_path / name) for name in ("a", "b"))
    files = [path.with_suffix(".safetensors").read_bytes() for path in (first, second)]
    assert files[0] == files[1]
    header = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])
    assert set(header["__metadata__"]) == {"mlbench"}
