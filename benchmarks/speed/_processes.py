"""Loops that take turns, each in a process of its own with settings and memory of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from _measure import Seconds

from mlbench.system.process import VARIABLE

Loop = Callable[[], object]
Build = Callable[[], tuple[Loop, Loop]]


@dataclass(frozen=True)
class Process:
    """What runs in a process of its own.

    Attributes:
        build: makes the loop, and what is done before each of its turns, in the process.
        settings: whether the process has mlbench's settings (``mlbench.system.process``).
    """

    build: Build
    settings: bool = True


@dataclass
class Figures:
    """Of each loop, round by round: seconds of a turn, CPU seconds; and the peak memory, MB."""

    wall: Seconds = field(default_factory=dict)
    cpu: Seconds = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)


def take_turns(processes: Mapping[str, Process], rounds: int, *, warmup: int) -> Figures:
    """Have each loop make one turn a round, while the others wait.

    CPU time includes that of the loop's own processes, such as DataLoader workers.
    """
    figures = Figures({name: [] for name in processes}, {name: [] for name in processes})
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(_started(each)) for name, each in processes.items()}
        for number in range(warmup + rounds):
            for name, pipe in pipes.items():
                pipe.send(True)
                wall, cpu, figures.peak_mb[name] = pipe.recv()
                if number >= warmup:
                    figures.wall[name].append(wall)
                    figures.cpu[name].append(cpu)
    return figures


@contextmanager
def _started(process: Process) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, process.build))
    with _environment(process.settings):
        child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.join()


@contextmanager
def _environment(settings: bool) -> Iterator[None]:
    """Take mlbench's settings out of the environment that a process starts with, or leave them."""
    before = dict(os.environ)
    if not settings:
        os.environ.pop("GOMP_SPINCOUNT", None)
        os.environ[VARIABLE] = "0"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, build: Build) -> None:
    loop, before = build()
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        before()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        loop()
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        pipe.send((wall, cpu, peak))


def _cpu_seconds() -> float:
    ticks = os.sysconf("SC_CLK_TCK")
    workers = 0.0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        workers += (int(fields[11]) + int(fields[12])) / ticks
    return time.process_time() + workers
