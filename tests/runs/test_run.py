from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK
from PIL import Image, ImageOps

import mlbench
from mlbench.comparison.comparison import compare
from mlbench.recipes.plan import Files, Request, make_plan
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec
from mlbench.records import store
from mlbench.runs.ingredients import Ingredients, training_part
from mlbench.runs.run import run_one
from mlbench.training.device import resolve_device


def quick_run(photos: Path, loss: str = "softtriple", **options: Any) -> mlbench.RunRecord:
    settings = QUICK | options.pop("settings", {})
    return mlbench.run(loss, dataset=f"folder:{photos}", settings=settings, **options)


def test_a_run_leaves_a_whole_record(photos: Path) -> None:
    record = quick_run(photos)
    assert record.status == "ok"
    assert (record.dataset.train_images, record.dataset.test_images) == (24, 24)
    assert (record.dataset.train_classes, record.dataset.test_classes) == (3, 3)
    assert record.metrics["n_query"] == 24
    assert 0 <= record.metrics["R@1"] <= record.metrics["R@8"] <= 1
    assert [row.epoch for row in record.curve] == [0, 1]
    assert record.cost.images_seen == 48
    assert record.selected_epoch == 1
    assert record.provenance.device in ("cpu", "cuda")


def results_of(record: mlbench.RunRecord) -> tuple[Any, ...]:
    return record.metrics, [row.loss for row in record.curve], record.loss_report


