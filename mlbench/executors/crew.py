"""Handing out runs, whoever makes them: claimed ones come last, lost ones are made again."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from mlbench.errors import MlbenchError
from mlbench.executors import ExecutorOptions
from mlbench.recipes.plan import Files, Plan
from mlbench.recipes.spec import Recipe, RunSpec
from mlbench.runs.ingredients import Laboratory
from mlbench.runs.outcomes import Outcome, attempt, failed, label, open_plan
from mlbench.training.device import resolve_device

_POLL_SECONDS = 1.0
_REPORT_SECONDS = 0.2


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

    def begin(self, lab: Laboratory, site: Site) -> None:
        """Take note of the plan of the runs to come; ``lab`` is this process's own."""
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


class Inline:
    """Makes each run in this process, when it is started."""

    retries = 0
    remote = False

    def __init__(self) -> None:
        self._finished: list[Event] = []

    def begin(self, lab: Laboratory, site: Site) -> None:
        """Take note of the plan."""
        self._lab, self._out = lab, site.out

    @property
    def free(self) -> bool:
        """Whether the last run's end was told of."""
        return not self._finished

    @property
    def busy(self) -> bool:
        """Whether it was not."""
        return bool(self._finished)

    def start(self, spec: RunSpec) -> None:
        """Make the run."""
        self._finished.append(Finished(spec, attempt(spec, self._lab, self._out)))

    def events(self) -> list[Event]:
        """Return what was finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def stop(self) -> None:
        """Do nothing: a run in this process ends with what interrupts it."""


class Maker:
    """Makes runs in a process of a crew; keeps the last plan's laboratory between them.

    Args:
        where: the name of this process.
        report: gets what is being done, a few times a second.
    """

    def __init__(self, where: str, report: Callable[[Phase], None]) -> None:
        self.where, self.report = where, report
        self._key: tuple[Recipe, Files, str] | None = None
        self._run, self._last = "", ("", 0.0)

    def make(self, spec: RunSpec, site: Site) -> Outcome | None:
        """Make a run as ``attempt`` does."""
        self._run = label(spec)
        self._progress("loading", 0, 0)
        try:
            lab = self._laboratory(spec.recipe, site)
            outcome = attempt(spec, lab, site.out, site.checkpoints)
        except MlbenchError as error:  # the device is not there
            outcome = failed(spec, site.out, str(error))
        return outcome and replace(outcome, where=self.where)

    def _laboratory(self, recipe: Recipe, site: Site) -> Laboratory:
        key = (recipe, site.files, site.device)
        if self._key != key:
            device = resolve_device(site.device)
            self._lab = Laboratory(recipe, site.files, device, self._progress)
            self._key = key
        return self._lab

    def _progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._last[0] != phase or now - self._last[1] > _REPORT_SECONDS:
            self._last = phase, now
            self.report(Phase(phase, done, total, self._run, self.where))


def open_crew(options: ExecutorOptions) -> Crew:
    """Return the crew that a user asked for; MlbenchError if it cannot be had."""
    if options.name == "ray":
        from mlbench.executors.ray import Ray

        return Ray(options)
    if options.jobs > 1:
        from mlbench.executors.local import Local

        return Local(options.jobs)
    return Inline()


def run_all(
    plan: Plan,
    specs: Sequence[RunSpec],
    out: Path,
    crew: Crew,
    listen: Listen,
    device: str = "auto",
) -> Iterator[Outcome]:
    """Let a crew make those of ``specs`` (of the plan's recipe) that have no record yet.

    Args:
        plan: of the runs.
        specs: the runs.
        out: the results folder, which other processes may share.
        crew: makes the runs.
        listen: told what is being done.
        device: to make them on: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        the outcomes of all runs: first those that are there, then each as it ends.

    Raises:
        MlbenchError: the data or the weights are not there or bad; before the first run.
    """

    def progress(phase: str, done: int, total: int) -> None:
        listen(Phase(phase, done, total))

    own_device = torch.device("cpu") if crew.remote else resolve_device(device)
    lab, known = open_plan(plan, specs, out, own_device, progress)
    yield from known
    there = {outcome.spec for outcome in known}
    todo = [spec for spec in specs if spec not in there]
    if todo:
        crew.begin(lab, Site(plan.files, device, out.resolve(), out.resolve()))
        yield from _hand_out(crew, todo, out, listen)


def _hand_out(crew: Crew, specs: Sequence[RunSpec], out: Path, listen: Listen) -> Iterator[Outcome]:
    """Have all runs made; those that other processes are making are asked for again at the end."""
    todo, claimed, losses = deque(specs), deque[RunSpec](), Counter[RunSpec]()
    asked = 0.0
    while todo or claimed or crew.busy:
        if claimed and not todo and time.monotonic() - asked > _POLL_SECONDS:
            asked = time.monotonic()
            todo, claimed = claimed, todo
        while todo and crew.free:
            crew.start(todo.popleft())
        for event in crew.events():
            if isinstance(event, Finished) and event.outcome:
                yield event.outcome
            elif isinstance(event, Finished):
                claimed.append(event.spec)
            elif not isinstance(event, Lost):
                listen(event)
            elif losses[event.spec] < crew.retries:
                losses[event.spec] += 1
                listen(Note(f"{label(event.spec)}: {_lost(event)}; made again", event.where))
                todo.append(event.spec)
            else:
                yield _given_up(event, losses[event.spec] + 1, out)
        if claimed and not todo and not crew.busy:
            listen(Phase(f"waiting for {len(claimed)} runs of another process", 0, 0))
            time.sleep(_POLL_SECONDS / 5)


def _lost(event: Lost) -> str:
    where = f" ({event.where})" if event.where else ""
    return f"its process{where} {event.reason}"


def _given_up(event: Lost, times: int, out: Path) -> Outcome:
    return failed(event.spec, out, f"{_lost(event)}, {times} times in all")
