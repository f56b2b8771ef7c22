"""Give inputs to their readers, one by one, and count what becomes of them."""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from mlbench.errors import MlbenchError, printable

LIMIT_SECONDS = 10
"""Of this process's computing, which does not depend on what else the machine does."""

_TIMERS = (
    (signal.SIGPROF, signal.ITIMER_PROF, LIMIT_SECONDS),
    (signal.SIGALRM, signal.ITIMER_REAL, 6 * LIMIT_SECONDS),
)


class WrongSuccessError(Exception):
    """An input that should have been refused was taken, or taken for another."""


class TooLong(BaseException):
    """An input was not dealt with in time. No ``except Exception`` may swallow it."""


Trial = Callable[[np.random.Generator, int, Path], None]
"""Makes input ``number`` and reads it, with an empty folder to work in; raises if it is refused."""


@dataclass(frozen=True)
class Failure:
    """An input that ended in anything but a valid result or one line."""

    kind: str
    number: int
    what: str


@dataclass
class Tally:
    """What became of the inputs of one kind."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[Failure] = field(default_factory=list)


def run_one(seed: int, kind: str, trial: Trial, number: int, folder: Path, tally: Tally) -> None:
    """Make and read one input; the same seed, kind and number give the same one."""
    rng = np.random.default_rng([seed, number, *kind.encode()])
    started, problem = time.process_time(), "refused without a word"
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial(rng, number, folder)
        outcome = "accepted"
    except MlbenchError as error:
        outcome = "refused" if printable(str(error)).strip() else "failed"
    except (Exception, TooLong) as error:
        outcome = "failed"
        problem = f"{type(error).__name__}: {error}\n{_last_lines(error)}"
    tally.counts[outcome] += 1
    tally.slowest = max(tally.slowest, time.process_time() - started)
    if outcome == "failed":
        tally.failures.append(Failure(kind, number, problem))


def _last_lines(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-3:])


@contextmanager
def _limited() -> Iterator[None]:
    """Stop the block after the limit of computing, or after six times as long of waiting."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooLong(f"more than {LIMIT_SECONDS} s")

    for signum, timer, seconds in _TIMERS:
        signal.signal(signum, stop)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for signum, timer, _ in _TIMERS:
            signal.setitimer(timer, 0)
            signal.signal(signum, signal.SIG_DFL)