def test_numbers_of_numpy_and_torch_ask_for_the_same_run(photos: Path) -> None:
    settings: dict[str, Any] = {"batch.drop_last": True, "softtriple.la": 15.5}
    others: dict[str, Any] = {
        "batch.size": np.uint8(16),
        "batch.drop_last": np.bool_(True),
        "softtriple.la": np.float32(15.5),
        "head.dim": torch.tensor(8),
        "schedule.milestones": np.array([1]),
        "evaluation.ks": (np.int64(1), np.array(2)),
    }
    plain = quick_run(photos, seed=3, settings=settings | {"evaluation.ks": [1, 2]})
    for seed in (np.int64(3), np.array(3), torch.tensor(3)):
        other = quick_run(photos, seed=seed, settings=others, compile=np.bool_(False))
        assert other.spec.run_id == plain.spec.run_id
        assert type(other.seed) is int
        assert mlbench.RunRecord.from_json(other.to_json(), "record") == other
        assert results_of(other) == results_of(plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"seed": s}, "seed: .* from 0 to") for s in (-1, 2**63, 1.0, True, None, np.int8(-1))),
        ({"fold": np.int64(0)}, "fold: 0 does not fit"),
        ({"settings": {"head.dim": np.float32(8)}}, "head.dim: expected an integer"),
        ({"settings": {"softtriple.la": np.float32("nan")}}, "softtriple.la: .* finite"),
        ({"settings": {"softtriple.la": torch.ones((), device="meta")}}, "expected a number"),
        ({"settings": {"softtriple.la": np.complex64(1)}}, "expected a number"),
        ({"compile": 1}, "compile: expected true or false"),
        ({"keep_model": None}, "keep_model: expected true or false"),
    ],
)
def test_bad_numbers_are_one_line(photos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(mlbench.MlbenchError, match=message) as caught:
        quick_run(photos, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["softtriple", "npairs"])
def test_one_seed_gives_one_result(photos: Path, loss: str) -> None:
    first, again, other = (quick_run(photos, loss, seed=s) for s in (3, 3, 4))
    assert results_of(first) == results_of(again)
    assert [row.loss for row in first.curve] != [row.loss for row in other.curve]


def test_a_seed_means_the_same_wherever_the_run_is_made(photos: Path, tmp_path: Path) -> None:
    """A loss that draws at random, with and without a look at the backbone's weights before."""
    here = quick_run(photos, "margin", settings={"batch.size": 12})
    stored = quick_run(photos, "margin", settings={"batch.size": 12}, out=tmp_path)
    assert results_of(stored) == results_of(here)


def test_every_loss_sees_as_many_images(photos: Path) -> None:
    seen = {
        quick_run(photos, loss).cost.images_seen for loss in ("softtriple", "npairs", "triplet")
    }
    assert len(seen) == 1


def test_training_learns_the_training_images(photos: Path) -> None:
    record = quick_run(photos, settings={"schedule.epochs": 12, "schedule.milestones": []})
    losses = [row.loss for row in record.curve]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < 0.8 * losses[0]


def test_a_frozen_trunk_trains_only_the_head(photos: Path) -> None:
    record = quick_run(photos, settings={"backbone.trunk": "frozen"})
    assert record.status == "ok"
    assert record.recipe.backbone.trunk == "frozen"


def test_a_diverging_loss_leaves_a_record_that_says_so(photos: Path) -> None:
    record = quick_run(photos, "npairs", settings={"lr": 1e30, "head_lr": 1e30})
    assert record.status == "diverged"
    assert record.metrics == {}
    assert record.curve[-1].loss is None


def more_photos(photos: Path) -> Path:
    """Add classes until there are four to train on, so that two folds are possible."""
    for number, mirrored in ((6, ImageOps.mirror), (7, ImageOps.flip)):
        folder = photos / f"class{number}"
        folder.mkdir()
        for file in (photos / "class0").iterdir():
            with Image.open(file) as image:
                mirrored(image).save(folder / file.name)
    return photos


def test_a_network_that_blows_up_in_its_last_step_has_diverged(photos: Path) -> None:
    settings = {"optimizer.name": "sgd", "lr": 1e19, "head_lr": 1e19, "batch.size": 32}
    record = quick_run(photos, "triplet", settings=settings | {"schedule.epochs": 1})
    assert record.status == "diverged"


@pytest.mark.filterwarnings("ignore::mlbench.errors.MlbenchWarning")  # all have the same content
def test_blank_images_do_not_stop_the_baselines(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.png"):
        Image.new("RGB", (40, 36)).save(path)
    spec = RunSpec(load_recipe("default"), LossSpec("pca"), 0)
    files = Files(data_root=photos.parent)
    recipe = make_plan(Request(dataset=f"folder:{photos}", settings=tuple(QUICK.items()))).recipe
    ingredients = Ingredients(recipe, files, torch.device("cpu"), lambda *_: None)
    record, _ = run_one(replace(spec, recipe=recipe), ingredients)
    assert record.status == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed: -1"),
        ({"seed": 1.5}, "seed: 1.5"),
        ({"fold": 0}, "does not fit a recipe of 0 folds"),
        ({"device": "foo"}, "not one of auto, cpu, cuda"),
    ],
)
def test_wrong_arguments_are_named(photos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(mlbench.MlbenchError, match=message):
        quick_run(photos, **options)


def test_changed_images_are_run_anew(photos: Path, tmp_path: Path) -> None:
    first = quick_run(photos, out=tmp_path / "out")
    image = next(photos.rglob("*.png"))
    Image.new("RGB", (40, 36), "red").save(image)
    again = quick_run(photos, out=tmp_path / "out")
    assert again.dataset.fingerprint != first.dataset.fingerprint


def test_validation_selects_the_best_epoch_on_held_out_classes(photos: Path) -> None:
    settings = {"selection.rule": "validation", "selection.folds": 2, "schedule.epochs": 4}
    record = quick_run(more_photos(photos), settings=settings, fold=1)
    scores = [row.score for row in record.curve if row.score is not None]
    assert len(scores) == 4
    assert record.selected_epoch == scores.index(max(scores))
    assert record.dataset.train_classes == 2


def test_patience_ends_training(photos: Path) -> None:
    settings = {
        "selection.rule": "validation",
        "selection.folds": 2,
        "selection.patience": 1,
        "schedule.epochs": 50,
        "lr": 0.0,
        "head_lr": 1e-12,
        "loss_lr": 1e-12,
        "bn_stats": "frozen",
    }
    record = quick_run(more_photos(photos), settings=settings, fold=0)
    assert len(record.curve) == 2
    assert record.selected_epoch == 0


def test_selecting_on_test_classes_is_possible_and_marked(photos: Path, tmp_path: Path) -> None:
    settings = {"selection.rule": "test-best", "schedule.epochs": 3}
    record = quick_run(photos, settings=settings, out=tmp_path)
    scores = [row.score for row in record.curve if row.score is not None]
    assert record.metrics["R@1"] == max(scores)
    (comparison,) = compare(store.read_results(tmp_path).records)
    assert "epoch selected on the test classes" in comparison.rows[0].notes[0]


def test_folds_need_enough_classes(photos: Path) -> None:
    settings = {"selection.rule": "validation", "selection.folds": 2}
    with pytest.raises(mlbench.MlbenchError, match="2 folds need at least 4 training classes"):
        quick_run(photos, settings=settings, fold=0)


def test_a_second_run_finds_the_record(photos: Path, tmp_path: Path) -> None:
    first = quick_run(photos, out=tmp_path / "out")
    assert quick_run(photos, out=tmp_path / "out") == first


def test_a_fold_takes_whole_classes_and_a_holdout_single_images() -> None:
    labels = np.repeat(np.arange(8), 10).astype(np.int64)
    recipe = with_folds(load_recipe("default"), 4)
    parts = [training_part(labels, recipe, 0, fold) for fold in range(4)]
    for part in parts:
        trained, validated = set(labels[part.members]), set(labels[part.validation])
        assert not trained & validated
        assert len(validated) == 2
        assert sorted(set(part.labels)) == list(range(6))
    assert set(np.concatenate([labels[p.validation] for p in parts])) == set(range(8))

    held = replace(recipe, data=replace(recipe.data, holdout=0.1))
    part = training_part(labels, held, 0, None)
    assert len(part.members) == 72
    assert len(part.validation) == 0
    assert not np.array_equal(part.members, training_part(labels, held, 1, None).members)


def with_folds(recipe: Recipe, folds: int) -> Recipe:
    return replace(recipe, selection=replace(recipe.selection, folds=folds))


def test_cuda_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(mlbench.MlbenchError, match="torch finds no GPU"):
        resolve_device("cuda")
