from dataclasses import replace

import pytest
import torch
from torch import nn

from mlbench.interfaces import Backbone, Preprocessing
from mlbench.recipes.reading import load_recipe
from mlbench.training.network import Embedder, Normalise, Trunk, build_head, preprocessing_of

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
    trunk = Trunk(backbone(), RECIPE.input, spec).train()
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


def test_embedder_is_head_of_trunk() -> None:
    network = Embedder(nn.Flatten(), nn.Linear(4, 2))
    assert network(torch.zeros(3, 2, 2)).shape == (3, 2)
