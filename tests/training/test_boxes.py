import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mlbench.training.crops import center_boxes, random_boxes

pytestmark = pytest.mark.numeric


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
