"""Making runs in front of a person: live progress, a line for each finished run, Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mlbench.errors import printable
from mlbench.executors import ExecutorOptions
from mlbench.interrupts import HOW_TO_CONTINUE, exit_code

if TYPE_CHECKING:
    from mlbench.cells import Outcome
    from mlbench.config import Plan
    from mlbench.executors.crew import Crew, Note, Phase
    from mlbench.record import RunRecord
    from mlbench.tune import Trial, Tuned


class Matrix:
    """Makes runs with live progress on standard error, and one line for each finished run.

    Ctrl-C and SIGTERM say how to continue and exit with code 130 or 143.

    Args:
        out: the results folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        options: where the runs are made.

    Attributes:
        failed: outcomes of the runs that could not be made, of all plans so far.
    """

    def __init__(self, out: Path, device: str, options: ExecutorOptions) -> None:
        self.out, self.device, self.options = out, device, options
        self.failed: list[Outcome] = []
        self._crew: Crew | None = None
        self._tasks: dict[str, TaskID] = {}
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        self._tasks[""] = self.bars.add_task("loading torch", total=None)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if self._crew is not None:
            self._crew.stop()
        self.bars.stop()
        if isinstance(error, KeyboardInterrupt):
            self._print(HOW_TO_CONTINUE)
            sys.exit(exit_code(error))

    def run(self, plan: Plan, *, baselines: bool) -> dict[Path, RunRecord]:
        """Make the plan's runs, after those of the baselines if asked for.

        Returns:
            the records by path, without those of the runs that failed.
        """
        from mlbench.cells import with_baselines
        from mlbench.executors.crew import open_crew, run_all

        if self._crew is None:
            self._crew = open_crew(self.options)
        specs = with_baselines(plan) if baselines else plan.runs()
        matrix = self.bars.add_task(f"runs 0/{len(specs)}", total=len(specs))
        outcomes: list[Outcome] = []
        for outcome in run_all(plan, specs, self.out, self._crew, self._hear, self.device):
            outcomes.append(outcome)
            self._remove(outcome.where)
            count = f"{len(outcomes)}/{len(specs)}"
            self.bars.update(matrix, advance=1, description=f"runs {count}")
            self._print(f"[{count}] {_line(outcome)}")
        self.bars.remove_task(matrix)
        self.failed += [each for each in outcomes if each.record is None]
        return {each.path: each.record for each in outcomes if each.record is not None}

    def tune(self, plan: Plan, trials: int) -> list[Tuned]:
        """Give every loss of the plan its trials."""
        from mlbench.laboratory import resolve_device
        from mlbench.registry import LOSSES
        from mlbench.tune import tune

        def report(trial: Trial, number: int, budget: int) -> None:
            label = trial.loss.label(LOSSES.get(trial.loss.name).defaults)
            result = "diverged" if trial.diverged else f"MAP@R {100 * trial.score:.1f}"
            self._print(f"[trial {number}/{budget}] {label}: {result}")

        return tune(plan, trials, self.out, resolve_device(self.device), self._report, report)

    def _report(self, phase: str, done: int, total: int) -> None:
        self.bars.update(self._tasks[""], description=phase, completed=done, total=total or None)

    def _hear(self, event: Phase | Note) -> None:
        from mlbench.executors.crew import Note

        if isinstance(event, Note):
            self._remove(event.where)
            self._print(event.text)
            return
        if event.where not in self._tasks:
            self._tasks[event.where] = self.bars.add_task("")
        parts = (event.where, event.run, event.phase)
        self.bars.update(
            self._tasks[event.where],
            description=": ".join(part for part in parts if part),
            completed=event.done,
            total=event.total or None,
        )

    def _remove(self, where: str) -> None:
        """Take away the bar of a process that has nothing to show for now."""
        if where and where in self._tasks:
            self.bars.remove_task(self._tasks.pop(where))

    def _print(self, line: str) -> None:
        self.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _line(outcome: Outcome) -> str:
    from mlbench.cells import label

    record = outcome.record
    if record is None:
        return f"{label(outcome.spec)}: FAILED: {outcome.problem}"
    recall = 100 * record.metrics.get("R@1", 0.0)
    result = f"R@1 {recall:.1f}" if record.status == "ok" else record.status
    seconds = sum(record.cost.seconds.values())
    suffix = "already there" if outcome.reused else f"{seconds:.1f} s"
    where = f", {outcome.where}" if outcome.where else ""
    return f"{label(outcome.spec)}: {result} ({suffix}{where})"
