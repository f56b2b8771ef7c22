"""What the machine lacks, told apart from damaged files and from faults of mlbench."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from mlbench.errors import MlbenchError

_ROOM = "make room there or choose another folder"
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _ROOM,
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
        if isinstance(each, OSError) and each.errno in _MENDS:
            where = f"{each.filename}: " if each.filename else ""
            reason = each.strerror or errno.errorcode[each.errno]
            return MachineError(f"{where}{reason}; {_MENDS[each.errno]}")
    return None


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
