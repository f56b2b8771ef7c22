"""Where mlbench keeps what it can make again, and how it writes files: whole or not at all."""

import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlbench.errors import MlbenchError
from mlbench.system.machine import MachineError, system_error
from mlbench.system.regular import open_regular

_STALE_SECONDS = 24 * 3600
_OWNER = re.compile(
    r"^\..*\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]{1,20})-[0-9a-f]+\.tmp$", re.DOTALL
)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN_BYTES = 150


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
            "there is no home folder for the cache; set MLBENCH_CACHE to a folder that can "
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
        raise MlbenchError(f"no home folder for {path}; use the full path") from error
    check_path(full)
    return full


def check_path(path: Path) -> None:
    """Raise MlbenchError for a path that the file system does not take, such as one too long."""
    problem = None
    try:
        path.lstat()
    except ValueError:  # a NUL byte, or a character that cannot be encoded
        problem = "it contains a character that file names cannot contain"
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
            problem = error.strerror
    if problem:
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise MlbenchError(f"invalid file name {shown!r}: {problem}; choose another name")


@contextmanager
def atomic_file(path: Path, *, own_folder: bool = False) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; it takes its own when the block ends well.

    The content reaches the disk before the name does, so that a power cut leaves no empty file.
    The temporary name cannot be foreseen, and no link at it or at ``path`` is written through.

    Args:
        path: the file, replaced if it exists, untouched if the block raises; its folder is made.
        own_folder: whether its folder is one that mlbench makes itself; a link there is refused.

    Raises:
        MlbenchError: the file cannot be written.
    """
    temporary = f".{_shortened(path.name)}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        with _created(path.parent, temporary, own_folder) as (folder, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            _sync(folder)
    except (OSError, RuntimeError) as error:  # torch puts its own in front of the system's
        cause = system_error(error)
        if cause is None:
            raise
        raise MachineError(
            f"cannot write {path}: {cause.strerror or cause}; "
            "make room there or choose another folder"
        ) from error


@contextmanager
def _created(folder: Path, name: str, own: bool) -> Iterator[tuple[int, BinaryIO]]:
    """Make a folder, and in it a new file that is removed if it still has that name at the end.

    The folder is held open: what becomes of its name in the meantime leads nowhere else.
    """
    try:
        handle, file = _open_new(folder, name, own)
    except FileNotFoundError:  # another process has just removed the folder, as it was empty
        handle, file = _open_new(folder, name, own)
    try:
        with file:
            yield handle, file
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=handle)
        os.close(handle)


def _open_new(folder: Path, name: str, own: bool) -> tuple[int, BinaryIO]:
    if own and folder.is_symlink():
        raise LinkedFolderError(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale_once(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if own else 0))
    try:
        return handle, os.fdopen(os.open(name, _NEW, 0o666, dir_fd=handle), "wb")
    except BaseException:
        os.close(handle)
        raise


class LinkedFolderError(MlbenchError):
    """A link lies where mlbench would make a folder of its own, and could lead anywhere."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} is a link, and nothing is written through it; put a folder there, or choose "
            "another results folder"
        )


def _shortened(name: str) -> str:
    """Return the start of a name that leaves room for what makes it a temporary one."""
    return os.fsdecode(os.fsencode(name)[:_SHOWN_BYTES])


@functools.cache
def _remove_stale_once(folder: Path) -> None:
    # Once in a process: to look at every file for every file written would take minutes.
    remove_stale(folder)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in ``folder`` whose writers are dead or have been at it a day.

    What only looks like one, such as a folder of that name, is left alone.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _OWNER.search(entry.name)
            if owner is not None:
                with suppress(OSError):  # another writer has just removed it, or it is another's
                    if entry.is_file(follow_symlinks=False) and _is_over(entry, owner):
                        Path(entry.path).unlink()


def _is_over(entry: os.DirEntry[str], owner: re.Match[str]) -> bool:
    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
    return age > _STALE_SECONDS or _is_dead(owner)


def _is_dead(owner: re.Match[str]) -> bool:
    """Tell whether the writer was a process of this machine that is no more."""
    if owner["machine"] != _machine():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):  # another user's; or no process id at all
        return False
    return False


@functools.cache
def _machine() -> str:
    """Name what process ids belong to: the host since it was started, and its container.

    Names of hosts are not enough: machines made from one image share theirs.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    if len(parts) == 1:  # no such things here: the network card, or a number of this process alone
        parts.append(str(uuid.getnode()))
    return _short_digest(" ".join(parts))


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _sync(folder: int) -> None:
    """Make a rename in a folder survive a power cut, where the file system can."""
    with suppress(OSError):
        os.fsync(folder)


_MOST_BYTES = 1 << 40


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hex."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Return the digest of a file's bytes, in lower-case hex."""
    with open_regular(path, limit=_MOST_BYTES) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
