from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Preprocessing
from mlbench.recipes.reading import load_recipe
from mlbench.training.network import Embedder, Normalise, Pool, Trunk, build_head, preprocessing_of

RGB = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
CAFFE = Preprocessing(mean=(104.0, 117.0, 128.0), std=(1.0, 1.0, 1.0), scale=255.0, channels="bgr")
RECIPE = load_recipe("default")


def backbone() -> Backbone:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    return Backbone(nn.Sequential(layers, nn.Flatten()), 4, RGB, "none")


def test_normalise_follows_scale_mean_and_std() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    out = Normalise(RGB)(pixels)
    expected = (pixels[:, 2].float() / 255 - 0.3) / 0.125
    assert torch.allclose(out[:, 2], expected, atol=1e-5)


def test_caffe_weights_get_bgr_in_0_to_255() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    out = Normalise(CAFFE)(pixels)
    assert torch.allclose(out[:, 0], pixels[:, 2].float() - 104, atol=1e-4)
    assert torch.allclose(out[:, 2], pixels[:, 0].float() - 128, atol=1e-4)


def test_recipe_overrides_of_the_input() -> None:
    none = preprocessing_of(CAFFE, replace(RECIPE.input, normalization="none", channels="rgb"))
    assert none == Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0, "rgb")
    swapped = preprocessing_of(RGB, replace(RECIPE.input, channels="bgr"))
    assert swapped == Preprocessing((0.3, 0.2, 0.1), (0.125, 0.25, 0.5), 1.0, "bgr")
    assert preprocessing_of(RGB, RECIPE.input) is RGB


@pytest.mark.parametrize("stats", ["live", "frozen"])
@pytest.mark.parametrize("affine", ["train", "frozen"])
def test_batch_norm_statistics_and_affine_freeze_apart(stats: str, affine: str) -> None:
    spec = replace(RECIPE.backbone, bn_stats=stats, bn_affine=affine)
    trunk = Trunk(backbone(), replace(RECIPE, backbone=spec)).train()
    norm = next(m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    trunk(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)).sum().backward()
    assert torch.equal(before, norm.running_mean) == (stats == "frozen")
    assert (norm.weight.grad is None) == (affine == "frozen")


def test_heads() -> None:
    spec = RECIPE.head
    linear = build_head(spec, 10)
    assert linear(torch.zeros(2, 10)).shape == (2, spec.dim)
    deep = build_head(replace(spec, kind="relu-bn-linear"), 10)
    assert isinstance(deep, nn.Sequential)
    assert [type(m) for m in deep] == [nn.ReLU, nn.BatchNorm1d, nn.Linear]


def test_a_head_with_layer_norm_is_not_changed_by_the_scale_of_features() -> None:
    head = build_head(replace(RECIPE.head, norm="layer"), 10)
    assert isinstance(head, nn.Sequential)
    assert [type(m) for m in head] == [nn.LayerNorm, nn.Linear]
    assert len(list(head.parameters())) == 2  # of the linear map alone
    x = torch.randn(3, 10)
    linear = head[1]
    assert isinstance(linear, nn.Linear)
    unit = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(head(5 * x + 2), linear(unit), rtol=1e-4, atol=1e-4)
    deep = build_head(replace(RECIPE.head, kind="relu-bn-linear", norm="layer"), 10)
    assert isinstance(deep, nn.Sequential)
    assert [type(m) for m in deep] == [nn.LayerNorm, nn.ReLU, nn.BatchNorm1d, nn.Linear]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("avg", [2.5, -2.5]),
        ("max", [4.0, -1.0]),
        ("avg+max", [6.5, -3.5]),
        ("gem", [np.cbrt((1 + 8 + 27 + 64) / 4), 1e-6]),  # of positive parts
    ],
)
def test_pooling(kind: Any, expected: list[float]) -> None:
    grid = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, -2.0], [-3.0, -4.0]]]])
    torch.testing.assert_close(Pool(kind)(grid), torch.tensor([expected], dtype=torch.float32))
    torch.testing.assert_close(Pool(kind)(grid.flatten(2)), Pool(kind)(grid))


def test_a_recipe_pools_where_the_backbone_does() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pooled = Backbone(layers, 4, RGB, "none", lambda pool: layers.set_submodule("1", pool))
    recipe = replace(RECIPE, head=replace(RECIPE.head, pool="max"))
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    trunk = Trunk(pooled, recipe)
    assert torch.equal(trunk(pixels), layers[0](trunk.normalise(pixels)).amax((2, 3)))


def test_another_pooling_of_a_backbone_without_a_place_for_it_is_refused() -> None:
    recipe = replace(RECIPE, head=replace(RECIPE.head, pool="gem"))
    with pytest.raises(MlbenchError, match=r"'convnet' does not support head\.pool 'gem'.*use"):
        Trunk(backbone(), recipe)


def test_a_trunk_knows_how_images_are_resized_for_it() -> None:
    cubic = replace(backbone(), preprocessing=replace(RGB, interpolation="bicubic"))
    ways = {
        named: Trunk(cubic, replace(RECIPE, input=replace(RECIPE.input, interpolation=named)))
        for named in ("bilinear", "backbone")
    }
    assert {k: trunk.interpolation for k, trunk in ways.items()} == {
        "bilinear": "bilinear",
        "backbone": "bicubic",
    }


def test_embedder_is_head_of_trunk() -> None:
    network = Embedder(nn.Flatten(), nn.Linear(4, 2))
    assert network(torch.zeros(3, 2, 2)).shape == (3, 2)
