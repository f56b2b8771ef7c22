"""From pixels to a trained network."""

from typing import TYPE_CHECKING

from mlbench._lazy import lazy_names

if TYPE_CHECKING:
    from mlbench.training.device import resolve_device
    from mlbench.training.network import Embedder, Trunk, build_head
    from mlbench.training.trainer import Trainer

__all__ = [
    "Embedder",
    "Trainer",
    "Trunk",
    "build_head",
    "resolve_device",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Embedder": "network",
        "Trainer": "trainer",
        "Trunk": "network",
        "build_head": "network",
        "resolve_device": "device",
    },
)
