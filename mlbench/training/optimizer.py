"""The optimiser of network and loss."""

from __future__ import annotations

import math

import torch
from torch import nn

from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry
from mlbench.recipes.spec import OptimizerSpec, ScheduleSpec
from mlbench.training.network import Embedder


def build_optimizer(
    network: Embedder, loss: nn.Module, entry: LossEntry, spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """Return the optimiser with one group each for trunk, head and the loss's own parameters.

    SGD and RMSprop are not fused: torch has no fused RMSprop, and its fused SGD rounds otherwise.
    """
    groups = [
        _group("trunk", network.trunk, spec.lr),
        _group("head", network.head, spec.head_lr),
        *loss_groups(loss, entry, spec),
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


def clip_gradients(optimizer: torch.optim.Optimizer, spec: OptimizerSpec) -> None:
    """Limit the gradients that the optimiser is about to take, as ``spec`` says."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if spec.clip_value:
        nn.utils.clip_grad_value_(parameters, spec.clip_value)
    if spec.clip_norm:
        nn.utils.clip_grad_norm_(parameters, spec.clip_norm)


def rate_factor(schedule: ScheduleSpec, epoch: int) -> float:
    """Return what the learning rates of the 0-based ``epoch`` are multiplied by."""
    steps = schedule.decay ** sum(epoch >= start for start in schedule.milestones)
    if schedule.annealing == "none":
        return steps
    return steps * (1 + math.cos(math.pi * epoch / schedule.epochs)) / 2


def loss_groups(loss: nn.Module, entry: LossEntry, spec: OptimizerSpec) -> list[dict[str, object]]:
    """Return the loss's parameters in groups of one learning rate each.

    Raises:
        MlbenchError: its rates are declared by name, without one for each parameter.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in loss.named_parameters():
        if not parameter.requires_grad:
            continue
        declared = entry.rate_of(name)
        if declared is None and entry.lr is not None:
            raise MlbenchError(f"loss '{entry.name}' declares no learning rate (lr) of '{name}'")
        rate = (declared or spec.head_lr) if spec.loss_lr == "declared" else spec.loss_lr
        groups.setdefault(rate, []).append(parameter)
    return [{"name": "loss", "params": params, "lr": lr} for lr, params in groups.items()]


def _group(name: str, module: nn.Module, lr: float) -> dict[str, object]:
    params = [p for p in module.parameters() if p.requires_grad]
    return {"name": name, "params": params, "lr": lr}
