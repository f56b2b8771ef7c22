"""How fast this machine trains under a recipe, measured on a few steps without its data."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from mlbench.recipes.spec import Recipe
from mlbench.registry import BACKBONES
from mlbench.training.network import Trunk

_STEPS = 2
_BATCH = 16


def images_per_second(recipe: Recipe, device: torch.device) -> float:
    """Measure training steps of the trunk, or its pass over the images if it is frozen.

    Head and loss are left out, which take little beside it; so are reading and cutting of images.
    The weights do not matter for it and are drawn.

    Args:
        recipe: backbone, size of the images and of the batches.
        device: to measure on.

    Raises:
        MlbenchError: the backbone cannot be built.
    """
    spec = recipe.backbone
    backbone = BACKBONES.get(spec.name).load()("none", None)
    trunk = Trunk(backbone, recipe).to(device).to(memory_format=torch.channels_last)
    batch, size = min(recipe.batch.size, _BATCH), recipe.input.size
    images = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)

    def step() -> None:
        if spec.trunk == "frozen":
            with torch.inference_mode():
                trunk(images)
        else:
            trunk(images).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return batch * _STEPS / _seconds(step)


def _seconds(step: Callable[[], None]) -> float:
    step()  # memory and kernels are chosen in the first one
    begun = time.perf_counter()
    for _ in range(_STEPS):
        step()
    return time.perf_counter() - begun
