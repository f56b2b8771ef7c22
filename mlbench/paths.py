"""Where mlbench keeps what it can make again, and how it writes files: whole or not at all."""

import errno
import functools
import hashlib
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlbench.errors import MlbenchError

_STALE_SECONDS = 24 * 3600
_OWNER = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9]+\.tmp$")


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder of the cache: ``$MLBENCH_CACHE``, or the user's cache folder.

    Raises:
        MlbenchError: it cannot be made.
    """
    folder = Path(os.environ.get("MLBENCH_CACHE") or _users_cache(), *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MlbenchError(
            f"cannot make the cache folder {folder}: {error.strerror or error}; "
            "set MLBENCH_CACHE to a folder that can be written"
        ) from error
    return folder


def _users_cache() -> str:
    import platformdirs

    try:
        folder = platformdirs.user_cache_dir("mlbench")
    except RuntimeError:
        folder = "~"
    if folder.startswith("~"):  # what older versions give a user without a home folder
        raise MlbenchError(
            "there is no home folder to keep the cache in; set MLBENCH_CACHE to a folder that can "
            "be written"
        )
    return folder


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a user's path, a leading ``~`` or ``~USER`` replaced by that home folder.

    Raises:
        MlbenchError: there is no such user, or no home folder, or no file can have this name.
    """
    try:
        full = Path(path).expanduser()
    except RuntimeError as error:
        raise MlbenchError(f"no home folder for {path}; give the full path") from error
    check_path(full)
    return full


def check_path(path: Path) -> None:
    """Raise MlbenchError for a path that the file system does not take, such as one too long."""
    problem = None
    try:
        path.lstat()
    except ValueError:  # a NUL byte, or a character that cannot be encoded
        problem = "it holds a character that no file name can hold"
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            problem = error.strerror
    if problem:
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise MlbenchError(f"no file can be called {shown!r}: {problem}; choose another name")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; it takes its own when the block ends well.

    The content reaches the disk before the name does, so that a power cut leaves no empty file.

    Args:
        path: the file, replaced if it exists, untouched if the block raises; its folder is made.

    Raises:
        MlbenchError: the file cannot be written.
    """
    owner = f"{_machine()}-{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_once(path.parent)
        try:
            opened = temporary.open("wb")
        except FileNotFoundError:  # another process has just removed the folder, as it was empty
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = temporary.open("wb")
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MlbenchError(
            f"cannot write {path}: {error.strerror or error}; "
            "make room there or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@functools.cache
def _remove_stale_once(folder: Path) -> None:
    # Once in a process: to look at every file for every file written would take minutes.
    remove_stale(folder)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in ``folder`` whose writers are dead or have been at it a day."""
    for file in folder.glob(".*.tmp"):
        try:
            if _is_dead(file) or time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
        except FileNotFoundError:  # another writer has just removed it
            continue


def _is_dead(temporary: Path) -> bool:
    """Tell whether the writer was a process of this machine that is no more."""
    owner = _OWNER.search(temporary.name)
    if owner is None or owner["machine"] != _machine():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, but another user's; or no process id at all
        return False
    return False


@functools.cache
def _machine() -> str:
    """Name what process ids belong to: the host, and on Linux its container."""
    with suppress(OSError):
        return _short_digest(f"{platform.node()} {Path('/proc/self/ns/pid').stat().st_ino}")
    return _short_digest(platform.node())


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
