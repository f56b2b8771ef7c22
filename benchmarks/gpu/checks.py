"""What is to be seen on a GPU before figures of it are believed; each check writes a JSON file.

    python benchmarks/gpu/checks.py search|compile|limits [--device cuda] [--json PATH] [--tiny]
        [-- OPTIONS OF mlbench run]

Exits with code 1 if something is not as expected. With --tiny on a CPU it is a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]
Check = Callable[[argparse.Namespace], tuple[Figures, bool]]


def search(options: argparse.Namespace) -> tuple[Figures, bool]:
    """Compare neighbours found on the device with those found on the CPU, TF32 allowed or not."""
    from mlbench.metrics.neighbors import nearest

    different = {}
    for size in (901, 2001) if options.tiny else (9_001, 60_502):
        generator = torch.Generator().manual_seed(size)
        rows = torch.nn.functional.normalize(torch.randn(size, 64, generator=generator))
        expected = nearest(rows, rows, 12, exclude_self=True)
        there = rows.to(options.device)
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            found = nearest(there, there, 12, exclude_self=True)
            different[f"{size} rows, TF32 {allowed}"] = int((found != expected).sum())
    return {"different_neighbors": different}, not any(different.values())


def compiled(options: argparse.Namespace) -> tuple[Figures, bool]:
    """Compile a network ten times; compare the loss of some steps with that of eager ones."""
    from _loops import Case, ours
    from _photos import image_set, photos, pixels

    from mlbench.system.known_state import known_state
    from mlbench.training.device import graphs_skipped

    device = torch.device(options.device)
    network, size, batch, steps = (
        ("convnet", 32, 8, 2) if options.tiny else ("resnet18", 224, 32, 20)
    )
    case = Case(network, size, batch, steps, device)
    seconds, losses, memory = [], [], []
    with (
        known_state(),
        photos(case.images) as paths,
        pixels(image_set(paths, 1), case.cached_side) as cache,
    ):
        torch.manual_seed(0)  # of the loss's centres
        expected = _loss(ours(case, cache, compiled=False))
        for _ in range(2 if options.tiny else 10):
            torch.manual_seed(0)
            started = time.perf_counter()
            loop = ours(case, cache, compiled=True)
            seconds.append(time.perf_counter() - started)
            losses.append(_loss(loop))
            del loop
            memory.append(torch.cuda.memory_allocated() / 1e6 if device.type == "cuda" else 0.0)
    error = max(abs(loss - expected) / abs(expected) for loss in losses)
    figures = {
        "seconds_to_compile": seconds,
        "graphs_skipped": graphs_skipped(),
        "loss_eager": expected,
        "losses_compiled": losses,
        "relative_difference": error,
        "megabytes_allocated": memory,
    }
    growth = memory[-1] - memory[len(memory) // 2]
    return figures, error < 1e-3 and graphs_skipped() == 0 and growth < 50


def _loss(loop: Callable[[], object]) -> float:
    return float(getattr(loop(), "loss"))  # noqa: B009  # a loop returns its epoch, typed object


def limits(options: argparse.Namespace) -> tuple[Figures, bool]:
    """Ask for too much memory, for two runs at a time, for a stop, and kill; see what is said."""
    with tempfile.TemporaryDirectory() as folder:
        runs = _Runs(options, Path(folder))
        found = {
            "two at a time": runs.made("two", "--jobs", "2", "--seeds", "2"),
            "Ctrl-C": runs.stopped("ctrl-c", signal.SIGINT),
            "Ctrl-C while compiling": runs.stopped("compiling", signal.SIGINT, "--compile"),
            "killed": runs.stopped("killed", signal.SIGKILL),
        }
        if options.device == "cuda":
            big = ("--set", "batch.size=8192", "--set", "input.size=448")
            found["too large a batch"] = runs.refused("big", *big)
    return found, all(each["as_expected"] for each in found.values())


class _Runs:
    """Runs of the command line, in one folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.after = folder, 4.0 if options.tiny else 25.0
        backbone, epochs = ("convnet", 30) if options.tiny else ("resnet18", 4)
        chosen = [f"schedule.epochs={epochs}", "schedule.milestones=[]", "backbone.weights=none"]
        chosen += ["evaluation.nmi_restarts=1"]
        if options.tiny:
            chosen += ["input.size=32", "input.test_resize=32"]
        changes = [word for each in chosen for word in ("--set", each)]
        own = [sys.executable, "-m", "mlbench", "run", "-q", "--losses", "softtriple"]
        place = ["--device", options.device, "--backbone", backbone, "--recipe", "paper"]
        self.command = [*own, *place, *changes, *options.words]

    def made(self, name: str, *words: str) -> Figures:
        """Make runs to their end."""
        return self._ended(self._start(name, *words), 0)

    def refused(self, name: str, *words: str) -> Figures:
        """Make a run that must fail with a message and without a traceback."""
        found = self._ended(self._start(name, *words), 1)
        said = "Traceback" not in found["says"] and "memory" in found["says"]
        return {**found, "as_expected": found["as_expected"] and said}

    def stopped(self, name: str, signum: signal.Signals, *words: str) -> Figures:
        """Stop a run midway, then let the same command end it."""
        process = self._start(name, *words)
        try:
            process.wait(self.after)
        except subprocess.TimeoutExpired:
            process.send_signal(signum)
        started = time.perf_counter()
        first = self._ended(process, *((-9, 0) if signum == signal.SIGKILL else (130, 0)))
        seconds = time.perf_counter() - started
        again = self._ended(self._start(name, *words), 0)
        both = first["as_expected"] and again["as_expected"]
        return {"first": first, "seconds_to_stop": seconds, "again": again, "as_expected": both}

    def _start(self, name: str, *words: str) -> subprocess.Popen[str]:
        command = [*self.command, *words, "--out", str(self.folder / name)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def _ended(self, process: subprocess.Popen[str], *codes: int) -> Figures:
        says, _ = process.communicate()
        code = process.returncode
        return {"exit": code, "says": says[-2000:], "as_expected": code in codes}


CHECKS: dict[str, Check] = {"search": search, "compile": compiled, "limits": limits}


def main() -> None:
    """Parse the command line, check, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = sys.argv[1:]
    place = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:place])
    options.words = given[place + 1 :]
    figures, good = CHECKS[options.check](options)
    text = json.dumps({**figures, "as_expected": good, "torch": torch.__version__}, indent=1)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    print(text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
