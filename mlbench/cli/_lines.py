"""Progress as lines, where there is no terminal to draw on: logs, pipes, cluster jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 60.0
"""Between two lines of one phase."""


class ProgressLines:
    """Says a line as each phase begins, and then one every minute that it takes.

    Args:
        say: given each line.
        clock: of seconds.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._phases: dict[str, tuple[str, float]] = {}

    def show(self, where: str, text: str, done: int, total: int) -> None:
        """Take note of what is done; most calls say nothing.

        Args:
            where: the process that does it; "" for this one.
            text: what is being done; figures behind a comma change within a phase.
            done: of ``total``; both 0 where that is not known.
            total: to be done.
        """
        name = text.partition(",")[0]
        last, said = self._phases.get(where, ("", 0.0))
        now = self._clock()
        if name == last and now - said < _SECONDS:
            return
        self._phases[where] = name, now
        share = f" ({done / total:.0%})" if total else ""
        self._say(f"{text}{share} ..." if name == last else f"{name} ...")
