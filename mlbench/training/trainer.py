"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlbench.recipes.spec import Recipe
from mlbench.records.provenance import Execution
from mlbench.system.interrupts import held
from mlbench.training.batches import Draw, InputSource
from mlbench.training.device import (
    compile_network,
    execution,
    graphs_skipped,
    rehearsal,
    to_device,
)
from mlbench.training.network import Embedder, WithFeatures, live_batch_norms
from mlbench.training.optimizer import build_optimizer, clip_gradients, rate_factor
from mlbench.training.sampler import batch_sizes, epoch_batches, twice

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


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        draw: makes the network inputs of any part of it.
        labels: ``(B,)`` int64, on the training device.
        context: what the loss declared, but for features.
    """

    draw: Draw
    labels: Tensor
    context: Mapping[str, Tensor | int]


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
        levels: ``(N, L)`` coarser classes, for losses that declare them.

    Raises:
        MlbenchError: the recipe or the data cannot give what a batch or the loss needs.
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
        levels: Labels | None = None,
    ) -> None:
        self.network, self.loss, self.entry = network, loss, entry
        self.source, self.labels, self.recipe, self.seed = source, labels, recipe, seed
        self.sizes = batch_sizes(len(labels), recipe.batch.size, drop_last=recipe.batch.drop_last)
        self.levels = levels
        _check_batches(self.sizes, recipe)
        _check_context(entry, recipe, levels)
        self._part = min(recipe.batch.micro or recipe.batch.size, recipe.batch.size)
        if self._part < max(self.sizes):
            _check_parts(network)
        self._outputs_of: nn.Module = (
            WithFeatures(network) if "features" in entry.context else network
        )
        self.optimizer = build_optimizer(network, loss, entry, recipe.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.device = next(network.parameters()).device
        self.position = self._position(-1, np.random.default_rng())
        self._restored = False
        self._compiled: Callable[[Tensor], Any] | None = None
        self.execution: Execution = "eager"

    def compile(self) -> None:
        """Compile the network's passes over full batches; incomplete ones stay as they are.

        Nothing else changes, so that the steps are the same ones but for rounding, if the network
        has no dropout: compiled dropout draws other numbers than eager dropout.

        Raises:
            MlbenchError: torch cannot compile the network here.
        """
        size, schedule = self._part, self.recipe.schedule
        if size > max(self.sizes):
            return
        self._compiled = compile_network(self._outputs_of, self.device)
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
                    if self.recipe.batch.micro:
                        with torch.no_grad():
                            self._outputs(inputs)
                    self._outputs(inputs)[0].sum().backward()
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
                here.total += self.step(self._batch(indices)).double() * len(indices)
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
        if "views" in self.entry.context:
            batches = map(twice, batches)
        return self.position, islice(batches, self.position.step, None)

    def _batch(self, indices: Indices) -> Batch:
        """Draw the batch of those images, with what the loss declared of it."""
        here = self.position
        context: dict[str, Tensor | int] = {}
        if "views" in self.entry.context:
            context["views"] = to_device(indices, self.device)
        if "step" in self.entry.context:
            context["step"] = here.epoch * len(self.sizes) + here.step
        if "levels" in self.entry.context and self.levels is not None:
            context["levels"] = to_device(self.levels[indices], self.device)
        labels = to_device(self.labels[indices], self.device)
        return Batch(self.source.draw(indices, here.crops), labels, context)

    def _position(self, epoch: int, crops: np.random.Generator) -> _Position:
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        return _Position(epoch, 0, total, 0.0, crops)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, as tensors and plain values.

        The generators of torch are part of it, as some losses and networks draw from them.
        """
        here = self.position
        return {
            "network": self.network.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": {**vars(here), "crops": here.crops.bit_generator.state},
            "random": self._random_state(),
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
        self._set_random_state(state["random"])

    def _random_state(self) -> dict[str, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)

    def step(self, batch: Batch) -> Tensor:
        """Take one optimiser step; return the loss, detached, still on the device."""
        # Before the forward pass: CUDA graphs reuse the memory of gradients that are still there.
        self.optimizer.zero_grad(set_to_none=True)
        if len(batch.labels) > self._part:
            loss = self._gradient_in_parts(batch)
        else:
            loss = self._loss(self._outputs(batch.draw(slice(None))), batch)
            loss.backward()
        clip_gradients(self.optimizer, self.recipe.optimizer)
        self.optimizer.step()
        return loss.detach()

    def _gradient_in_parts(self, batch: Batch) -> Tensor:
        """Compute the gradient of the whole batch with the memory of a part (Gao et al. 2021).

        The batch is embedded without a graph; the loss gives the gradient of its embeddings; each
        part is embedded again, from the same crops and random numbers, and takes its share back.
        """
        starts = range(0, len(batch.labels), self._part)
        parts = [slice(start, start + self._part) for start in starts]
        before = self._random_state()
        with torch.no_grad():
            # Copies: the memory of a CUDA graph's results is its next pass's.
            outputs = [[o.clone() for o in self._outputs(batch.draw(part))] for part in parts]
        leaves = [torch.cat(pieces).requires_grad_() for pieces in zip(*outputs, strict=True)]
        del outputs
        loss = self._loss(leaves, batch)
        loss.backward()
        after = self._random_state()
        self._set_random_state(before)
        for part in parts:
            pairs = zip(self._outputs(batch.draw(part)), leaves, strict=True)
            used = [(o, v.grad[part]) for o, v in pairs if o.requires_grad and v.grad is not None]
            torch.autograd.backward([o for o, _ in used], [gradient for _, gradient in used])
        self._set_random_state(after)
        return loss

    def _outputs(self, inputs: Tensor) -> list[Tensor]:
        """Return embeddings as the loss takes them, and features if it declared them."""
        full = len(inputs) == self._part
        network = self._compiled if self._compiled is not None and full else self._outputs_of
        bf16 = self.recipe.training.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = network(inputs)
        given = [outputs] if isinstance(outputs, Tensor) else outputs
        embeddings, *features = (output.float() for output in given)
        return [F.normalize(embeddings) if self.entry.unit_length else embeddings, *features]

    def _loss(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        embeddings, *features = outputs
        if not self.entry.context:
            return self.loss(embeddings, batch.labels)
        context = {**batch.context, **({"features": features[0]} if features else {})}
        return self.loss(embeddings, batch.labels, context)

    def _set_rates(self, epoch: int) -> None:
        schedule = self.recipe.schedule
        factor = rate_factor(schedule, epoch)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
            if group["name"] == "trunk":
                # Without a gradient the optimiser passes a parameter by, its moments included.
                for parameter in group["params"]:
                    parameter.requires_grad_(epoch >= schedule.warmup)


def _check_context(entry: LossEntry, recipe: Recipe, levels: Labels | None) -> None:
    """Raise MlbenchError if the loss declares what this recipe or data set cannot give."""
    if "levels" in entry.context and levels is None:
        raise MlbenchError(
            f"loss '{entry.name}' declares levels, coarser classes of the images; the data set "
            f"'{recipe.data.name}' has none"
        )
    fixed = recipe.input.train_crop == "center" and not recipe.input.flip
    if "views" in entry.context and (fixed or recipe.backbone.trunk == "frozen"):
        raise MlbenchError(
            f"loss '{entry.name}' declares views, two crops of each image, which are equal here; "
            "use --set backbone.trunk=train input.train_crop=random-resized"
        )


def _check_parts(network: nn.Module) -> None:
    """Raise MlbenchError if parts of a batch would be embedded otherwise than the whole."""
    live = live_batch_norms(network)
    if live:
        raise MlbenchError(
            f"batch.micro: {live[0]} is a batch norm of live statistics, which depend on the whole "
            "batch; use --set backbone.bn_stats=frozen and a head without batch norm, or omit "
            "batch.micro"
        )


def _check_batches(sizes: Sequence[int], recipe: Recipe) -> None:
    if 1 in sizes and recipe.head.kind == "relu-bn-linear":
        raise MlbenchError(
            f"batch.size {recipe.batch.size} leaves an epoch's last batch with one image, too few "
            "for the batch norm of head.kind relu-bn-linear; use --set batch.drop_last=true or "
            "another batch.size"
        )


def diverged(epoch: Epoch) -> bool:
    """Tell whether the mean loss of ``epoch`` is NaN or infinite."""
    return not math.isfinite(epoch.loss)
