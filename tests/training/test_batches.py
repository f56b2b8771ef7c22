from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mlbench.datasets.pixels import open_cache
from mlbench.interfaces import ImageSet
from mlbench.recipes.reading import load_recipe
from mlbench.training.batches import FeatureSource, ImageSource, Subset
from mlbench.training.crops import SlicedCrops, random_boxes

pytestmark = pytest.mark.numeric

SIZES = [(40, 56), (64, 40), (40, 40), (47, 40)]


@pytest.fixture
def source() -> ImageSource:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    image_set = ImageSet(tuple("abcd"), np.arange(4), tuple("abcd"), lambda i: images[i])
    cache = open_cache(image_set, 40, "augment-test")
    spec = replace(load_recipe("paper").input, size=32, train_resize=40, test_resize=40)
    return ImageSource(cache, SlicedCrops(cache), spec)


def test_training_crops_are_those_of_the_generator(source: ImageSource) -> None:
    indices, cache = np.array([2, 0]), source.cache
    batch = source.draw(indices, np.random.default_rng(5))(slice(None))
    heights, widths = cache.heights[indices], cache.widths[indices]
    boxes = random_boxes(heights, widths, source.spec.min_area, True, np.random.default_rng(5))
    assert torch.equal(batch, source.crops(indices, boxes, 32))


def test_central_training_crops_are_mirrored_at_random(source: ImageSource) -> None:
    central = replace(source, spec=replace(source.spec, train_crop="center"))
    plain = source.test_batch(np.arange(4))
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(20):
        for crop, still in zip(central.draw(np.arange(4), rng)(slice(None)), plain, strict=True):
            mirrored += torch.equal(crop, still.flip(2))
            assert torch.equal(crop, still) or torch.equal(crop, still.flip(2))
    assert 25 < mirrored < 55


def test_test_crops_are_torchvisions_center_crop(source: ImageSource) -> None:
    batch = source.test_batch(np.arange(4))
    for i in range(4):
        image = torch.from_numpy(source.cache.image(i).copy()).permute(2, 0, 1)
        assert torch.equal(batch[i], v2.CenterCrop(32)(image))


def test_a_subset_renumbers(source: ImageSource) -> None:
    subset = Subset(source, np.array([3, 1]))
    assert len(subset) == 2
    assert torch.equal(subset.test_batch(np.array([0])), source.test_batch(np.array([3])))


def test_features_are_not_augmented() -> None:
    features = FeatureSource(torch.arange(12.0).view(4, 3))
    batch = features.draw(np.array([3, 0]), np.random.default_rng(0))(slice(None))
    assert torch.equal(batch, torch.tensor([[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]]))
