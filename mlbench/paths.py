"""Where mlbench keeps what it can make again, and how it writes files: whole or not at all."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlbench.errors import MlbenchError

_STALE_SECONDS = 24 * 3600


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder of the cache: ``$MLBENCH_CACHE``, or the user's cache folder.

    Raises:
        MlbenchError: it cannot be made.
    """
    import platformdirs

    root = os.environ.get("MLBENCH_CACHE") or platformdirs.user_cache_dir("mlbench")
    folder = Path(root, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MlbenchError(
            f"cannot make the cache folder {folder}: {error.strerror or error}; "
            "set MLBENCH_CACHE to a folder that can be written"
        ) from error
    return folder


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; it takes its own when the block ends well.

    Args:
        path: the file, replaced if it exists, untouched if the block raises; its folder is made.

    Raises:
        MlbenchError: the file cannot be written.
    """
    owner = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise MlbenchError(
            f"cannot write {path}: {error.strerror or error}; "
            "make room there or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _remove_stale(folder: Path) -> None:
    """Remove what writers that were killed a day or more ago have left."""
    for file in folder.glob(".*.tmp"):
        try:
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
        except FileNotFoundError:  # another writer has just removed it
            continue
