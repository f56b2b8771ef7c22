"""The training loops that training.py compares, each a function that makes some steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from mlbench.datasets.pixels import PixelCache
from mlbench.interfaces import Preprocessing
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import Recipe
from mlbench.registry import BACKBONES, LOSSES
from mlbench.training.batches import ImageSource
from mlbench.training.crops import open_crops
from mlbench.training.device import compile_network
from mlbench.training.network import Embedder, Trunk, build_head, preprocessing_of
from mlbench.training.trainer import Trainer, build_optimizer

CLASSES = 100
Loop = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        backbone: its name.
        size: side of the crops, pixels.
        batch: images a step.
        steps: of one turn.
        device: to train on.
        precision: of all loops but the plain one, which is fp32.
        threads: of torch.
        workers: that decode images for the plain loop, at least 1.
    """

    backbone: str
    size: int
    batch: int
    steps: int
    device: torch.device
    precision: str = "fp32"
    threads: int = 1
    workers: int = 2

    @property
    def images(self) -> int:
        """Images of one turn."""
        return self.batch * self.steps

    @property
    def cached_side(self) -> int:
        """Shorter side of the cached images, pixels; in the proportion of 256 to 224."""
        return round(self.size * 256 / 224)

    def recipe(self) -> Recipe:
        """Return recipe ``cpu`` (SoftTriple, Adam) for this case, all of the network trained."""
        found, side = load_recipe("cpu"), self.cached_side
        return replace(
            found,
            input=replace(found.input, size=self.size, train_resize=side, test_resize=side),
            batch=replace(found.batch, size=self.batch),
            schedule=replace(found.schedule, warmup=0),
            training=replace(found.training, precision=self.precision),
        )

    def network(self, layout: torch.memory_format) -> tuple[Embedder, Preprocessing]:
        """Return the network as it starts, and what it expects of its input."""
        recipe = self.recipe()
        torch.manual_seed(0)
        backbone = BACKBONES.get(self.backbone).load()("none", None)
        trunk = Trunk(backbone, recipe)
        network = Embedder(trunk, build_head(recipe.head, backbone.features))
        expected = preprocessing_of(backbone.preprocessing, recipe.input)
        return network.to(self.device).to(memory_format=layout), expected


def ours(case: Case, cache: PixelCache, *, compiled: bool) -> Loop:
    """Return mlbench's own loop, one epoch of ``case.images`` at a time."""
    recipe = case.recipe()
    entry = LOSSES.get("softtriple")
    loss = entry.build(CLASSES, recipe.head.dim, dict(entry.defaults)).to(case.device)
    source = ImageSource(cache, open_crops(cache, case.device), recipe.input)
    labels = np.arange(case.images, dtype=np.int64) % CLASSES
    network, _ = case.network(torch.channels_last)
    trainer = Trainer(network, loss, entry, source, labels, recipe, seed=0)
    if compiled:
        trainer.compile()
    return lambda: trainer.epoch(0)


class _Files(Dataset[tuple[Tensor, int]]):
    """Files, decoded and transformed whenever they are asked for."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[i]).convert("RGB")), i % CLASSES


def plain(case: Case, paths: list[Path]) -> tuple[Loop, Loop]:
    """Return a loop as repositories of papers have it, and what uses up the batches in store.

    PIL and torchvision in DataLoader workers, contiguous fp32, the loss read at every step; the
    same network, loss and kind of optimiser as in ours.
    """
    recipe = case.recipe()
    network, expected = case.network(torch.contiguous_format)
    trunk = network.trunk
    assert isinstance(trunk, Trunk)
    trunk.register_module("normalise", nn.Identity())
    entry = LOSSES.get("softtriple")
    loss = entry.build(CLASSES, recipe.head.dim, dict(entry.defaults)).to(case.device)
    groups = build_optimizer(network, loss, entry, recipe.optimizer).param_groups
    plain_groups = [{"params": group["params"], "lr": group["lr"]} for group in groups]
    optimizer = torch.optim.Adam(plain_groups, eps=recipe.optimizer.eps, weight_decay=1e-4)
    batches = _batches(case, paths, expected, recipe.input.min_area)

    def steps() -> None:
        network.train()
        for _ in range(case.steps):
            images, labels = next(batches)
            images = images.to(case.device, non_blocking=True)
            value = loss(F.normalize(network(images)), labels.to(case.device, non_blocking=True))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            value.item()

    def drain() -> None:
        for _ in range(2 * case.workers):
            next(batches)

    return steps, drain


def _batches(
    case: Case, paths: list[Path], expected: Preprocessing, min_area: float
) -> Iterator[tuple[Tensor, Tensor]]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(case.size, (min_area, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(expected.mean, expected.std),
        ]
    )
    loader = DataLoader(
        _Files(paths, transform),
        case.batch,
        shuffle=True,
        drop_last=True,
        num_workers=case.workers,
        persistent_workers=True,
        pin_memory=case.device.type == "cuda",
    )
    while True:
        yield from loader


def limit(case: Case, layout: torch.memory_format, *, compiled: bool) -> Loop:
    """Return the network's passes and optimiser over one batch that is there: nothing else."""
    network, _ = case.network(layout)
    recipe = case.recipe()
    optimizer = build_optimizer(network, nn.Identity(), LOSSES.get("softtriple"), recipe.optimizer)
    forward = compile_network(network, case.device) if compiled else network
    shape = (case.batch, 3, case.size, case.size)
    images = torch.randint(256, shape, dtype=torch.uint8, device=case.device)
    images = images.contiguous(memory_format=layout)
    gradient = torch.full((case.batch, recipe.head.dim), 1e-3, device=case.device)
    network.train()

    def steps() -> None:
        for _ in range(case.steps):
            optimizer.zero_grad()
            with torch.autocast(case.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
                embeddings = forward(images)
            embeddings.float().backward(gradient)
            optimizer.step()

    return steps


def flops(case: Case) -> int:
    """Return the floating-point operations of one step's two passes: three times the forward one.

    Torch's counter, which counts that, takes grouped convolutions for full ones in the backward
    pass (2.15): for EfficientNet-Lite0 it gives 14 times as many operations.
    """
    network, _ = case.network(torch.channels_last)
    shape = (case.batch, 3, case.size, case.size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(shape, dtype=torch.uint8, device=case.device))
    return 3 * counter.get_total_flops()
