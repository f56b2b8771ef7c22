"""Ctrl-C and SIGTERM: nothing torn, nothing lost, and an end within seconds."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from helpers.settings import QUICK

from mlbench.cli import main
from mlbench.records import store
from mlbench.system.interrupts import (
    GRACE_SECONDS,
    HOW_TO_CONTINUE,
    SIGNALS,
    Interrupted,
    exit_code,
    held,
    install,
)
from mlbench.training.trainer import Batch, Trainer


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def send_and_sleep(signum: int) -> None:
    send(signum)
    time.sleep(5)


def test_it_is_raised_once() -> None:
    with pytest.raises(ZeroDivisionError), install():
        catch_and_go_on()


def catch_and_go_on() -> None:
    with suppress(Interrupted):
        send(signal.SIGINT)
    with held():  # such as to write a checkpoint
        send(signal.SIGTERM)
    _ = 1 / 0


class Referent:
    pass


def lose_a_signal() -> None:
    referent = Referent()
    reference = weakref.ref(referent, lambda _: send(signal.SIGTERM))
    del referent  # the callback cannot raise
    assert reference() is None
    time.sleep(5)


def test_a_signal_that_python_loses_is_raised_again(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(Interrupted), install():
        lose_a_signal()
    assert time.monotonic() - started < 3
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_raised_at_once(signum: int, code: int) -> None:
    with pytest.raises(Interrupted) as caught, install():
        send_and_sleep(signum)
    assert exit_code(caught.value) == code
    assert exit_code(KeyboardInterrupt()) == 130


def nest(done: list[str]) -> None:
    with held():
        with held():
            send(signal.SIGTERM)
            done.append("inner")
        done.append("outer")
    done.append("after")


def test_a_held_signal_waits_for_the_end_of_the_outer_block() -> None:
    done: list[str] = []
    with pytest.raises(Interrupted), install():
        nest(done)
    assert done == ["inner", "outer"]


def test_an_error_in_a_held_block_is_not_replaced() -> None:
    with pytest.raises(ZeroDivisionError), install(), held():
        _ = send(signal.SIGTERM), 1 / 0
    with install(), held():  # the old signal is forgotten
        pass


def test_without_installation_ctrl_c_is_pythons_own() -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with install():
        assert [signal.getsignal(s) for s in SIGNALS] != before
    assert [signal.getsignal(s) for s in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt) as caught, held():
        signal.raise_signal(signal.SIGINT)
    assert caught.type is KeyboardInterrupt


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with install():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone() -> None:
    failed = []

    def run() -> None:
        try:
            with install():
                pass
        except ValueError as error:  # what signal.signal raises there
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failed == []


COMPUTING = """
import hashlib, sys
from mlbench.system import interrupts
interrupts.GRACE_SECONDS = float(sys.argv[1])
with interrupts.install():
    print("computing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, and no chance to stop
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.5, 1), (60, 2)])
def test_a_long_computation_does_not_keep_a_process_alive(grace: float, signals: int) -> None:
    command = [sys.executable, "-c", COMPUTING, str(grace)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "computing\n"
        for _ in range(signals):
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(30) == 143
        assert time.monotonic() - started < 10
        assert process.stderr.read() == f"{HOW_TO_CONTINUE}\n"


def test_the_grace_leaves_time_to_end_within_five_seconds() -> None:
    assert GRACE_SECONDS <= 4


def mlbench(photos: Path, out: Path, *arguments: str) -> Result:
    settings = [f"--set={key}={value}" for key, value in {**QUICK, "batch.size": 8}.items()]
    command = ["run", f"--dataset=folder:{photos}", f"--out={out}", "--losses=npairs", *settings]
    return CliRunner().invoke(main, [*command, *arguments])


def records(out: Path) -> dict[str, Any]:
    return {
        record.loss: (record.metrics, [row.loss for row in record.curve])
        for record in store.load_results(out)
    }


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_run_that_is_stopped_is_continued_to_the_same_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, steps: int
) -> None:
    done, step = 0, Trainer.step

    def counted(self: Trainer, batch: Batch) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == steps:
            send(signum)
        return step(self, batch)

    out = tmp_path / "out"
    monkeypatch.setattr(Trainer, "step", counted)
    stopped = mlbench(photos, out)
    assert stopped.exit_code == 128 + signum
    assert HOW_TO_CONTINUE in " ".join(stopped.stderr.split())
    assert done == steps
    assert len(list(out.rglob("*.pt"))) == 1
    assert mlbench(photos, out).exit_code == 0
    assert done == 6, "no step was made twice"
    assert list(out.rglob("*.pt")) == []
    assert mlbench(photos, tmp_path / "other").exit_code == 0
    assert records(out) == records(tmp_path / "other")


@pytest.mark.parametrize(
    "function",
    [
        "mlbench.runs.evaluation.nmi",
        "mlbench.runs.evaluation.embed",
        "mlbench.datasets.pixels.decoded",
    ],
)
def test_phases_without_steps_stop_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"

    def stop(*_: object, **__: object) -> None:
        send(signal.SIGTERM)
        time.sleep(20)

    with monkeypatch.context() as patch:
        patch.setattr(function, stop)
        started = time.monotonic()
        assert mlbench(photos, out).exit_code == 143
        assert time.monotonic() - started < 10
    assert list(tmp_path.rglob("*.tmp")) == []
    assert mlbench(photos, out).exit_code == 0


@pytest.mark.skipif(not os.environ.get("MLBENCH_SLOW"), reason="takes a minute; set MLBENCH_SLOW=1")
def test_killed_processes_leave_nothing_torn(tmp_path: Path) -> None:
    """More of them: python stress/kill.py --kills 50."""
    bench = Path(__file__).parents[2] / "stress" / "kill.py"
    command = [sys.executable, str(bench), "--kills", "3", "--json", str(tmp_path / "kills.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads((tmp_path / "kills.json").read_text())["kills"]) == 3
