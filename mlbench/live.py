"""Making runs in front of a person: live progress, a line for each finished run, Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mlbench.config import Plan
    from mlbench.runner import Outcome
    from mlbench.tune import Trial, Tuned


class Matrix:
    """Makes runs with live progress on standard error, and one line for each finished run.

    Ctrl-C says how to continue and exits with code 130.
    """

    def __init__(self, out: Path, device: str) -> None:
        self.out, self.device = out, device
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        self.phase = self.bars.add_task("loading torch", total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bars.stop()
        if kind is KeyboardInterrupt:
            self.console.print("Stopped; finished runs are kept. The same command continues.")
            sys.exit(130)

    def run(self, plan: Plan, *, baselines: bool) -> list[Outcome]:
        """Make the plan's runs, after those of the baselines if asked for."""
        from mlbench.laboratory import resolve_device
        from mlbench.runner import run_all, with_baselines

        specs = with_baselines(plan) if baselines else plan.runs()
        matrix = self.bars.add_task(f"runs 0/{len(specs)}", total=len(specs))
        outcomes: list[Outcome] = []
        for outcome in run_all(plan, specs, self.out, resolve_device(self.device), self._report):
            outcomes.append(outcome)
            count = f"{len(outcomes)}/{len(specs)}"
            self.bars.update(matrix, advance=1, description=f"runs {count}")
            self.console.print(f"[{count}] {_line(outcome)}", markup=False, highlight=False)
        self.bars.remove_task(matrix)
        return outcomes

    def tune(self, plan: Plan, trials: int) -> list[Tuned]:
        """Give every loss of the plan its trials."""
        from mlbench.laboratory import resolve_device
        from mlbench.registry import LOSSES
        from mlbench.tune import tune

        def report(trial: Trial, number: int, budget: int) -> None:
            label = trial.loss.label(LOSSES.get(trial.loss.name).defaults)
            result = "diverged" if trial.diverged else f"MAP@R {100 * trial.score:.1f}"
            line = f"[trial {number}/{budget}] {label}: {result}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

        return tune(plan, trials, self.out, resolve_device(self.device), self._report, report)

    def _report(self, phase: str, done: int, total: int) -> None:
        self.bars.update(self.phase, description=phase, completed=done, total=total)


def _line(outcome: Outcome) -> str:
    record = outcome.record
    fold = "" if record.fold is None else f" fold {record.fold}"
    recall = 100 * record.metrics.get("R@1", 0.0)
    result = f"R@1 {recall:.1f}" if record.status == "ok" else record.status
    seconds = sum(record.cost.seconds.values())
    suffix = "already there" if outcome.reused else f"{seconds:.1f} s"
    return f"{record.loss} seed {record.seed}{fold}: {result} ({suffix})"
