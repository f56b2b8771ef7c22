import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import decode
from mlbench.datasets.pixels import PixelCache
from mlbench.interfaces import Interpolation
from mlbench.training.crops import (
    Boxes,
    Crops,
    ResidentCrops,
    SlicedCrops,
    StreamedCrops,
    center_boxes,
    open_crops,
    random_boxes,
)

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
WAYS: dict[str, Callable[[PixelCache], Crops]] = {
    "sliced": SlicedCrops,
    "resident": lambda cache: ResidentCrops(cache, torch.from_numpy(cache.data)),
    "streamed": lambda cache: StreamedCrops(cache, CPU),
}


def cache_of(images: list[ImageArray]) -> PixelCache:
    heights, widths = np.array([image.shape[:2] for image in images]).T
    sizes = 3 * heights * widths
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(image.tobytes() for image in images))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = np.frombuffer(mapped, np.uint8)
    return PixelCache(data, np.cumsum(sizes) - sizes, heights, widths, mapped)


def waves(sizes: list[tuple[int, int]]) -> list[ImageArray]:
    """Smooth images: on noise, antialiasing filters differ most and tell least."""
    rng, images = np.random.default_rng(0), []
    for h, w in sizes:
        y, x = np.mgrid[:h, :w]
        channels = [127 + 120 * np.sin(x / a + y / b) for a, b in rng.uniform(3, 9, (3, 2))]
        images.append(np.stack(channels, axis=2).astype(np.uint8))
    return images


def box_of(boxes: Boxes, row: int) -> tuple[int, int, int, int]:
    return (
        int(boxes.top[row]),
        int(boxes.left[row]),
        int(boxes.height[row]),
        int(boxes.width[row]),
    )


def torchvision_crop(image: ImageArray, boxes: Boxes, row: int, size: int, *, pil: bool) -> Tensor:
    source: Any = Image.fromarray(image) if pil else torch.from_numpy(image).permute(2, 0, 1)
    crop = tvf.resized_crop(source, *box_of(boxes, row), [size, size], antialias=True)
    crop = tvf.horizontal_flip(crop) if boxes.flip[row] else crop
    return tvf.pil_to_tensor(crop) if pil else crop


def differences(way: str, images: list[ImageArray], size: int, *, pil: bool) -> Tensor:
    """Return the absolute differences to torchvision on random crops of each image."""
    cache = cache_of(images)
    rng = np.random.default_rng(1)
    boxes = random_boxes(cache.heights, cache.widths, 0.08, True, rng)
    batch = WAYS[way](cache)(np.arange(len(images)), boxes, size)
    rows = range(len(images))
    theirs = [torchvision_crop(images[i], boxes, i, size, pil=pil) for i in rows]
    return (batch.int() - torch.stack(theirs).int()).abs()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pil", [False, True], ids=["tensor", "PIL"])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_crops_are_torchvisions(way: str, size: int, pil: bool) -> None:
    differ = differences(way, waves([(40, 56), (90, 40), (40, 40), (47, 40)]), size, pil=pil)
    assert differ.max() <= 1
    assert differ.float().mean() < 0.25


@pytest.mark.skipif("MLBENCH_DATA_ROOT" not in os.environ, reason="needs real photographs")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pil", [False, True], ids=["tensor", "PIL"])
def test_crops_of_photographs_are_torchvisions(way: str, pil: bool) -> None:
    folder = Path(os.environ["MLBENCH_DATA_ROOT"], "CUB_200_2011", "images")
    paths = sorted(folder.glob("*/*.jpg"))[::500]
    differ = differences(way, [decode(path) for path in paths], 128, pil=pil)
    assert differ.max() <= 2
    assert differ.float().mean() < (0.03 if way == "sliced" else 0.15)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_of_its_own_size_is_copied(way: str, flip: bool) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, w, 3), dtype=np.uint8) for w in (40, 57)]
    cache = cache_of(images)
    indices = np.array([1, 0])
    boxes = center_boxes(cache.heights[indices], cache.widths[indices], 32)
    boxes.flip[:] = flip
    batch = WAYS[way](cache)(indices, boxes, 32)
    for row, index in enumerate(indices):
        top, left = boxes.top[row], boxes.left[row]
        crop = torch.from_numpy(images[index][top : top + 32, left : left + 32]).permute(2, 0, 1)
        assert torch.equal(batch[row], crop.flip(2) if flip else crop)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_weights_are_those_of_torch(
    height: int, width: int, size: int, seed: int, mode: Interpolation
) -> None:
    """Torch resizes floats without rounding between directions, as the batched way does."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cache = cache_of([np.zeros((2, 3, 3), np.uint8), image])
    zero = np.zeros(1, np.int64)
    boxes = Boxes(zero, zero, np.array([height]), np.array([width]), np.zeros(1, np.bool_))
    crops = ResidentCrops(cache, torch.from_numpy(cache.data), mode)
    batch = crops(np.array([1]), boxes, size)
    values = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    theirs = F.interpolate(values, (size, size), mode=mode, antialias=True).clamp(0, 255)
    assert (batch - theirs).abs().max() < 0.5001


def test_all_ways_cut_bicubic_crops_as_torchvision() -> None:
    images = waves([(40, 56), (90, 40)])
    cache = cache_of(images)
    boxes = random_boxes(cache.heights, cache.widths, 0.3, True, np.random.default_rng(0))
    ways = [
        SlicedCrops(cache, "bicubic"),
        ResidentCrops(cache, torch.from_numpy(cache.data), "bicubic"),
        StreamedCrops(cache, CPU, "bicubic"),
    ]
    for row, image in enumerate(images):
        crop = tvf.resized_crop(
            torch.from_numpy(image).permute(2, 0, 1),
            *(int(getattr(boxes, k)[row]) for k in ("top", "left", "height", "width")),
            size=[32, 32],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        expected = crop.flip(2) if boxes.flip[row] else crop
        for way in ways:
            batch = way(np.arange(2), boxes, 32)
            assert (batch[row].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("way", WAYS)
def test_batches_are_channels_last(way: str) -> None:
    cache = cache_of(waves([(40, 56)]))
    boxes = center_boxes(cache.heights, cache.widths, 32)
    batch = WAYS[way](cache)(np.array([0]), boxes, 32)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_cpu_slices() -> None:
    crops = open_crops(cache_of(waves([(8, 8)])), CPU, interpolation="bicubic")
    assert isinstance(crops, SlicedCrops)
    assert crops.interpolation == "bicubic"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and MLBENCH_TEST_GPU=1")
@pytest.mark.parametrize("kind", [ResidentCrops, StreamedCrops])
def test_a_gpu_cuts_as_the_cpu(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(waves([(40, 56), (90, 40), (40, 40)]))
    device = torch.device("cuda")
    if kind is StreamedCrops:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    crops = open_crops(cache, device)
    assert isinstance(crops, kind)
    boxes = random_boxes(cache.heights, cache.widths, 0.08, True, np.random.default_rng(0))
    batch = crops(np.arange(3), boxes, 32)
    assert batch.device.type == "cuda"
    assert (batch.cpu().int() - WAYS["resident"](cache)(np.arange(3), boxes, 32)).abs().max() <= 1
