"""Whole runs, training included, with recipes and losses at the edge of what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fuzz.driver import WrongSuccessError
from fuzz.mutations import Rng, pick
from PIL import Image

from mlbench import api
from mlbench.registry import LOSSES

_QUICK = {
    "input.size": 16,
    "input.train_resize": 20,
    "input.test_resize": 20,
    "schedule.epochs": 2,
    "schedule.milestones": [1],
    "batch.size": 16,
    "evaluation.nmi_restarts": 1,
    "head.dim": 8,
}
_RATES = (0.0, 1e-300, 1.0, 1e30, 3.4e38, 1e308)
_EDGES: dict[str, tuple[Any, ...]] = {
    "optimizer.name": ("adam", "adamw", "rmsprop", "sgd"),
    "optimizer.lr": _RATES,
    "optimizer.head_lr": _RATES,
    "optimizer.loss_lr": _RATES,
    "optimizer.eps": _RATES,
    "optimizer.weight_decay": _RATES,
    "schedule.decay": _RATES,
    "schedule.milestones": ([], [0], [1, 1], [5, 0]),
    "schedule.warmup": (0, 1, 99),
    "batch.size": (1, 2, 3, 23, 24, 10**9),
    "batch.drop_last": (True,),
    "head.dim": (1, 2, 300),
    "head.kind": ("relu-bn-linear",),
    "input.train_crop": ("random-resized",),
    "input.min_area": (1e-9,),
    "input.flip": (True,),
    "input.channels": ("bgr",),
    "backbone.trunk": ("frozen",),
    "backbone.bn_stats": ("frozen",),
    "data.holdout": (0.04, 0.5),
    "selection.rule": ("test-best",),
    "selection.patience": (1,),
    "evaluation.ks": ([1], [1, 10**9], [8, 1]),
}
_NUMBERS = {int: (0, 1, 2, 50, -1), float: (0.0, -1.0, 1e-30, 1e30, 1e308)}


def run(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Train and evaluate with up to three settings at the edge."""
    for value in range(24):
        folder = where / "photos" / f"c{value % 6}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(value).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{value}.png")
    loss = pick(rng, [entry for entry in LOSSES.entries() if not entry.prefix])
    settings: dict[str, Any] = dict(_QUICK)
    for _ in range(int(rng.integers(1, 4))):
        name = pick(rng, [*_EDGES, *(f"{loss.name}.{name}" for name in loss.defaults)])
        settings[name] = pick(rng, _values(name, loss.defaults))
    made = api.run(
        loss.name, dataset="folder:photos", data_root=where, settings=settings, device="cpu"
    )
    if (made.status == "ok") != bool(made.metrics) or not made.curve:
        raise WrongSuccessError(f"status {made.status} with metrics {made.metrics}")


def _values(name: str, defaults: Any) -> tuple[Any, ...]:
    if name in _EDGES:
        return _EDGES[name]
    default = defaults[name.partition(".")[2]]
    return _NUMBERS.get(type(default), (default,))
