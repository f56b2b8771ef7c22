"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.arrays import Indices, Labels
from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry
from mlbench.progress import Progress
from mlbench.recipes.spec import OptimizerSpec, Recipe
from mlbench.records.provenance import Execution
from mlbench.system.interrupts import held
from mlbench.training.batches import InputSource
from mlbench.training.device import (
    compile_network,
    execution,
    graphs_skipped,
    rehearsal,
    to_device,
)
from mlbench.training.network import Embedder
from mlbench.training.sampler import batch_sizes, epoch_batches

_REHEARSALS = 3  # the first compiles, the second captures CUDA graphs, the third replays them


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


@dataclass
class _Position:
    """How far training has come.

    Attributes:
        epoch: 0-based; -1 before the first.
        step: steps of the epoch that are done.
        total: the epoch's loss so far, summed over images; on the device, as reading it every step
            would make the device wait.
        seconds: that the epoch took so far.
        crops: draws the augmentation.
    """

    epoch: int
    step: int
    total: Tensor
    seconds: float
    crops: np.random.Generator


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
        source: InputSource,
        labels: Labels,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.network, self.loss, self.entry = network, loss, entry
        self.source, self.labels, self.recipe, self.seed = source, labels, recipe, seed
        self.sizes = batch_sizes(len(labels), recipe.batch.size, drop_last=recipe.batch.drop_last)
        _check_batches(self.sizes, recipe)
        self.optimizer = build_optimizer(network, loss, entry, recipe.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.device = next(network.parameters()).device
        self.position = self._position(-1, np.random.default_rng())
        self._restored = False
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.execution: Execution = "eager"

    def compile(self) -> None:
        """Compile the network's passes over full batches; incomplete ones stay as they are.

        Nothing else changes, so that the steps are the same ones but for rounding.

        Raises:
            MlbenchError: torch cannot compile the network here.
        """
        size, schedule = self.recipe.batch.size, self.recipe.schedule
        if size not in self.sizes:
            return
        self._compiled = compile_network(self.network, self.device)
        self.network.train()
        inputs = self.source.test_batch(np.arange(size))
        first = max(self.position.epoch, 0)
        kinds = {first, max(first, schedule.warmup)} & set(range(schedule.epochs))
        skipped = graphs_skipped()
        with rehearsal(self.network, self.device):
            for epoch in sorted(kinds):
                self._set_rates(epoch)
                for _ in range(_REHEARSALS):
                    # Gradients live in a CUDA graph's memory, which its next pass takes.
                    self.network.zero_grad(set_to_none=True)
                    self._embeddings(inputs).sum().backward()
        self.execution = execution(self.device, compiled=True)
        if graphs_skipped() > skipped:
            self.execution = "compile"

    def epoch(self, epoch: int, progress: Progress | None = None) -> Epoch:
        """Train the 0-based ``epoch``, or the rest of it after ``restore``.

        Args:
            epoch: to train.
            progress: called between steps with steps done and steps in all; ``state`` is whole
                then.
        """
        here, batches = self._begin(epoch)
        started = time.perf_counter() - here.seconds
        self._set_rates(epoch)
        self.network.train()
        self.loss.train()
        for indices in batches:
            with held():
                inputs = self.source.train_batch(indices, here.crops)
                labels = to_device(self.labels[indices], self.device)
                here.total += self.step(inputs, labels).double() * len(indices)
                here.step += 1
                here.seconds = time.perf_counter() - started
            if progress is not None:
                progress(here.step, len(self.sizes))
        images = sum(self.sizes)
        loss = float(here.total) / images
        here.seconds = time.perf_counter() - started
        return Epoch(loss, images, here.seconds)

    def _begin(self, epoch: int) -> tuple[_Position, Iterator[Indices]]:
        """Return how far ``epoch`` is (0 steps unless restored midway) and its batches to come."""
        order, crops = np.random.default_rng([self.seed, epoch]).spawn(2)
        if not (self._restored and self.position.epoch == epoch):
            self.position = self._position(epoch, crops)
        self._restored = False
        batches = epoch_batches(self.labels, self.sizes, self.entry.images_per_class, order)
        return self.position, islice(batches, self.position.step, None)

    def _position(self, epoch: int, crops: np.random.Generator) -> _Position:
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        return _Position(epoch, 0, total, 0.0, crops)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, as tensors and plain values.

        The generators of torch are part of it, as some losses and networks draw from them.
        """
        here = self.position
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": {**vars(here), "crops": here.crops.bit_generator.state},
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state`` of a trainer that was made with the same arguments."""
        self.network.load_state_dict(state["network"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        crops = np.random.default_rng()
        crops.bit_generator.state = state["position"]["crops"]
        total = state["position"]["total"].to(self.device)
        self.position = _Position(**{**state["position"], "total": total, "crops": crops})
        self._restored = True
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one optimiser step; return the loss, detached, still on the device."""
        # Before the forward pass: CUDA graphs reuse the memory of gradients that are still there.
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self._embeddings(inputs), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _embeddings(self, inputs: Tensor) -> Tensor:
        full = len(inputs) == self.recipe.batch.size
        network = self._compiled if self._compiled is not None and full else self.network
        bf16 = self.recipe.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            embeddings = network(inputs)
        embeddings = embeddings.float()
        return F.normalize(embeddings) if self.entry.unit_length else embeddings

    def _set_rates(self, epoch: int) -> None:
        schedule = self.recipe.schedule
        factor = schedule.decay ** sum(epoch >= start for start in schedule.milestones)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            if group["name"] == "trunk":
                # Without a gradient the optimiser passes a parameter by, its moments included.
                for parameter in group["params"]:
                    parameter.requires_grad_(epoch >= schedule.warmup)


def _check_batches(sizes: Sequence[int], recipe: Recipe) -> None:
    if 1 in sizes and recipe.head.kind == "relu-bn-linear":
        raise MlbenchError(
            f"batch.size {recipe.batch.size} leaves an epoch's last batch with one image, too few "
            "for the batch norm of head.kind relu-bn-linear; give --set batch.drop_last=true or "
            "another batch.size"
        )


def build_optimizer(
    network: Embedder, loss: nn.Module, entry: LossEntry, spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """Return the optimiser with one group each for trunk, head and the loss's own parameters.

    SGD and RMSprop are not fused: torch has no fused RMSprop, and its fused SGD rounds otherwise.
    """
    loss_lr = spec.loss_lr if spec.loss_lr != "declared" else entry.lr or spec.head_lr
    groups = [
        _group("trunk", network.trunk, spec.lr),
        _group("head", network.head, spec.head_lr),
        _group("loss", loss, loss_lr),
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "sgd":
        momentum = 0.9 if spec.momentum == "usual" else spec.momentum
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=spec.weight_decay)
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(
            groups,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            momentum=0.0 if spec.momentum == "usual" else spec.momentum,
        )
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(groups, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)


def _group(name: str, module: nn.Module, lr: float) -> dict[str, object]:
    params = [p for p in module.parameters() if p.requires_grad]
    return {"name": name, "params": params, "lr": lr}


def diverged(epoch: Epoch) -> bool:
    """Tell whether the mean loss of ``epoch`` is NaN or infinite."""
    return not math.isfinite(epoch.loss)
