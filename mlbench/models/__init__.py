"""Trained networks: kept, loaded, searched, exported."""

from typing import TYPE_CHECKING

from mlbench._lazy import lazy_names

if TYPE_CHECKING:
    from mlbench.models.model import Model, load_model

__all__ = [
    "Model",
    "load_model",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Model": "model", "load_model": "model"},
)
