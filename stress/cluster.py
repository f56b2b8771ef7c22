"""A Ray cluster of a head and two workers on this machine, one of which is killed in mid-run.

    python stress/cluster.py [--seeds 2] [--epochs 2]

Prints what ran where, what was made again, and whether the records are those of the local executor;
exits with code 1 if they are not, or if a finished run was repeated. Needs the extra ``ray``.

The cluster takes a token that is made for it and is known only to the processes started here.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.records.record import RunRecord
from mlbench.runs.executors.crew import Crew, Note, Phase
from mlbench.runs.executors.dispatch import run_all
from mlbench.runs.executors.local import Local
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.executors.ray import Ray
from mlbench.runs.outcomes import Outcome, label, with_baselines

SETTINGS = {
    "input.size": 16,
    "input.train_resize": 20,
    "input.test_resize": 20,
    "schedule.milestones": [],
    "evaluation.nmi_restarts": 1,
    "head.dim": 16,
}
LOSSES = ("softtriple", "softmax_norm", "npairs", "triplet")
WORKERS = ("a", "b")
T = TypeVar("T")


def ray_command() -> str:
    """Return the ``ray`` that belongs to this Python."""
    return str(Path(sys.executable).with_name("ray"))


@contextmanager
def node(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``ray start`` in the foreground; all of it ends with the block."""
    command = [ray_command(), "start", "--block", "--disable-usage-stats", *arguments]
    # On a busy machine a node takes longer than Ray waits for one.
    environment = {**os.environ, "RAY_raylet_start_wait_time_s": "240"}
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a node as a power cut would: the raylet and its workers, without a word."""
    for pid in descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(root: int) -> list[int]:
    """Return a process and all below it, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


@contextmanager
def cluster(ray: Any, log: Path) -> Iterator[dict[str, Worker]]:
    """Connect to a head without cores and two workers of one core each, all started here."""
    port = free_port()
    here = "--node-ip-address=127.0.0.1"
    own = f"--temp-dir={log.parent}"  # else its address would stay behind for other commands
    bare = ("--num-cpus=0", "--include-dashboard=false")
    with ExitStack() as stack:
        stack.enter_context(node(log, "--head", f"--port={port}", here, own, *bare))
        wait_for("the head", log, lambda: listens(port))
        address = f"127.0.0.1:{port}"
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        workers = {}
        for name in WORKERS:
            resource = f"worker_{name}"
            joining = (f"--address={address}", here, "--num-cpus=1", "--resources")
            process = stack.enter_context(node(log, *joining, f'{{"{resource}": 1}}'))
            (found,) = wait_for(resource, log, lambda name=resource: nodes_with(ray, name))
            workers[name] = Worker(process, found["NodeID"][:6])
        yield workers


def nodes_with(ray: Any, resource: str) -> list[dict[str, Any]]:
    """Return the nodes of the cluster that are up and have a resource."""
    return [n for n in ray.nodes() if n["Alive"] and resource in n["Resources"]]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether anybody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: str, log: Path, there: Callable[[], T]) -> T:
    """Ask until the answer is true and return it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        answer = there()
        if answer:
            return answer
        time.sleep(0.2)
    sys.exit(f"{what} of the cluster did not start:\n{log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Worker:
    """A node: what was started, and how the names of its processes call it."""

    process: subprocess.Popen[bytes]
    node_id: str


class Saboteur:
    """Kills worker b while it trains, once it has finished a run; hears of everything."""

    def __init__(self, victim: Worker, out: Path) -> None:
        self.victim, self.out = victim, out
        self.finished_there = 0
        self.interrupted = ""
        self.before: dict[Path, int] = {}
        self.notes: list[str] = []

    def listen(self, event: Phase | Note) -> None:
        """Hear what is being done."""
        if isinstance(event, Note):
            self.notes.append(event.text)
            return
        there = node_of(event.where) == self.victim.node_id
        if there and self.finished_there and not self.interrupted and "training" in event.phase:
            self.interrupted = event.run
            kill(self.victim.process)
            self.before = times(self.out)

    def finished(self, outcome: Outcome) -> None:
        """Hear of the end of a run."""
        self.finished_there += node_of(outcome.where) == self.victim.node_id


def node_of(where: str) -> str:
    """Return the node's part of ``host/node/process``."""
    return where.split("/")[1] if "/" in where else ""


def times(out: Path) -> dict[Path, int]:
    """Return when each record was written."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}


def run(plan: Plan, out: Path, crew: Crew, saboteur: Saboteur | None = None) -> list[Outcome]:
    """Make the plan's runs with a crew."""
    outcomes = []
    listen = saboteur.listen if saboteur else lambda _: None
    for outcome in run_all(plan, with_baselines(plan), out, crew, listen, "cpu"):
        outcomes.append(outcome)
        if saboteur:
            saboteur.finished(outcome)
    return outcomes


def facts(record: RunRecord) -> tuple[Any, ...]:
    """Return all of a record but its times and provenance."""
    curve = [(row.epoch, row.loss, row.score) for row in record.curve]
    parts = (record.spec, record.dataset, record.status, record.metrics, record.loss_report)
    return *parts, curve, record.queries_sha256


def report(here: list[Outcome], there: list[Outcome], names: dict[str, str]) -> bool:
    """Print the runs side by side; return whether all records are equal."""
    table = Table("run", "made on", "R@1 local", "R@1 ray", "record")
    local = {outcome.spec: outcome.record for outcome in here}
    equal = True
    for outcome in there:
        one, other = local[outcome.spec], outcome.record
        same = one is not None and other is not None and facts(one) == facts(other)
        equal &= same
        recalls = [f"{100 * r.metrics['R@1']:.2f}" if r else "failed" for r in (one, other)]
        worker = names.get(node_of(outcome.where), "?")
        table.add_row(label(outcome.spec), worker, *recalls, "equal" if same else "DIFFERENT")
    Console(width=100).print(table)
    return equal


def main() -> None:
    """Run the matrix on the cluster, kill a worker, compare with the local executor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # so that results are equal to the bit
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    settings = {**SETTINGS, "schedule.epochs": arguments.epochs}
    plan = make_plan(
        Request(losses=LOSSES, seeds=arguments.seeds, settings=tuple(settings.items()))
    )
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if compare(plan, Path(folder)) else 1)


def compare(plan: Plan, folder: Path) -> bool:
    """Make the plan's runs both ways; return whether nothing is wrong."""
    import ray  # reads the environment

    with cluster(ray, folder / "ray.log") as workers:
        saboteur = Saboteur(workers["b"], folder / "ray")
        crew = Ray(ExecutorOptions("ray"))
        there = run(plan, folder / "ray", crew, saboteur)
        crew.stop()
    crew = Local(2)
    here = run(plan, folder / "local", crew)
    crew.stop()
    equal = report(here, there, {w.node_id: f"worker {name}" for name, w in workers.items()})
    kept = saboteur.before == {
        p: t for p, t in times(folder / "ray").items() if p in saboteur.before
    }
    print(f"worker b was killed while it made: {saboteur.interrupted or 'NOTHING'}")
    print(f"finished before: {len(saboteur.before)} runs, their records untouched: {kept}")
    for note in saboteur.notes:
        print(note)
    names = [sorted(p.name for p in (folder / x).rglob("*-seed*")) for x in ("ray", "local")]
    print(f"files: {len(names[0])}, the same as of the local executor: {names[0] == names[1]}")
    again = any(note.startswith(f"{saboteur.interrupted}:") for note in saboteur.notes)
    return equal and kept and again and names[0] == names[1]


if __name__ == "__main__":
    main()
