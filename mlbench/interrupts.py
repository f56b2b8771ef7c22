"""Ctrl-C and SIGTERM: stop where nothing is torn, and within seconds whatever is being computed."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 4.0
"""From the signal to the end of the process, if one long computation leaves no chance to stop."""

_NO_MORE = b"\0"

HOW_TO_CONTINUE = (
    "Stopped; what is finished is kept. The same command continues where this one stopped."
)


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop; what was under way is whole.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_code(stop: BaseException) -> int:
    """Return the exit code for what stopped the process: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)


class _Held:
    """How many blocks hold signals back, and the signal that waits for them to end."""

    def __init__(self) -> None:
        self.blocks = 0
        self.waiting: int | None = None

    def receive(self, signum: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.blocks:
            self.waiting = signum
        else:
            raise Interrupted(signum)


_held = _Held()


@contextmanager
def held() -> Iterator[None]:
    """Let a signal that comes within the block wait for its end, as Interrupted.

    Only where ``install`` handles signals; elsewhere Ctrl-C is Python's own.
    """
    _held.blocks += 1
    try:
        yield
    finally:
        _held.blocks -= 1
    if _held.waiting is not None and not _held.blocks:
        _held.receive(_held.waiting)


@contextmanager
def install() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM within the block into Interrupted, raised in the main thread.

    The process ends at once, with the exit code of the first signal, if the same signal comes a
    second time, or if the block has not ended ``GRACE_SECONDS`` after it. Signals that the process
    was started to ignore stay ignored. In another thread than the main one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    with _watched():
        before = {s: signal.signal(s, _held.receive) for s in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            _held.waiting = None


@contextmanager
def _watched() -> Iterator[None]:
    """Run a thread that learns of signals even while the main thread is in a long computation."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, _NO_MORE)
        thread.join()
        os.close(writing)
        os.close(reading)


def _watch(reading: int) -> None:
    """Wait for a signal, then end the process after the grace or when the signal is repeated."""
    first, deadline = b"", None
    while True:
        byte = _read(reading, deadline)
        if byte == _NO_MORE:
            return
        if byte in (b"", first):
            _end(first[0])
        if not first and byte[0] in SIGNALS:
            first, deadline = byte, time.monotonic() + GRACE_SECONDS


def _read(reading: int, deadline: float | None) -> bytes:
    """Read one byte, the number of a signal; none if the deadline passes first."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    ready, _, _ = select.select([reading], [], [], left)
    return os.read(reading, 1) if ready else b""


def _end(signum: int) -> None:
    # The cursor may be hidden behind a progress bar.
    cursor = "\x1b[?25h\n" if os.isatty(2) else ""
    os.write(2, f"{cursor}{HOW_TO_CONTINUE}\n".encode())
    os._exit(128 + signum)
