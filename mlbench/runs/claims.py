"""Who makes what, where several processes share a results folder or a cache.

A claim is a lock of the operating system on a small file. It ends with the process that holds it,
however that ends, so nothing has to be judged by its age. The files stay: to remove one that
others may be opening would let two of them hold it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlbench.errors import MlbenchError
from mlbench.recipes.spec import RunSpec
from mlbench.system.files import LinkedFolderError, atomic_file
from mlbench.system.locks import acquire, open_lock


def claim_file(out: Path, spec: RunSpec) -> Path:
    """Return the file that whoever makes a run of the results folder ``out`` has locked."""
    return out / ".claims" / f"{spec.recipe.recipe_id}-{spec.run_id}.lock"


@contextmanager
def run_claim(out: Path, spec: RunSpec) -> Iterator[bool]:
    """Claim a run of the results folder ``out`` for the block.

    Yields:
        whether the run is the caller's; False if another process is making it just now.

    Raises:
        MlbenchError: the folder's file system refuses locks, or ``.claims`` is a link.
    """
    path = claim_file(out, spec)
    if path.parent.is_symlink():
        raise LinkedFolderError(path.parent)
    lock = open_lock(path)
    mine = acquire(lock, blocking=False)
    _keep_out_of_git(path.parent)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


def _keep_out_of_git(folder: Path) -> None:
    marker = folder / ".gitignore"
    if not os.path.lexists(marker):
        with suppress(MlbenchError), atomic_file(marker, own_folder=True) as file:
            file.write(b"*\n")
