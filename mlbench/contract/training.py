"""A toy problem that a loss worth the name solves in a hundred steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mlbench.contract.subject import DIM, build, fail, prepare
from mlbench.interfaces import LossEntry
from mlbench.metrics.neighbors import nearest
from mlbench.training.sampler import batch_sizes, epoch_batches

MARGIN = 0.15
"""By how much R@1 (a fraction) must rise."""

_CLASSES, _IMAGES = 8, 24
_SIGNAL, _NOISE = 4, 12
_BATCH, _EPOCHS = 32, 17
_LR = 0.01


def learns(entry: LossEntry) -> None:
    """Require that training a linear map on clustered points raises R@1 by 15 points.

    The classes differ in 4 of 16 coordinates; the 12 others are larger noise, which the map must
    learn to drop. R@1 is measured on points that were not trained on.
    """
    points, labels = _points()
    train, test = points[::2], points[1::2]
    loss, network = build(entry, classes=_CLASSES), nn.Linear(_SIGNAL + _NOISE, DIM, bias=False)
    before = _recall(network(test), labels[1::2])
    _train(entry, loss, network, train, labels[::2])
    after = _recall(network(test), labels[1::2])
    if not after >= before + MARGIN:
        fail(
            f"expected training on a toy problem to raise R@1 by {MARGIN} at least, it went from "
            f"{before:.2f} to {after:.2f}"
        )


def _points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(_CLASSES).repeat_interleave(2 * _IMAGES)
    means = torch.randn(_CLASSES, _SIGNAL, generator=generator)
    signal = means[labels] + 0.2 * torch.randn(len(labels), _SIGNAL, generator=generator)
    noise = torch.randn(len(labels), _NOISE, generator=generator)
    return torch.cat([signal, noise], dim=1), labels


def _train(
    entry: LossEntry, loss: nn.Module, network: nn.Module, points: Tensor, labels: Tensor
) -> None:
    groups: list[dict[str, object]] = [{"params": list(network.parameters()), "lr": _LR}]
    for name, parameter in loss.named_parameters():
        groups.append({"params": [parameter], "lr": entry.rate_of(name) or _LR})
    optimizer = torch.optim.Adam(groups)
    for indices in _batches(entry, labels):
        optimizer.zero_grad()
        loss(prepare(entry, network(points[indices])), labels[indices]).backward()
        optimizer.step()


def _batches(entry: LossEntry, labels: Tensor) -> Iterator[Tensor]:
    rng = np.random.default_rng(0)
    sizes = batch_sizes(len(labels), _BATCH, drop_last=True)
    for _ in range(_EPOCHS):
        for indices in epoch_batches(labels.numpy(), sizes, entry.images_per_class, rng):
            yield torch.from_numpy(indices)


@torch.no_grad()
def _recall(embeddings: Tensor, labels: Tensor) -> float:
    """Return R@1 by cosine, each point against all others."""
    found = torch.from_numpy(nearest(embeddings, embeddings, 1, exclude_self=True)[:, 0])
    return float((labels[found] == labels).float().mean())
