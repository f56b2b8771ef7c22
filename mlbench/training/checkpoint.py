"""Checkpoints within a run: what a killed process had done is not done again."""

from __future__ import annotations

import os
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mlbench.errors import MlbenchWarning
from mlbench.system.files import atomic_file, remove_stale
from mlbench.system.machine import raise_lack
from mlbench.system.regular import open_regular

if TYPE_CHECKING:
    from mlbench.recipes.spec import RunSpec

INTERVAL_SECONDS = 30.0
"""Of training between two checkpoints, so that short runs write none."""

_MOST_BYTES = 1 << 40
_MAX_SHARE = 0.05  # of the time, for writing checkpoints: those of large networks are rarer

CheckpointState = dict[str, Any]


class Checkpoints:
    """The last two checkpoints of one run, under ``OUT/.checkpoints``; each whole or not at all.

    Args:
        out: the results folder.
        spec: the run.
        identity: of whatever must be equal for a run to go on as if it had not been interrupted.
    """

    def __init__(self, out: Path, spec: RunSpec, identity: str) -> None:
        self._slots, self._identity = _slots(out, spec), identity
        self._newest = self._slots[1]
        self._next = time.monotonic() + INTERVAL_SECONDS

    def load(self) -> CheckpointState | None:
        """Return the newest state that is whole and of this identity; remove those that are not."""
        there = [slot for slot in self._slots if os.path.lexists(slot)]
        for slot in sorted(there, key=lambda slot: slot.lstat().st_mtime_ns, reverse=True):
            state = self._read(slot)
            if state is not None:
                self._newest = slot
                return state
            _discard(slot)
        return None

    def _read(self, slot: Path) -> CheckpointState | None:
        import torch

        try:
            with open_regular(slot, limit=_MOST_BYTES) as file:
                _check_sums(file)
                kept = torch.load(file, map_location="cpu", weights_only=True)
            return kept["state"] if kept["identity"] == self._identity else None
        except Exception as error:  # what damage makes zipfile and torch raise has no common type
            raise_lack(error)
            reason = " ".join(str(error).split())[:100]
            warnings.warn(
                f"checkpoint {slot} is damaged ({reason}); using an earlier one, or starting the "
                "run from the beginning",
                MlbenchWarning,
                stacklevel=2,
            )
            return None

    def due(self) -> bool:
        """Tell whether it is time for the next checkpoint."""
        return time.monotonic() >= self._next

    def save(self, state: CheckpointState) -> None:
        """Replace the older of the two checkpoints.

        Args:
            state: tensors and plain values.

        Raises:
            MlbenchError: it cannot be written.
        """
        import torch

        started = time.monotonic()
        slot = self._slots[1 if self._newest == self._slots[0] else 0]
        with atomic_file(slot, own_folder=True) as file:
            torch.save({"identity": self._identity, "state": state}, file)
        self._newest = slot
        now = time.monotonic()
        self._next = now + max(INTERVAL_SECONDS, (now - started) / _MAX_SHARE)


def remove(out: Path, spec: RunSpec) -> None:
    """Remove the checkpoints of a run that has its record."""
    slots = _slots(out, spec)
    folder = slots[0].parent
    if not folder.is_dir():
        return
    for slot in slots:
        _discard(slot)
    remove_stale(folder)
    with suppress(OSError):  # other runs have theirs in it
        folder.rmdir()


def _check_sums(file: BinaryIO) -> None:
    """Check what torch writes into its archives, and does not look at when it reads them."""
    with zipfile.ZipFile(file) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, which files of torch never are")
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"{damaged} does not match its checksum")
    file.seek(0)


def _discard(slot: Path) -> None:
    with suppress(OSError):  # gone already; or a folder, which is none of mlbench's
        slot.unlink()


def _slots(out: Path, spec: RunSpec) -> tuple[Path, Path]:
    folder = out / ".checkpoints"
    return folder / f"{spec.run_id}-1.pt", folder / f"{spec.run_id}-2.pt"
