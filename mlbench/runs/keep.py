"""Write the network of a run beside its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.models.kept import SUFFIXES, StateDict, model_metadata, plain, set_aside
from mlbench.records.record import RunRecord
from mlbench.system.files import atomic_file

if TYPE_CHECKING:
    from mlbench.runs.ingredients import Ingredients
    from mlbench.training.network import Embedder


def keep(
    path: Path,
    ingredients: Ingredients,
    record: RunRecord,
    network: Embedder,
    loss: nn.Module | None,
    embeddings: Tensor,
) -> None:
    """Write a run's model beside its record.

    A trained network is that of the selected epoch; the loss's own parameters are those of the last
    one.

    Args:
        path: of the record.
        ingredients: in which the run was made.
        record: of the run.
        network: of the run; without its trunk where that is not trained.
        loss: of the run; None of a baseline.
        embeddings: ``(Q, D)`` of the test images; below them those of a gallery, which are not
            kept.

    Raises:
        MlbenchError: a file cannot be written.
    """
    set_aside(path, record)
    model, vectors = (path.with_suffix(suffix) for suffix in SUFFIXES)
    with atomic_file(vectors, own_folder=True) as file:
        unit = F.normalize(embeddings[: len(ingredients.dataset.test)])
        np.save(file, unit.half().numpy(), allow_pickle=False)
    content = safetensors.torch.save(
        _kept_state(ingredients, record, network, loss), model_metadata(record)
    )
    with atomic_file(model, own_folder=True) as file:
        file.write(content)


def _kept_state(
    ingredients: Ingredients, record: RunRecord, network: Embedder, loss: nn.Module | None
) -> StateDict:
    state = network.state_dict()
    if isinstance(network.trunk, nn.Identity) and record.weights_id == "none":
        trunk = ingredients.trunk(record.seed)[0]
        state |= {f"trunk.{name}": value for name, value in trunk.state_dict().items()}
    if loss is not None:
        state |= {f"loss.{name}": value for name, value in loss.state_dict().items()}
    return plain(state)
