import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from mlbench.augment import Boxes, ImageSource, Subset, center_boxes, random_boxes
from mlbench.config import load_recipe
from mlbench.images import open_cache
from mlbench.interfaces import ImageSet

SIZES = [(40, 56), (64, 40), (40, 40), (47, 40)]


@pytest.fixture(scope="module")
def source() -> ImageSource:
    rng = np.random.default_rng(0)
    # Smooth images: on noise, antialiasing filters differ most and tell least.
    images = []
    for h, w in SIZES:
        y, x = np.mgrid[:h, :w]
        waves = [127 + 120 * np.sin(x / a + y / b) for a, b in rng.uniform(3, 9, (3, 2))]
        images.append(np.stack(waves, axis=2).astype(np.uint8))
    image_set = ImageSet(tuple("abcd"), np.arange(4), tuple("abcd"), lambda i: images[i])
    cache = open_cache(image_set, 40, "augment-test")
    spec = load_recipe("frozen").input
    from dataclasses import replace

    return ImageSource(cache, replace(spec, size=32, test_resize=40), torch.device("cpu"))


def test_crops_are_torchvisions(source: ImageSource) -> None:
    boxes = random_boxes(
        source.cache.heights, source.cache.widths, 0.08, True, np.random.default_rng(1)
    )
    batch = source.crop(np.arange(4), boxes)
    assert batch.shape == (4, 3, 32, 32)
    assert batch.dtype == torch.uint8
    for i in range(4):
        image = torch.from_numpy(source.cache.image(i).copy()).permute(2, 0, 1)
        box = [int(v[i]) for v in (boxes.top, boxes.left, boxes.height, boxes.width)]
        top, left, height, width = box
        expected = tvf.resized_crop(image, top, left, height, width, [32, 32], antialias=True)
        if boxes.flip[i]:
            expected = tvf.horizontal_flip(expected)
        assert (batch[i].int() - expected.int()).abs().max() <= 1


def test_test_crops_are_torchvisions_center_crop(source: ImageSource) -> None:
    batch = source.test_batch(np.arange(4))
    for i in range(4):
        image = torch.from_numpy(source.cache.image(i).copy()).permute(2, 0, 1)
        assert torch.equal(batch[i], v2.CenterCrop(32)(image))


def test_random_boxes_lie_inside_and_cover_the_range() -> None:
    n = 4000
    heights, widths = np.full(n, 256), np.full(n, 341)
    boxes = random_boxes(heights, widths, 0.08, True, np.random.default_rng(0))
    assert (boxes.top >= 0).all()
    assert (boxes.left >= 0).all()
    assert (boxes.top + boxes.height <= heights).all()
    assert (boxes.left + boxes.width <= widths).all()
    area = boxes.height * boxes.width / (256 * 341)
    ratio = boxes.width / boxes.height
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.97
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    assert 0.45 < boxes.flip.mean() < 0.55


def test_random_boxes_have_torchvisions_distribution() -> None:
    """The mean area and position agree with torchvision's own draws."""
    image = torch.zeros(3, 100, 180)
    crop = v2.RandomResizedCrop(10)
    theirs = np.array([list(crop.make_params([image]).values()) for _ in range(3000)])
    n = 3000
    boxes = random_boxes(np.full(n, 100), np.full(n, 180), 0.08, False, np.random.default_rng(0))
    ours = np.stack([boxes.top, boxes.left, boxes.height, boxes.width], axis=1)
    spread = theirs.std(axis=0) / np.sqrt(n)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 6 * spread).all()


def test_extreme_shapes_fall_back_to_a_central_crop() -> None:
    boxes = random_boxes(np.array([10]), np.array([1000]), 0.9, False, np.random.default_rng(0))
    assert (boxes.height[0], boxes.width[0]) == (10, 13)
    assert (boxes.top[0], boxes.left[0]) == (0, (1000 - 13) // 2)


def test_center_boxes_round_as_torchvision() -> None:
    boxes = center_boxes(np.array([33, 34]), np.array([35, 32]), 32)
    assert boxes.top.tolist() == [round(0.5), 1]
    assert boxes.left.tolist() == [round(1.5), 0]


def test_a_subset_renumbers(source: ImageSource) -> None:
    subset = Subset(source, np.array([3, 1]))
    assert len(subset) == 2
    assert torch.equal(subset.test_batch(np.array([0])), source.test_batch(np.array([3])))


def test_flip_mirrors(source: ImageSource) -> None:
    boxes = center_boxes(source.cache.heights, source.cache.widths, 32)
    mirrored = Boxes(boxes.top, boxes.left, boxes.height, boxes.width, np.ones(4, np.bool_))
    indices = np.arange(4)
    assert torch.equal(source.crop(indices, mirrored), source.crop(indices, boxes).flip(3))
