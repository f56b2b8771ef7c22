"""Ctrl-C and SIGTERM: stop where nothing is torn, and within seconds whatever is being computed."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 4.0
"""From the signal to the end of the process, if one long computation leaves no chance to stop."""

_AGAIN_SECONDS = 0.01
_NO_MORE = b"\0"

HOW_TO_CONTINUE = "Stopped. Finished runs are saved; re-run the same command to resume."


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
    """How many blocks hold signals back, and the first signal since they are handled."""

    def __init__(self) -> None:
        self.blocks = 0
        self.signum: int | None = None
        self.waiting = False

    def receive(self, signum: int, _frame: FrameType | None = None) -> None:
        """Handle a signal; the first is raised once, others would disturb the way out."""
        if self.signum is None:
            self.signum, self.waiting = signum, True
            self.deliver()

    def deliver(self, *_: object) -> None:
        """Raise the signal if it waits and nothing holds it back."""
        if self.waiting and self.signum is not None and not self.blocks:
            self.waiting = False
            raise Interrupted(self.signum)


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
    _held.deliver()


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
    _held.signum, _held.waiting = None, False
    with _watched(), _delivered_again():
        before = {s: signal.signal(s, _held.receive) for s in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def _delivered_again() -> Iterator[None]:
    """Raise Interrupted once more where it was lost: in finalisers and weak references' callbacks.

    Python reports what is raised there and goes on.
    """
    hook, handler = sys.unraisablehook, signal.signal(signal.SIGALRM, _held.deliver)

    def again(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Interrupted):
            _held.waiting = True
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            hook(lost)

    sys.unraisablehook = again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = hook


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


def leave() -> None:
    """End the process now if a signal had asked for it; to be called when all else is done.

    To take down the modules of torch in order can take Python many seconds.
    """
    if _held.signum is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + _held.signum)
