"""One process builds a file of the cache, the others wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlbench.errors import MlbenchError
from mlbench.system.files import cache_dir

_POLL_SECONDS = 0.2


@contextmanager
def built_once(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time build a file of the cache; who enters looks whether it is there.

    Args:
        path: the file; no other of the cache has its name.
        waiting: called once if another process is building it.

    Raises:
        MlbenchError: the folder's file system refuses locks.
    """
    lock = open_lock(cache_dir("locks") / f"{path.name}.lock")
    if not acquire(lock, blocking=False):
        waiting()
        acquire(lock, blocking=True)
    try:
        yield
    finally:
        lock.release()


def open_lock(path: Path) -> FileLock:
    """Return the lock of a file, not yet acquired."""
    # Without flock the library would fall back on files that outlive their holder.
    return FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)


def acquire(lock: FileLock, *, blocking: bool) -> bool:
    """Acquire a lock; False if another process has it. MlbenchError if locks are refused."""
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
