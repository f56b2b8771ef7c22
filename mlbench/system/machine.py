"""What the machine lacks, told apart from damaged files and from faults of mlbench."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from mlbench.errors import MlbenchError

_ROOM = "make room there or choose another folder"
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ROOM,
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or lower --jobs",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or lower --jobs",
    errno.ENFILE: "close other programs: the whole machine has too many open files",
    errno.ENOMEM: "close other programs: the machine has too little memory",
    errno.EIO: "check the disk or the network drive",
    errno.ESTALE: "check the network drive",
    errno.ETIMEDOUT: "check the network drive",
}


class MachineError(MlbenchError):
    """The machine lacks something; what was to be read or written may be sound."""


def lack(error: BaseException) -> MachineError | None:
    """Return what the machine lacks, if an error or one behind it says so; None if it does not.

    Libraries put errors of their own in front of the system's, as ``torch.save`` does for a full
    disk.
    """
    for each in _chain(error):
        if isinstance(each, MachineError):
            return each
        code = _code(each)
        if code is not None:
            filename = getattr(each, "filename", None)
            where = f"{filename}: " if filename else ""
            return MachineError(f"{where}{os.strerror(code)}; {_MENDS[code]}")
    return None


def _code(error: BaseException) -> int | None:
    """Return which of the known lacks an error is of, by its number or, in libraries, its words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _MENDS else None
    if not isinstance(error, OSError | RuntimeError):
        return None
    text = str(error)
    if "can't start new thread" in text:
        return errno.EAGAIN
    named = re.search(r"\(os error (\d+)\)", text)  # as safetensors says it
    if named:
        return int(named[1]) if int(named[1]) in _MENDS else None
    return next((code for code in _MENDS if os.strerror(code) in text), None)


def raise_lack(error: BaseException) -> None:
    """Raise MachineError if an error is of the machine; to be asked before a file counts as bad."""
    found = lack(error)
    if found is not None:
        raise found from error


def system_error(error: BaseException) -> OSError | None:
    """Return the first error of the operating system in ``error`` and those behind it."""
    return next((each for each in _chain(error) if isinstance(each, OSError)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
