"""Opening files that may come from strangers: regular files only, of a bounded size."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from mlbench.errors import MlbenchError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class IrregularFileError(MlbenchError):
    """A file that is not opened.

    Attributes:
        reason: why, without the path, such as "a named pipe, not a regular file".
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}; remove it or put a regular file there")


def open_regular(path: Path, *, limit: int) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading; never wait for a pipe or a device.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        IrregularFileError: it is a folder, pipe, socket or device, a link to one, or has more
            bytes; an MlbenchError.
        OSError: the system refuses it, as one that is missing or must not be read; also for a
            name that no file can have.
    """
    try:
        _check(path, path.stat(), limit)  # first: to open a device alone may do something
        handle = os.open(path, _FLAGS)
    except ValueError as error:  # a NUL byte, or a character that the file system cannot encode
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    try:
        _check(path, os.fstat(handle), limit)  # again: it may have been replaced since
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file; arguments and errors are those of ``open_regular``."""
    with open_regular(path, limit=limit) as file:
        content = file.read(limit + 1)  # it may have grown since it was opened
    _check_size(path, len(content), limit)
    return content


def is_regular(path: Path) -> bool:
    """Tell whether ``path`` leads to a regular file; False for one that cannot be looked at."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _check(path: Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "something else")
        raise IrregularFileError(path, f"{kind}, not a regular file")
    _check_size(path, status.st_size, limit)


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise IrregularFileError(path, f"more than {limit:,} bytes, the most that are read")
