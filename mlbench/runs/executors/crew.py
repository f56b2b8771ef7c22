"""Handing out runs, whoever makes them: claimed ones come last, lost ones are made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlbench.recipes.plan import Files
from mlbench.recipes.spec import RunSpec
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.outcomes import Outcome


@dataclass(frozen=True)
class Phase:
    """What is being done: ``done`` of ``total`` steps of ``phase``.

    Attributes:
        phase: in words.
        done: steps.
        total: steps; 0 if nobody knows.
        run: the run's label; "" for what serves all runs.
        where: the process or node; "" for this process.
    """

    phase: str
    done: int
    total: int
    run: str = ""
    where: str = ""


@dataclass(frozen=True)
class Note:
    """A line for the person who waits.

    Attributes:
        text: the line.
        where: the process or node that is no more; "" if none.
    """

    text: str
    where: str = ""


@dataclass(frozen=True)
class Finished:
    """A run's turn has ended; ``outcome`` is None if another process is making it just now."""

    spec: RunSpec
    outcome: Outcome | None


@dataclass(frozen=True)
class Lost:
    """Whoever made a run is no more."""

    spec: RunSpec
    where: str
    reason: str


Event = Phase | Note | Finished | Lost
Listen = Callable[[Phase | Note], None]


@dataclass(frozen=True)
class Site:
    """What runs of a plan need wherever they are made.

    Attributes:
        files: data and weights.
        device: ``auto``, ``cpu`` or ``cuda``, as the maker finds it.
        out: the results folder.
        checkpoints: the results folder in which checkpoints are kept.
    """

    files: Files
    device: str
    out: Path
    checkpoints: Path


class Crew(Protocol):
    """Makes runs, some at a time."""

    retries: int
    """How often a run is made again after its maker was lost."""

    remote: bool
    """Whether the runs are made on other machines than this."""

    def begin(self, ingredients: Ingredients, site: Site) -> None:
        """Take note of the plan of the runs to come; ``ingredients`` is this process's own."""
        ...

    @property
    def free(self) -> bool:
        """Whether another run may be started."""
        ...

    @property
    def busy(self) -> bool:
        """Whether anything is to come from ``events``."""
        ...

    def start(self, spec: RunSpec) -> None:
        """Begin a run."""
        ...

    def events(self) -> list[Event]:
        """Wait a moment for news and return them."""
        ...

    def stop(self) -> None:
        """Stop what is under way, within seconds, and leave no process behind."""
        ...
