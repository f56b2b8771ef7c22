"""What makes a process fast, set before torch is loaded: how memory and threads wait for work.

``import mlbench`` calls ``set_up``, and so does whatever imports a module of it: the command, a
script, a process of ``--jobs``, a task on a Ray worker.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

VARIABLE = "MLBENCH_PROCESS_SETTINGS"
"""Environment variable; ``0`` leaves the process as it is."""

_SPINS = "1000"
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")

_kept: ctypes.CDLL | None = None  # the C library, where freed memory is kept


def set_up() -> None:
    """Set this process and those that it starts up for training on a CPU.

    Torch's threads wait for each other by short spins (``GOMP_SPINCOUNT``), which has an effect
    where torch is not loaded yet. Where the C library is glibc, freed memory is kept for the next
    allocation. What the user has set is left alone, and all of it with ``VARIABLE`` at ``0``.
    """
    if os.environ.get(VARIABLE) == "0":
        return
    # OpenMP's threads wait by spinning and starve each other where anything else runs as well: on
    # two shared cores, training was 1.2 to 8.6 times as fast with short spins as with the default.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if _has_glibc() and not _users_malloc():
        _keep_freed_memory()


@contextmanager
def memory_released() -> Iterator[None]:
    """Give the memory that the block has freed back to the system, where ``set_up`` has it kept."""
    try:
        yield
    finally:
        if _kept is not None:
            _kept.malloc_trim(0)


def _has_glibc() -> bool:
    with suppress(AttributeError, ValueError, OSError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def _users_malloc() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name in os.environ for name in _USERS_OWN)


def _keep_freed_memory() -> None:
    # By default each large activation is mapped, page for page, when it is made, and unmapped when
    # it is freed: a quarter to a half of a training step on a CPU.
    global _kept
    with suppress(AttributeError, OSError):  # linked without it
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        _kept = library
