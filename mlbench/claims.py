"""Who makes what, where several processes share a results folder or a cache.

A claim is a lock of the operating system on a small file. It ends with the process that holds it,
however that ends, so nothing has to be judged by its age. The files stay: to remove one that
others may be opening would let two of them hold it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mlbench.errors import MlbenchError
from mlbench.paths import LinkedFolderError, atomic_file, cache_dir
from mlbench.spec import RunSpec

_POLL_SECONDS = 0.2


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
    lock = _lock(path)
    mine = _acquire(lock, blocking=False)
    _keep_out_of_git(path.parent)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


@contextmanager
def built_once(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time build a file of the cache; who enters looks whether it is there.

    Args:
        path: the file; no other of the cache has its name.
        waiting: called once if another process is building it.

    Raises:
        MlbenchError: the folder's file system refuses locks.
    """
    lock = _lock(cache_dir("locks") / f"{path.name}.lock")
    if not _acquire(lock, blocking=False):
        waiting()
        _acquire(lock, blocking=True)
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    # Without flock the library would fall back on files that outlive their holder.
    return FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)


def _acquire(lock: FileLock, *, blocking: bool) -> bool:
    path = Path(lock.lock_file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=blocking)
    except Timeout:
        return False
    except OSError as error:
        raise MlbenchError(
            f"cannot lock {path}: {error.strerror or error}; choose a folder that can be written, "
            "on a file system with locks (NFS: mounted without nolock)"
        ) from error
    return True


def _keep_out_of_git(folder: Path) -> None:
    marker = folder / ".gitignore"
    if not os.path.lexists(marker):
        with suppress(MlbenchError), atomic_file(marker, own_folder=True) as file:
            file.write(b"*\n")
