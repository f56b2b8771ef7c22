"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.arrays import Labels
from mlbench.augment import Source
from mlbench.interfaces import LossEntry
from mlbench.model import Embedder
from mlbench.sampler import batch_sizes, epoch_batches
from mlbench.spec import OptimizerSpec, Recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Epoch:
    """What one epoch leaves in the record.

    Attributes:
        loss: mean over its images.
        images: images seen.
        seconds: wall time of its training steps.
    """

    loss: float
    images: int
    seconds: float


class Trainer:
    """Trains a network and a loss on one source.

    Args:
        network: gives raw embeddings.
        loss: the module of ``entry``, on the same device as the network.
        entry: what the loss needs.
        source: ``N`` training images (or their features).
        labels: ``(N,)`` in ``0 .. C - 1``.
        recipe: optimiser, schedule, batch and precision.
        seed: of batches and augmentation; epoch e depends on ``(seed, e)`` alone.
    """

    def __init__(
        self,
        network: Embedder,
        loss: nn.Module,
        entry: LossEntry,
        source: Source,
        labels: Labels,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.network, self.loss, self.entry = network, loss, entry
        self.source, self.labels, self.recipe, self.seed = source, labels, recipe, seed
        self.sizes = batch_sizes(len(labels), recipe.batch.size, drop_last=recipe.batch.drop_last)
        self.optimizer = build_optimizer(network, loss, entry, recipe.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.device = next(network.parameters()).device

    def epoch(self, epoch: int, progress: Progress | None = None) -> Epoch:
        """Train the 0-based ``epoch``; ``progress`` gets steps done and steps in all."""
        started = time.perf_counter()
        self._set_rates(epoch)
        self.network.train()
        self.loss.train()
        order, crops = np.random.default_rng([self.seed, epoch]).spawn(2)
        batches = epoch_batches(self.labels, self.sizes, self.entry.images_per_class, order)
        # The sum stays on the device: reading it every step would make the device wait.
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for step, indices in enumerate(batches):
            inputs = self.source.train_batch(indices, crops)
            labels = torch.from_numpy(self.labels[indices]).to(self.device, non_blocking=True)
            total += self.step(inputs, labels).double() * len(indices)
            if progress is not None:
                progress(step + 1, len(self.sizes))
        images = sum(self.sizes)
        return Epoch(float(total) / images, images, time.perf_counter() - started)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one optimiser step; return the loss, detached, still on the device."""
        bf16 = self.recipe.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            embeddings = self.network(inputs)
        embeddings = embeddings.float()
        if self.entry.unit_length:
            embeddings = F.normalize(embeddings)
        loss = self.loss(embeddings, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _set_rates(self, epoch: int) -> None:
        schedule = self.recipe.schedule
        factor = schedule.decay ** sum(epoch >= start for start in schedule.milestones)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            if group["name"] == "trunk":
                # Without a gradient the optimiser passes a parameter by, its moments included.
                for parameter in group["params"]:
                    parameter.requires_grad_(epoch >= schedule.warmup)


def build_optimizer(
    network: Embedder, loss: nn.Module, entry: LossEntry, spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """Return the optimiser with one group each for trunk, head and the loss's own parameters."""
    loss_lr = spec.loss_lr if spec.loss_lr != "declared" else entry.lr or spec.head_lr
    groups = [
        _group("trunk", network.trunk, spec.lr),
        _group("head", network.head, spec.head_lr),
        _group("loss", loss, loss_lr),
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=spec.weight_decay)
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(groups, eps=spec.eps, weight_decay=spec.weight_decay)
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(groups, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)


def _group(name: str, module: nn.Module, lr: float) -> dict[str, object]:
    params = [p for p in module.parameters() if p.requires_grad]
    return {"name": name, "params": params, "lr": lr}


def diverged(epoch: Epoch) -> bool:
    """Tell whether the mean loss of ``epoch`` is NaN or infinite."""
    return not math.isfinite(epoch.loss)
