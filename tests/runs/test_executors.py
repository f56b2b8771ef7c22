import itertools
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.settings import QUICK

from mlbench.cli import main
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.runs import outcomes as outcomes_module
from mlbench.runs.executors.crew import Crew, Finished, Note, Phase
from mlbench.runs.executors.dispatch import run_all
from mlbench.runs.executors.local import Local, _Child, threads_per_job, visible_gpus
from mlbench.runs.executors.maker import Inline
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.outcomes import Outcome, failed, label, with_baselines

SET = [f"--set={key}={value}" for key, value in QUICK.items()]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal threads make equal results to the bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def pair() -> Iterator[Local]:
    """Two processes for all tests: each takes seconds to load torch."""
    crew = Local(2)
    yield crew
    crew.stop()
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with a token of its own, which it reads once; else it would keep one in the home."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield pytest.importorskip("ray")


def plan_of(photos: Path, *losses: str, seeds: int = 1, epochs: int = 2) -> Plan:
    settings = {**QUICK, "schedule.epochs": epochs}
    request = Request(
        losses=losses, dataset=f"folder:{photos}", seeds=seeds, settings=tuple(settings.items())
    )
    return make_plan(request)


def run(
    plan: Plan, out: Path, crew: Crew, listen: Callable[[Phase | Note], None] = lambda _: None
) -> list[Outcome]:
    return list(run_all(plan, with_baselines(plan), out, crew, listen, "cpu"))


def test_baselines_asked_for_alone_run_alone(photos: Path) -> None:
    alone = plan_of(photos, "features", "pca", seeds=2)
    assert with_baselines(alone) == alone.runs()
    both = plan_of(photos, "triplet", "pca", seeds=2)
    names = [spec.loss.name for spec in with_baselines(both)]
    assert names == [name for name in ("untrained", "features", "pca", "triplet") for _ in range(2)]


def results(outcomes: list[Outcome]) -> dict[str, tuple[Any, ...]]:
    """All that a record says apart from times and where it was made."""
    return {label(o.spec): facts(o.record) for o in outcomes if o.record}


def facts(r: RunRecord) -> tuple[Any, ...]:
    curve = [(row.epoch, row.loss, row.score) for row in r.curve]
    return r.spec, r.dataset, r.status, r.metrics, r.loss_report, curve, r.queries_sha256


def test_results_do_not_depend_on_the_number_of_processes(
    photos: Path, tmp_path: Path, pair: Local
) -> None:
    plan = plan_of(photos, "softtriple", "npairs")
    alone = run(plan, tmp_path / "alone", Inline())
    phases: list[Phase | Note] = []
    both = run(plan, tmp_path / "both", pair, phases.append)
    assert len(results(alone)) == 5
    assert results(alone) == results(both)
    assert {o.where for o in both} == {"process 1", "process 2"}
    assert {p.where for p in phases if isinstance(p, Phase)} >= {"process 1", "process 2"}
    names = [sorted(p.name for p in (tmp_path / x).rglob("*-seed*")) for x in ("alone", "both")]
    assert names[0] == names[1]
    assert all(o.reused for o in run(plan, tmp_path / "both", Inline()))


def test_a_run_asked_for_twice_at_a_time_is_made_once(
    photos: Path, tmp_path: Path, pair: Local
) -> None:
    plan = plan_of(photos, "softtriple")
    specs = plan.runs() * 2
    outcomes = list(run_all(plan, specs, tmp_path / "out", pair, lambda _: None, "cpu"))
    assert sorted(o.reused for o in outcomes) == [False, True]


def test_the_run_of_a_killed_process_is_made_again(
    photos: Path, tmp_path: Path, pair: Local
) -> None:
    notes: list[str] = []
    killed: list[str] = []

    def listen(event: Phase | Note) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        elif event.where == "process 1" and not killed:
            killed.append(event.run)
            os.kill(child("process 1", pair), signal.SIGKILL)

    outcomes = run(plan_of(photos, "softtriple"), tmp_path / "out", pair, listen)
    assert len(results(outcomes)) == 4
    assert len(notes) == 1
    assert notes[0].startswith(f"{killed[0]}: its process (process 1) was killed by SIGKILL")


