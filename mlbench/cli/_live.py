"""Making runs in front of a person: live progress, a line for each finished run, Ctrl-C.

On a terminal, one bar counts the runs and others show what is under way. Anywhere else nothing is
drawn: each finished run is a line, and so is what is under way, every minute or so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from mlbench.cli._lines import ProgressLines
from mlbench.errors import printable
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.tracking import TrackerSpec, Tracking
from mlbench.system.interrupts import HOW_TO_CONTINUE, exit_code

if TYPE_CHECKING:
    from mlbench.recipes.plan import Plan
    from mlbench.recipes.spec import RunSpec
    from mlbench.records.record import RunRecord
    from mlbench.records.trials import SearchRange, Trial, Tuned
    from mlbench.runs.executors.crew import Crew, Note, Phase
    from mlbench.runs.outcomes import Outcome

_NARROW, _WIDE = 30, 72
"""Columns of a terminal with room for the time left, and for all there is to show."""

_PERIOD_SECONDS = 600.0
"""Over which rates are taken: a run may say nothing for minutes while it is evaluated."""

_TRAINING = "training "
"""What the phase of a run begins with in which it trains."""


class LiveRuns:
    """Makes runs with live progress on standard error, and one line for each finished run.

    Ctrl-C and SIGTERM say how to continue and exit with code 130 or 143.

    Args:
        out: the results folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: where the runs are made.
        quiet: show no progress and no finished runs.
        track: trackers to tell of the runs made.

    Attributes:
        failed: outcomes of the runs that could not be made, of all plans so far.
    """

    def __init__(
        self,
        out: Path,
        device: str,
        options: ExecutorOptions,
        *,
        quiet: bool = False,
        track: Sequence[TrackerSpec] = (),
    ) -> None:
        self.out, self.device, self.options, self.quiet = out, device, options, quiet
        self.tracking = Tracking(track, out)
        self.failed: list[Outcome] = []
        self._crew: Crew | None = None
        self._count: _Count | None = None
        self._tasks: dict[str, TaskID] = {}
        self.console = Console(stderr=True)
        self._wide = self.console.width >= _WIDE
        self._lines = None if self.console.is_terminal else ProgressLines(self._print)
        self.bars = Progress(
            *_columns(self.console.width),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
            speed_estimate_period=_PERIOD_SECONDS,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        if not self._lines:  # a wrong option is found only now, and is all there is to say then
            self._show("", "loading torch", "", 0, 0)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if self._crew is not None:
            self._crew.stop()
        self.bars.stop()
        if isinstance(error, KeyboardInterrupt):
            self._print(HOW_TO_CONTINUE, always=True)
            sys.exit(exit_code(error))

    def run(self, plan: Plan, *, baselines: bool) -> dict[Path, RunRecord]:
        """Make the plan's runs, after those of the baselines if asked for.

        Returns:
            the records by path, without those of the runs that failed.
        """
        from mlbench.runs.executors.dispatch import open_crew, run_all
        from mlbench.runs.outcomes import with_baselines

        if self._crew is None:
            self._crew = open_crew(self.options)
        specs = with_baselines(plan) if baselines else plan.runs()
        outcomes: list[Outcome] = []
        self._count = _Count(self.bars, specs, wide=self._wide)
        for outcome in run_all(plan, specs, self.out, self._crew, self._hear, self.device):
            outcomes.append(outcome)
            self._remove(outcome.where)
            self._count.finish(outcome)
            self._print(f"[{len(outcomes)}/{len(specs)}] {_line(outcome)}")
            if outcome.record is not None and not outcome.reused:
                self.tracking.log(outcome.path, outcome.record)
        self._count.remove()
        self.failed += [each for each in outcomes if each.record is None]
        return {each.path: each.record for each in outcomes if each.record is not None}

    def tune(self, plan: Plan, trials: int, ranges: Sequence[SearchRange] = ()) -> list[Tuned]:
        """Give every loss of the plan its trials; arguments as of ``runs.tune``."""
        from mlbench.registry import LOSSES
        from mlbench.runs.tune import tune
        from mlbench.training.device import resolve_device

        def report(trial: Trial, number: int, budget: int) -> None:
            label = trial.loss.label(LOSSES.get(trial.loss.name).defaults)
            result = "diverged" if trial.diverged else f"MAP@R {100 * trial.score:.1f}"
            self._print(f"[trial {number}/{budget}] {label}: {result}")

        device = resolve_device(self.device)
        return tune(plan, trials, self.out, device, self._report, report, ranges)

    def _report(self, phase: str, done: int, total: int) -> None:
        self._show("", phase, phase, done, total)

    def _hear(self, event: Phase | Note) -> None:
        from mlbench.runs.executors.crew import Note

        if isinstance(event, Note):
            self._remove(event.where)
            if self._count:
                self._count.stop(event.where)
            self._print(event.text)
            return
        if self._count:
            self._count.hear(event)
        if event.where:  # the runs are made elsewhere, so this process has nothing to show
            self._remove("")
        text = _said(event, wide=self._wide)
        self._show(event.where, text, event.phase, event.done, event.total)

    def _show(self, where: str, text: str, phase: str, done: int, total: int) -> None:
        if self._lines:
            self._lines.show(where, text, done, total)
            return
        if where not in self._tasks:
            self._tasks[where] = self.bars.add_task("")
        images = phase.startswith(_TRAINING) or "images" in phase
        self.bars.update(
            self._tasks[where],
            description=text,
            completed=done,
            total=total or None,
            images=images,
        )

    def _remove(self, where: str) -> None:
        """Take away the bar of a process that has nothing to show for now."""
        if where in self._tasks:
            self.bars.remove_task(self._tasks.pop(where))

    def _print(self, line: str, *, always: bool = False) -> None:
        if always or not self.quiet:
            self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class _Count:
    """The bar that counts runs. Its time left is that of the trainings, as baselines are quick.

    Args:
        bars: to add it to.
        specs: the runs.
        wide: whether there is room for all of the text.
    """

    def __init__(self, bars: Progress, specs: Sequence[RunSpec], *, wide: bool) -> None:
        self._bars, self._wide, self._runs = bars, wide, len(specs)
        self._done, self._failed, self._trained = 0, 0, 0
        self._under_way: dict[str, float] = {}
        trainings = sum(not _is_baseline(spec) for spec in specs)
        self._task = bars.add_task(self._text(), total=trainings or None)

    def hear(self, event: Phase) -> None:
        """Take note of what a process is doing."""
        if event.phase.startswith(_TRAINING) and event.total:
            self._under_way[event.where] = event.done / event.total
        elif event.run:
            self._under_way.setdefault(event.where, 0.0)
        self._update()

    def finish(self, outcome: Outcome) -> None:
        """Count a run that has ended."""
        self._done += 1
        self._failed += outcome.record is None
        self._trained += not _is_baseline(outcome.spec)
        self.stop(outcome.where)
        if outcome.reused:  # took no time, of which nothing follows for those to come
            self._bars.reset(self._task, completed=self._trained)

    def stop(self, where: str) -> None:
        """Take note that a process is doing nothing."""
        self._under_way.pop(where, None)
        self._update()

    def remove(self) -> None:
        """Take the bar away."""
        self._bars.remove_task(self._task)

    def _update(self) -> None:
        completed = self._trained + sum(self._under_way.values())
        self._bars.update(self._task, completed=completed, description=self._text())

    def _text(self) -> str:
        failed = f"{self._failed} failed" if self._failed else ""
        running = f"{len(self._under_way)} running" if self._under_way and self._wide else ""
        rest = ", ".join(part for part in (running, failed) if part)
        return f"runs {self._done}/{self._runs}{': ' if rest else ''}{rest}"


def _is_baseline(spec: RunSpec) -> bool:
    from mlbench.losses.baselines import BASELINES

    return spec.loss.name in BASELINES


def _said(event: Phase, *, wide: bool) -> str:
    """Return what is being done in a few words; a run's label names its loss already."""
    phase = event.phase.replace(f" {event.run.partition(' ')[0]}", "") if event.run else event.phase
    parts = (event.where if wide else "", event.run, phase)
    return ": ".join(part for part in parts if part)


