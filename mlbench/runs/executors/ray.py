"""Runs as tasks of a Ray cluster, made again when their worker or node is lost.

The process that hands them out claims them and writes their records, so workers need the data and
mlbench, but not the results folder. Where they see it, runs keep their checkpoints there and go on
from them on another node.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlbench.errors import MlbenchError, not_installed
from mlbench.models import kept
from mlbench.recipes.spec import RunSpec
from mlbench.records import store
from mlbench.runs.claims import claim_file, run_claim
from mlbench.runs.executors.crew import Event, Finished, Lost, Note, Phase, Site
from mlbench.runs.executors.maker import Maker
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.outcomes import Outcome, failed, find_record, label
from mlbench.system.files import atomic_file
from mlbench.system.interrupts import SIGNALS, held, install
from mlbench.training import checkpoint

_WAIT_SECONDS = 0.3
_ANSWER_SECONDS = 5.0
# Less than the grace that interrupts.install leaves this process.
_STOP_SECONDS = 3.0
# A record never lacks its per-query results and its model: it comes last.
_SUFFIXES = (".npz", *kept.SUFFIXES, ".json")


@dataclass(frozen=True)
class _Delivery:
    """What a task returns: its outcome (None never, as nobody else claims) and its files."""

    outcome: Outcome
    files: dict[str, bytes]


@dataclass(frozen=True)
class _Task:
    """A run under way: its claim is held until it ends."""

    spec: RunSpec
    claim: ExitStack


class Ray:
    """Makes runs on a Ray cluster, as many at a time as its resources allow.

    Args:
        options: the cluster's address and what each run needs of it.
    """

    retries = 3
    remote = True
    free = True  # Ray queues what does not fit, and an autoscaler goes by the queue

    def __init__(self, options: ExecutorOptions) -> None:
        self.options = options
        self._ray = _import_ray()
        self._connected = False
        self._running: dict[Any, _Task] = {}
        self._news: list[Event] = []
        self._where: dict[str, str] = {}

    def begin(self, ingredients: Ingredients, site: Site) -> None:
        """Connect to the cluster, and take note of the plan."""
        if not self._connected:
            self._connect()
        self._ingredients, self._site = ingredients, site
        gpus = self.options.gpus_per_run
        if gpus is None:
            some = self._ray.cluster_resources().get("GPU", 0) > 0
            gpus = 1 if site.device == "cuda" or (some and site.device != "cpu") else 0
        # A worker that keeps its CUDA context, and its GPU's pixels, must not outlive its run.
        self._make = self._ray.remote(
            num_cpus=self.options.cpus_per_run,
            num_gpus=gpus,
            max_calls=1 if gpus else 0,
            max_retries=0,
        )(_make)
        self._tell_if_none_fits({"CPU": self.options.cpus_per_run, "GPU": gpus})

    def _connect(self) -> None:
        ray = self._ray
        self._own = not ray.is_initialized()
        if self._own:
            with _own_signal_handlers():
                _init(ray, self.options.address)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._connected = True

    def _tell_if_none_fits(self, wanted: dict[str, float]) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(has.get(k, 0) >= v for k, v in wanted.items()) for has in nodes):
            needs = ", ".join(f"{v:g} {k}" for k, v in wanted.items() if v)
            self._news.append(Note(f"no node of the cluster has {needs}: waiting for one"))

    @property
    def busy(self) -> bool:
        """Whether a run is under way or queued."""
        return bool(self._running or self._news)

    def start(self, spec: RunSpec) -> None:
        """Claim a run and queue it, unless another process has it or it is there."""
        claim = ExitStack()
        if not claim.enter_context(run_claim(self._site.out, spec)):
            self._news.append(Finished(spec, None))
            return
        known = find_record(spec, self._ingredients, self._site.out)
        if known is not None:
            claim.close()
            path = store.record_path(self._site.out, spec)
            self._news.append(Finished(spec, Outcome(spec, known, path, reused=True)))
            return
        threads = max(1, int(self.options.cpus_per_run))
        cache = os.environ.get("MLBENCH_CACHE")
        task = self._make.remote(spec, self._site, self._mailbox, threads, cache)
        self._running[task] = _Task(spec, claim)

    def events(self) -> list[Event]:
        """Wait a moment for news from the cluster."""
        news, self._news = self._news, []
        tasks = list(self._running)
        if tasks:
            ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=_WAIT_SECONDS)
            news += self._phases()
            news += [self._end(task) for task in ready]
        return news

    def _phases(self) -> list[Phase]:
        try:
            phases: list[Phase] = self._ray.get(self._mailbox.drain.remote(), timeout=1)
        except self._ray.exceptions.RayError:  # only the display would suffer
            return []
        self._where.update({phase.run: phase.where for phase in phases})
        return phases

    def _end(self, reference: Any) -> Event:
        """Fetch what a task returned, keep its files, give its claim back."""
        task = self._running.pop(reference)
        errors = self._ray.exceptions
        with task.claim:
            try:
                delivery: _Delivery = self._ray.get(reference)
            except errors.RayTaskError as error:  # raised by what came before the run itself
                problem = f"{type(error.cause).__name__} on a worker: {_last_line(error.cause)}"
                return Finished(task.spec, failed(task.spec, self._site.out, problem))
            except errors.RayError as error:
                where = self._where.get(label(task.spec), "")
                return Lost(task.spec, where, f"was lost ({type(error).__name__})")
            return Finished(task.spec, self._keep(task.spec, delivery))

    def _keep(self, spec: RunSpec, delivery: _Delivery) -> Outcome:
        path = store.record_path(self._site.out, spec)
        if path.suffix in delivery.files and path.exists():  # of other data, or damaged
            store.set_aside(path)
        if delivery.outcome.record is not None:
            kept.set_aside(path, delivery.outcome.record)
        for suffix in _SUFFIXES:
            if suffix in delivery.files:
                with atomic_file(path.with_suffix(suffix)) as file:
                    file.write(delivery.files[suffix])
        if delivery.outcome.record is not None:
            checkpoint.remove(self._site.out, spec)
        return replace(delivery.outcome, path=path)

    def stop(self) -> None:
        """Interrupt the runs under way, leave them a moment, disconnect."""
        if not self._connected:
            return
        with held():
            tasks = list(self._running)
            for task in tasks:
                self._ray.cancel(task, force=False)
            if tasks:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=_STOP_SECONDS)
            for task in self._running.values():
                task.claim.close()
            self._running = {}
            self._ray.kill(self._mailbox)
            if self._own:
                self._ray.shutdown()  # kills what still runs
            self._connected = False


def _import_ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ModuleNotFoundError as error:
        raise not_installed("--executor ray needs Ray", "ray") from error
    return ray


def _init(ray: Any, address: str) -> None:
    try:
        _check_answers(ray, address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MlbenchError(
            f"no Ray cluster at address '{address}' ({_last_line(error)}); start one with: "
            "ray start --head (docs/cluster.md)"
        ) from error


def _check_answers(ray: Any, address: str) -> None:
    """Raise ConnectionError where nobody listens: Ray itself would try for minutes.

    Where a cluster was killed, its address is still in the file that ``auto`` reads.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if "://" in address:  # of a proxy, which has its own time limit
        return
    try:
        find = ray._private.services.canonicalize_bootstrap_address
    except AttributeError:  # private: another version may lack it
        return
    found = find(address)
    if found is None:  # a cluster of its own
        return
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers at {found}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces with its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Mailbox:
    """The last phase of each worker, kept for the display: an actor beside the driver."""

    def __init__(self) -> None:
        self._last: dict[str, Phase] = {}

    def put(self, phase: Phase) -> None:
        self._last[phase.where] = phase

    def drain(self) -> list[Phase]:
        phases = list(self._last.values())
        self._last = {}
        return phases


@functools.cache
def _maker() -> Maker:
    """Return the one maker of this worker process."""
    import ray

    node = ray.get_runtime_context().get_node_id()[:6]
    return Maker(f"{socket.gethostname()}/{node}/{os.getpid()}", lambda _: None)


def _make(spec: RunSpec, site: Site, mailbox: Any, threads: int, cache: str | None) -> _Delivery:
    """Make a run in a worker process, in a folder that is gone afterwards."""
    torch.set_num_threads(threads)
    if cache is not None:  # a node may have one of its own
        os.environ.setdefault("MLBENCH_CACHE", cache)
    maker = _maker()
    maker.report = lambda phase: mailbox.put.remote(phase)
    shared = claim_file(site.out, spec).exists()
    with tempfile.TemporaryDirectory(prefix="mlbench-") as folder, install():
        out = Path(folder)
        here = replace(site, out=out, checkpoints=site.out if shared else out)
        outcome = maker.make(spec, here)
        assert outcome is not None  # nobody else knows of the folder
        return _Delivery(outcome, _files(store.record_path(out, spec)))


def _files(path: Path) -> dict[str, bytes]:
    files = {}
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            files[suffix] = path.with_suffix(suffix).read_bytes()
    return files