def child(name: str, crew: Local) -> int:
    (pid,) = [c.process.pid for c in crew._children if c.name == name]
    assert pid is not None
    return pid


def test_a_run_that_kills_every_process_is_given_up(
    photos: Path, tmp_path: Path, pair: Local
) -> None:
    plan = plan_of(photos, "softtriple")

    def listen(event: Phase | Note) -> None:
        if isinstance(event, Phase) and event.run:
            os.kill(child(event.where, pair), signal.SIGKILL)

    (outcome,) = run_all(plan, plan.runs(), tmp_path / "out", pair, listen, "cpu")
    assert outcome.record is None
    assert "was killed by SIGKILL, perhaps for lack of memory, 2 times in total" in outcome.problem
    assert not list((tmp_path / "out").rglob("*.json"))


def mlbench(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.cuda.OutOfMemoryError("tried to allocate"), "--set batch.size=8"),
        (MemoryError(), "out of memory with batch.size 16 and input.size 16"),
        (RuntimeError("x [enforce fail at alloc_cpu.cpp:117] y"), "--set batch.size=8"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "--set batch.size=8"),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), "--set batch.size=8"),
        (RuntimeError("CUDA error: out of memory"), "--set batch.size=8"),
        (KeyError("centres"), "KeyError: 'centres' (a bug in mlbench or a plugin"),
    ],
)
def test_a_failing_run_does_not_stop_the_others(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    from mlbench.runs import outcomes as cells

    whole = cells.run_one

    def fails(spec: Any, *rest: Any) -> Any:
        if spec.loss.name == "npairs":
            raise error
        return whole(spec, *rest)

    monkeypatch.setattr(cells, "run_one", fails)
    arguments = ("--dataset", f"folder:{photos}", "--out", tmp_path / "out", *SET)
    result = mlbench("run", *arguments, "--losses", "npairs,triplet")
    assert result.exit_code == 1
    assert "triplet" in result.stdout
    assert "npairs" not in result.stdout
    assert result.stderr.count(message) == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("FAILED npairs seed 0: ")
    assert "Traceback" not in result.stderr

    monkeypatch.setattr(cells, "run_one", whole)
    again = mlbench("run", *arguments, "--losses", "npairs,triplet")
    assert again.exit_code == 0
    assert again.stderr.count("already there") == 4


def test_sigterm_ends_the_processes_too(photos: Path, tmp_path: Path) -> None:
    long = ["--set=schedule.epochs=100000", "--losses=npairs,triplet", "--jobs=2"]
    command = [sys.executable, "-m", "mlbench", "run", f"--dataset=folder:{photos}"]
    started = subprocess.Popen(
        [*command, f"--out={tmp_path / 'out'}", *SET, *long],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert started.stderr is not None
        counted = (line for line in started.stderr if line.startswith("["))
        lines = list(itertools.islice(counted, 3))
        assert lines[-1].startswith("[3/5]")
        signalled = time.monotonic()
        started.terminate()
        rest = started.communicate(timeout=20)[1]
        assert time.monotonic() - signalled < 8  # of which Python takes seconds to clear torch away
        assert started.returncode == 143
        assert "re-run the same command to resume" in rest
        assert "Traceback" not in rest
        assert_gone(started.pid)
    finally:
        started.kill()
        started.wait()


def assert_gone(group: int) -> None:
    """Multiprocessing's own tracker of resources ends a moment after its parent."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("processes were left behind")


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert [threads_per_job(jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_job(8) == 3


def test_gpus_are_called_what_cuda_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    assert visible_gpus() == ["3", "GPU-abc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "auto"], "--address requires --executor ray"),
        (["--executor", "ray", "--jobs", "2"], "--jobs requires --executor local"),
    ],
)
def test_options_of_the_other_executor_are_refused(arguments: list[str], message: str) -> None:
    result = mlbench("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("address", "problem"),
    [("127.0.0.1:1", "nobody answers at "), ("anywhere", "Invalid address format: anywhere")],
)
def test_a_ray_cluster_that_is_gone_is_not_waited_for(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, problem: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)  # auto takes it, as it takes what a head left behind
    result = mlbench("run", "--executor", "ray", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert f"no Ray cluster at address 'auto' ({problem}" in result.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_a_proxy_named_by_the_environment_is_left_to_ray(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    asked: list[str] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    from mlbench.runs.executors.ray import _init

    _init(ray, "auto")
    assert asked == ["auto"]


@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_same_records_and_a_lost_run_again(
    ray: Any, photos: Path, tmp_path: Path
) -> None:
    from mlbench.runs.executors.ray import Ray

    # Phases are looked up twice a second or so: the run has to be under way for longer.
    plan = plan_of(photos, "softtriple", epochs=200)
    alone = run(plan, tmp_path / "alone", Inline())
    notes: list[str] = []
    killed: list[str] = []

    def listen(event: Phase | Note) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        elif event.run == "softtriple seed 0" and not killed:
            killed.append(event.where)
            os.kill(int(event.where.rpartition("/")[2]), signal.SIGKILL)

    damaged = store.record_path(tmp_path / "out", plan.runs()[0])
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    # Not the cluster that a file in /tmp or a variable names: it may be gone.
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    crew = Ray(ExecutorOptions("ray"))
    try:
        outcomes = run(plan, tmp_path / "out", crew, listen)
    finally:
        crew.stop()
        ray.shutdown()
    assert results(alone) == results(outcomes)
    assert damaged.with_suffix(".damaged").read_text() == "{"
    assert [note for note in notes if note.startswith("softtriple seed 0: its process")] == notes
    assert len(notes) == 1


def test_a_lost_gpu_ends_the_runs_of_this_process(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    cleared: list[bool] = []
    monkeypatch.setattr(outcomes_module, "make_run", lost)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleared.append(True))
    plan = plan_of(photos, "softtriple", seeds=3)
    with pytest.raises(MlbenchError, match=r"untrained seed 0: the GPU failed.*same command"):
        run(plan, tmp_path / "out", Inline())
    assert not cleared  # it would fail as well


def test_a_process_that_lost_its_gpu_is_replaced(photos: Path) -> None:
    (spec,) = plan_of(photos, "softtriple").runs()
    lost = Finished(spec, replace(failed(spec, Path(), "the GPU failed"), device_lost=True))
    child = object.__new__(_Child)
    child.pipe = SimpleNamespace(recv=lambda: lost)  # pyright: ignore[reportAttributeAccessIssue]
    child.spec, child.dead = spec, False
    assert child.hear() is lost
    assert child.dead


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("0,1", ["0", "1"]),
        ("0,-1,1", ["0"]),
        ("-1", []),
        ("GPU-8f2, MIG-1", ["GPU-8f2", "MIG-1"]),
    ],
)
def test_gpus_are_dealt_out_as_cuda_sees_them(
    monkeypatch: pytest.MonkeyPatch, given: str, seen: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == seen


@pytest.mark.parametrize(("device", "calls"), [("cuda", 1), ("cpu", 0)])
def test_a_ray_worker_with_a_gpu_makes_one_run(ray: Any, device: str, calls: int) -> None:
    """Ray keeps a worker, and its CUDA context, unless both are in the declaration."""
    from mlbench.runs.executors.ray import Ray

    declared: list[dict[str, Any]] = []

    def remote(**options: Any) -> Any:
        declared.append(options)
        return lambda function: function

    crew: Any = object.__new__(Ray)
    crew.options, crew._connected, crew._news = ExecutorOptions("ray"), True, []
    crew._ray = SimpleNamespace(remote=remote, cluster_resources=lambda: {"GPU": 2.0}, nodes=list)
    crew.begin(SimpleNamespace(), SimpleNamespace(device=device))
    (options,) = declared
    assert (options["num_gpus"], options["max_calls"]) == (calls, calls)
