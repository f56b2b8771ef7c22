"""The files of a trained network, and whose they are."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mlbench.backbones.weights import StateDict
from mlbench.errors import MlbenchError
from mlbench.recipes.spec import digest
from mlbench.records.record import RunRecord
from mlbench.system.machine import raise_lack
from mlbench.system.regular import is_regular

SUFFIXES = (".safetensors", ".embeddings.npy")
"""Of the files of a kept model, which have the stem of its record."""


def plain(state: StateDict) -> StateDict:
    """Return the tensors on the CPU, contiguous and each with memory of its own."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def model_metadata(record: RunRecord) -> dict[str, str]:
    """Return what a model's file says of its run."""
    return {"mlbench": json.dumps({"format": 1, "result": result_id(record)})}


def result_id(record: RunRecord) -> str:
    """Identify a run and what came out of it, so that a model of another outcome is told apart."""
    made_of = [record.spec.run_id, record.dataset.fingerprint, record.loss_source]
    return digest([*made_of, record.weights_id, record.metrics])


def is_kept(path: Path, record: RunRecord) -> bool:
    """Tell whether the model of a record lies beside it."""
    there = path.with_suffix(SUFFIXES[1]).is_file()
    return there and kept_result(path.with_suffix(SUFFIXES[0])) == result_id(record)


def has_none(record: RunRecord) -> bool:
    """Tell whether a run has no network that could be kept, as it diverged."""
    return record.status != "ok"


def kept_result(model: Path) -> str | None:
    """Read of which result a model is; None if there is no file or it is damaged."""
    if not is_regular(model):  # safetensors would wait for a pipe
        return None
    try:
        with safe_open(model, framework="pt") as file:
            return json.loads(file.metadata()["mlbench"])["result"]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise_lack(error)
        return None


def set_aside(path: Path, record: RunRecord) -> None:
    """Rename the model beside the record at ``path`` (``.outdated``), unless it is of ``record``.

    Raises:
        MlbenchError: it cannot be renamed.
    """
    if is_kept(path, record):
        return
    for old in (path.with_suffix(suffix) for suffix in SUFFIXES):
        try:
            with suppress(FileNotFoundError):
                old.replace(old.with_name(f"{old.name}.outdated"))
        except OSError as error:
            raise MlbenchError(f"cannot rename {old}: {error.strerror or error}") from error