class _Description(ProgressColumn):
    """What is being done, cut where it does not fit; figures beside it are never cut."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))  # so that it is the one to give way

    def render(self, task: Task) -> Text:
        """Return the description, which may hold anything, as one line."""
        return Text(printable(task.description), no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    """Images per second, of what counts images."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing where there is none."""
        known = task.fields.get("images") and task.speed
        return Text(f"{task.speed:.0f} img/s" if known else "")


def _columns(width: int) -> list[ProgressColumn]:
    """Return what fits a terminal of so many columns; texts give way first."""
    text = _Description()
    percent = TextColumn("{task.percentage:>3.0f}%")
    if width < _NARROW:
        return [text, percent]
    if width < _WIDE:
        return [text, percent, TimeRemainingColumn(compact=True)]
    bar = BarColumn(10 if width < 100 else 30)
    return [text, bar, _Rate(), TimeRemainingColumn(compact=True)]


def _line(outcome: Outcome) -> str:
    from mlbench.runs.outcomes import label

    record = outcome.record
    if record is None:
        return f"{label(outcome.spec)}: FAILED: {outcome.problem}"
    recall = 100 * record.metrics.get("R@1", 0.0)
    result = f"R@1 {recall:.1f}" if record.status == "ok" else record.status
    seconds = sum(record.cost.seconds.values())
    suffix = "already there" if outcome.reused else f"{seconds:.1f} s"
    where = f", {outcome.where}" if outcome.where else ""
    return f"{label(outcome.spec)}: {result} ({suffix}{where})"
