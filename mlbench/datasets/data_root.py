"""Where data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from mlbench.errors import MlbenchError
from mlbench.system.files import cache_dir, expanded

ROOT_VARIABLE = "MLBENCH_DATA_ROOT"


def data_root(given: Path | None = None) -> Path:
    """Return the folder of data sets: ``given``, ``$MLBENCH_DATA_ROOT``, or one in the cache."""
    named = given or os.environ.get(ROOT_VARIABLE)
    return expanded(named) if named else cache_dir("datasets")


def find(name: str, given: Path | None, folder: str, markers: tuple[str, ...]) -> Path:
    """Return the folder of a data set: the data root itself, or ``folder`` in it.

    Args:
        name: of the data set, for messages.
        given: the data root; see ``data_root`` for what None means.
        folder: the data set's own folder in the data root.
        markers: what lies in it, as relative paths.

    Raises:
        MlbenchError: not all markers are in either of them.
    """
    root = data_root(given)
    for candidate in (root, root / folder):
        if all((candidate / marker).exists() for marker in markers):
            return candidate
    raise MlbenchError(
        f"{name}: no {' and '.join(markers)} in {root} or its {folder}; get it with 'mlbench data "
        f"fetch {name}', or specify the folder that contains it with --data-root DIR or in the "
        f"environment variable {ROOT_VARIABLE}"
    )
