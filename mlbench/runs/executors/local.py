"""Runs in several processes of this machine, one of which may die without harm to the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from mlbench.recipes.spec import RunSpec
from mlbench.runs.executors.child import serve
from mlbench.runs.executors.crew import Event, Finished, Lost, Site
from mlbench.runs.ingredients import Ingredients
from mlbench.system.interrupts import held

_WAIT_SECONDS = 0.3
# Less than the grace that interrupts.install leaves this process.
_STOP_SECONDS = 3.0


class Local:
    """Makes up to ``jobs`` runs at a time, each in a process of its own.

    A process is started when it is first needed, serves one run after the other, and is replaced
    when it dies.
    """

    retries = 1
    remote = False

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._children: list[_Child] = []

    def begin(self, ingredients: Ingredients, site: Site) -> None:
        """Take note of the plan."""
        self._site = site
        self._gpus = visible_gpus() if ingredients.device.type == "cuda" else []

    @property
    def free(self) -> bool:
        """Whether a process has nothing to do, or another may be started."""
        return len(self._children) < self.jobs or any(c.spec is None for c in self._children)

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return any(child.spec is not None for child in self._children)

    def start(self, spec: RunSpec) -> None:
        """Give a run to a process that has none."""
        idle = [child for child in self._children if child.spec is None]
        child = idle[0] if idle else self._hire()
        child.begin(spec, self._site)

    def _hire(self) -> _Child:
        taken = {child.slot for child in self._children}
        slot = min(set(range(self.jobs)) - taken)
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        self._children.append(_Child(slot, threads_per_job(self.jobs), gpu))
        return self._children[-1]

    def events(self) -> list[Event]:
        """Wait a moment for news from the processes."""
        busy = [child for child in self._children if child.spec is not None]
        ready = wait([child.pipe for child in busy], _WAIT_SECONDS) if busy else []
        events = [child.hear() for child in busy if child.pipe in ready]
        self._children = [child for child in self._children if not child.dead]
        return events

    def stop(self) -> None:
        """Ask the processes to stop where nothing is torn; kill those that take long."""
        with held():
            for child in self._children:
                child.process.terminate()
            deadline = time.monotonic() + _STOP_SECONDS
            for child in self._children:
                child.process.join(max(0.0, deadline - time.monotonic()))
                child.process.kill()
                child.process.join()
            self._children = []


class _Child:
    """A process that makes runs, as the one that started it sees it."""

    def __init__(self, slot: int, threads: int, gpu: str | None) -> None:
        self.slot, self.name = slot, f"process {slot + 1}"
        self.spec: RunSpec | None = None
        self.dead = False
        # Spawned, not forked: a fork would share CUDA, threads and the terminal's display.
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.name, threads, gpu)
        self.process: BaseProcess = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, spec: RunSpec, site: Site) -> None:
        self.spec = spec
        with suppress(OSError):  # it has died; hear() will tell
            self.pipe.send((spec, site))

    def hear(self) -> Event:
        """Return the next message; Lost if there will be none."""
        spec = self.spec
        assert spec is not None
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.dead = True
            self.process.join()
            return Lost(spec, self.name, _reason(self.process.exitcode))
        if isinstance(message, Finished):
            self.spec = None
            self.dead = bool(message.outcome and message.outcome.device_lost)
        return message


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (", perhaps for lack of memory" if code == -9 else "")
    return f"ended with code {code}"


def threads_per_job(jobs: int) -> int:
    """Return the threads of each process: ``OMP_NUM_THREADS``, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // jobs)


def visible_gpus() -> list[str]:
    """Return what ``CUDA_VISIBLE_DEVICES`` calls the GPUs that this process sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        names = (name.strip() for name in given.split(","))
        # CUDA hides what follows the first number below zero.
        return [*takewhile(lambda name: name and not name.startswith("-"), names)]
    return [str(i) for i in range(torch.cuda.device_count())]
