"""mlbench: deep metric learning losses under one checked recipe, with honest statistics."""

from typing import TYPE_CHECKING

from mlbench._lazy import lazy_names
from mlbench._version import __version__
from mlbench.system.process import set_up

# Here, as whatever may load torch imports this first.
set_up()

if TYPE_CHECKING:
    from mlbench.api import (
        build_loss,
        list_losses,
        register_backbone,
        register_dataset,
        register_loss,
        run,
    )
    from mlbench.errors import MlbenchError
    from mlbench.metrics.evaluation import evaluate
    from mlbench.models.model import load_model
    from mlbench.records.record import RunRecord
    from mlbench.records.store import load_results

# Loaded at first use: importing mlbench must not import torch.
_HOME = {
    "MlbenchError": "errors",
    "RunRecord": "records.record",
    "build_loss": "api",
    "evaluate": "metrics",
    "list_losses": "api",
    "load_model": "models",
    "load_results": "records.store",
    "register_backbone": "api",
    "register_dataset": "api",
    "register_loss": "api",
    "run": "api",
}

__all__ = [
    "MlbenchError",
    "RunRecord",
    "__version__",
    "build_loss",
    "evaluate",
    "list_losses",
    "load_model",
    "load_results",
    "register_backbone",
    "register_dataset",
    "register_loss",
    "run",
]


__getattr__, _ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
