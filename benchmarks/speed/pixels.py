"""Milliseconds an image: the pixel cache beside decoding each time, and torchvision's transforms.

    python benchmarks/speed/pixels.py [--size 128] [--quick] [--json PATH]

Each tool gives batches of 32 random-resized, mirrored crops, uint8. On a machine with a GPU, the
crops that are cut there are measured too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import Spread, arguments, copy_limit, finish, ratio, show, take_turns
from _photos import image_set, photos, pixels
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mlbench.datasets.pixels import PixelCache
from mlbench.training.crops import Crops, ResidentCrops, SlicedCrops, StreamedCrops, random_boxes

BATCH, MIN_AREA = 32, 0.25
OURS = "mlbench, cached, CPU"
Tool = Callable[[], object]


def cached(cache: PixelCache, crops: Crops, size: int) -> Tool:
    """Return what cuts the next batch from the cache."""
    rng = np.random.default_rng(0)

    def batch() -> None:
        indices = rng.permutation(len(cache))[:BATCH]
        heights, widths = cache.heights[indices], cache.widths[indices]
        crops(indices, random_boxes(heights, widths, MIN_AREA, True, rng), size)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return batch


def each(read: Callable[[int], Any], count: int, size: int) -> Tool:
    """Return what transforms the next images one by one with torchvision."""
    transform = v2.Compose(
        [v2.RandomResizedCrop(size, (MIN_AREA, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    )
    rng = np.random.default_rng(0)

    def batch() -> None:
        chosen = rng.permutation(count)[:BATCH]
        torch.stack([_tensor(transform(read(int(i)))) for i in chosen])

    return batch


def _tensor(image: Image.Image | Tensor) -> Tensor:
    return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


def tools(paths: list[Path], cache: PixelCache, size: int) -> dict[str, Tool]:
    """Return all that can be measured here, ours first."""
    count = len(paths)

    def opened(i: int) -> Image.Image:
        return Image.open(paths[i]).convert("RGB")

    def decoded(i: int) -> Tensor:
        return torch.from_numpy(cache.image(i)).permute(2, 0, 1)

    found = {
        OURS: cached(cache, SlicedCrops(cache), size),
        "PIL file, torchvision v2": each(opened, count, size),
        "cached, torchvision v2": each(decoded, count, size),
    }
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        resident = ResidentCrops(cache, torch.from_numpy(cache.data).to(gpu))
        found["mlbench, on the GPU"] = cached(cache, resident, size)
        found["mlbench, sent to the GPU"] = cached(cache, StreamedCrops(cache, gpu), size)
    return found


def bytes_moved(cache: PixelCache, size: int) -> float:
    """Return the bytes of a crop, on average: read from the cache, and written."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(cache.heights, cache.widths, MIN_AREA, True, rng)
    return 3 * (float((boxes.height * boxes.width).mean()) + size**2)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the crops, pixels")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    side = round(options.size * 256 / 224)
    with photos(256) as paths, pixels(image_set(paths, 1), side) as cache:
        seconds = take_turns(tools(paths, cache, options.size), 3 if options.quick else 20)
        moved = bytes_moved(cache, options.size)
    milliseconds = {name: Spread.of(values).scaled(1e3 / BATCH) for name, values in seconds.items()}
    ratios = {name: ratio(seconds, name, OURS) for name in seconds}
    rows = [(name, str(milliseconds[name]), str(ratios[name])) for name in seconds]
    title = f"{options.size} px crops of images of {side} px, median (range)"
    show(title, ("tool", "ms an image", "times ours"), rows)
    rate, limit = moved / milliseconds[OURS].median * 1e3, copy_limit()
    print(
        f"{OURS}: {moved / 1e3:.0f} kB read and written an image, {rate / 1e9:.2f} GB/s, "
        f"{rate / limit:.1%} of a large copy's {limit / 1e9:.1f}"
    )
    figures = {"size": options.size, "milliseconds": milliseconds, "ratios": ratios, "bytes": moved}
    finish(figures, options.json, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
