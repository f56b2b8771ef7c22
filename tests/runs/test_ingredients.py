"""What is checked before the first run, and which features may be taken from the cache."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.settings import QUICK
from torch import nn

import mlbench
from mlbench.datasets import folder
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, BackboneEntry, Preprocessing
from mlbench.recipes.plan import Request, make_plan
from mlbench.registry import BACKBONES, PROGRAM
from mlbench.runs.ingredients import Ingredients


class Constant(nn.Module):
    """Gives the same features for every image."""

    def __init__(self, value: float, features: int = 4) -> None:
        super().__init__()
        self.value, self.features = nn.Parameter(torch.tensor(value)), features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(x), self.features)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tests register backbones of their own, with a cache of their own."""
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    before = dict(BACKBONES._entries)
    yield
    BACKBONES._entries = before


def register(value: float, source: str, declared: int = 4, weights_id: str = "imagenet:x") -> None:
    def build(weights: str, weights_file: Path | None = None) -> Backbone:
        half = (0.5, 0.5, 0.5)
        return Backbone(Constant(value), declared, Preprocessing(half, half), weights_id)

    BACKBONES._entries["mine"] = BackboneEntry(
        name="mine", target=build, summary="constant", source=source
    )


def spec_and_ingredients(photos: Path, **settings: object) -> Ingredients:
    given = {**QUICK, "backbone.trunk": "frozen", **settings}
    request = Request(dataset=f"folder:{photos}", settings=tuple(given.items()))
    plan = make_plan(request)
    return Ingredients(plan.recipe, plan.files, torch.device("cpu"), lambda *_: None)


def feature(photos: Path) -> float:
    ingredients = spec_and_ingredients(
        photos, **{"backbone.name": "mine", "backbone.weights": "imagenet"}
    )
    return float(ingredients.features("test", 0)[0, 0])


def test_features_of_a_plugin_are_those_of_its_version(photos: Path, registered: None) -> None:
    register(1.0, "plugin 1.0")
    assert feature(photos) == 1.0
    register(2.0, "plugin 1.0")
    assert feature(photos) == 1.0  # the same version: from the cache
    register(3.0, "plugin 1.1")
    assert feature(photos) == 3.0


def test_features_of_a_programs_own_backbone_are_not_kept(photos: Path, registered: None) -> None:
    for value in (1.0, 2.0):
        register(value, PROGRAM)
        assert feature(photos) == value


def test_features_of_a_built_in_are_kept_under_the_old_key(
    photos: Path, registered: None, tmp_path: Path
) -> None:
    """The key of built-in backbones must not change: caches of gigabytes would be made again."""
    register(1.0, "built-in")
    feature(photos)
    (kept,) = (tmp_path / "cache" / "features").glob("*.npy")
    fingerprint = folder.load(str(photos), None).fingerprint
    recipe = [16, 20, "backbone", "backbone"]
    used = [1, fingerprint, "test", *recipe, "mine", "imagenet:x", "cpu", torch.__version__]
    text = json.dumps(used, separators=(",", ":"))
    assert kept.stem == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_features_of_another_pooling_or_interpolation_are_others(
    photos: Path, registered: None, tmp_path: Path
) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]

    def build(weights: str, weights_file: Path | None = None) -> Backbone:
        trunk = nn.Sequential(*layers)
        half = (0.5, 0.5, 0.5)
        own = Preprocessing(half, half, interpolation="bicubic")
        return Backbone(trunk, 4, own, "imagenet:x", lambda pool: trunk.set_submodule("1", pool))

    BACKBONES._entries["mine"] = BackboneEntry(name="mine", target=build, summary="small")
    mine = {"backbone.name": "mine", "backbone.weights": "imagenet"}
    ways = [{}, {"head.pool": "avg"}, {"head.pool": "max"}, {"input.interpolation": "backbone"}]
    found = [spec_and_ingredients(photos, **mine, **way).features("test", 0) for way in ways]
    torch.testing.assert_close(found[0], found[1])
    assert (found[2] > found[0]).all()
    assert not torch.equal(found[3], found[0])
    again = spec_and_ingredients(photos, **mine, **{"input.interpolation": "bicubic"})
    assert torch.equal(again.features("test", 0), found[3])
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == len(ways)


def test_a_backbone_of_other_features_than_declared(photos: Path, registered: None) -> None:
    register(1.0, "plugin 1.0", declared=5)
    message = r"'mine' gives features of shape \(2, 4\) for 2 images and declares 5; fix its"
    with pytest.raises(MlbenchError, match=message):
        spec_and_ingredients(
            photos, **{"backbone.name": "mine", "backbone.weights": "imagenet"}
        ).prepare()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_images_too_small_for_the_backbone(photos: Path, size: int) -> None:
    message = rf"backbone 'convnet' cannot take images of input.size {size} \(.*\); set the size"
    with pytest.raises(MlbenchError, match=message):
        spec_and_ingredients(photos, **{"input.size": size}).prepare()


def test_an_image_of_one_pixel_is_enough_where_the_backbone_takes_it(
    photos: Path, registered: None
) -> None:
    register(1.0, PROGRAM)
    settings = {"input.size": 1, "input.train_resize": 1, "input.test_resize": 1}
    mine = {"backbone.name": "mine", "backbone.weights": "imagenet"}
    ingredients = spec_and_ingredients(photos, **settings, **mine)
    ingredients.prepare()
    assert ingredients.features("train", 0).shape == (24, 4)


@pytest.mark.parametrize(
    ("loss", "parameter", "message"),
    [
        ("pml:TripletMarginLoss", "margn", "parameter of TripletMarginLoss 'margn'; did you mean"),
        ("pml:TripletMarginLoss", "miner_margin", "has no miner for miner_margin"),
        ("pml:TripletMarginLoss+MultiSimilarityMiner", "miner_x", "parameter of MultiSimilarity"),
        ("pml:TripletMarginLos", "margin", "unknown class of pytorch-metric-learning"),
    ],
)
def test_parameters_of_other_libraries_are_refused_before_any_work(
    loss: str, parameter: str, message: str
) -> None:
    with pytest.raises(MlbenchError, match=message):
        make_plan(Request(losses=(loss,), settings=((f"{loss}.{parameter}", 0.1),)))


def test_a_last_batch_of_one_below_batch_norm(photos: Path) -> None:
    settings = {**QUICK, "head.kind": "relu-bn-linear", "batch.size": 23}
    with pytest.raises(MlbenchError, match="last batch with one image, too few for the batch norm"):
        mlbench.run("npairs", dataset=f"folder:{photos}", settings=settings)


def test_a_backbone_whose_factory_gives_none_is_named(photos: Path, registered: None) -> None:
    register(1.0, "plugin 1.0")
    entry = replace(BACKBONES.get("mine"), target=lambda weights, weights_file=None: None)
    BACKBONES._entries["mine"] = entry
    with pytest.raises(MlbenchError, match="backbone 'mine': its factory returns NoneType, not"):
        spec_and_ingredients(
            photos, **{"backbone.name": "mine", "backbone.weights": "imagenet"}
        ).prepare()
