"""Hands the runs of a plan out to a crew, and collects their outcomes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import RunSpec
from mlbench.runs.executors.crew import Crew, Finished, Listen, Lost, Note, Phase, Site
from mlbench.runs.executors.maker import Inline
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.outcomes import Outcome, failed, label, open_plan
from mlbench.training.device import resolve_device

_POLL_SECONDS = 1.0


def open_crew(options: ExecutorOptions) -> Crew:
    """Return the crew that a user asked for; MlbenchError if it cannot be had."""
    if options.name == "ray":
        from mlbench.runs.executors.ray import Ray

        return Ray(options)
    if options.jobs > 1:
        from mlbench.runs.executors.local import Local

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
    ingredients, known = open_plan(plan, specs, out, own_device, progress)
    yield from known
    there = {outcome.spec for outcome in known}
    todo = [spec for spec in specs if spec not in there]
    if todo:
        crew.begin(ingredients, Site(plan.files, device, out.resolve(), out.resolve()))
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
                listen(Note(f"{label(event.spec)}: {_lost(event)}; repeating it", event.where))
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
    return failed(event.spec, out, f"{_lost(event)}, {times} times in total")
