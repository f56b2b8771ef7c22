"""Is nothing torn, lost or changed when mlbench is killed? With real processes and SIGKILL.

    python stress/kill.py [--kills N] [--seed N] [--json PATH]

A chain starts ``mlbench run`` with an empty results folder and an empty cache, kills it, starts the
same command again, and so on until it ends by itself; the next chain starts afresh. A kill comes
at a random moment, while a file of a wanted kind is being written, or while the table is printed.
At the end of a chain the records must be those of a run that was never interrupted, apart from
times, and neither temporary files nor checkpoints may be left. Anything else makes the exit code 1.

The processes write checkpoints every 0.05 s instead of every 30 s, to a disk that takes 30 ms
longer than this one, so that there is something to hit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from mlbench.records.scores import read_scores

CACHE, CHECKPOINT, QUERIES, RECORD = ".uint8.", ".pt.", ".npz.", ".json."
MOMENT, TABLE = "moment", "table"
TARGETS = (
    *(CACHE, CACHE, MOMENT, CHECKPOINT, QUERIES, RECORD, CHECKPOINT, MOMENT),
    *(CHECKPOINT, MOMENT, RECORD, CHECKPOINT, TABLE, TABLE),
)
"""What the kills of a chain wait for; with dots: part of the name of a temporary file."""

LOSSES = "npairs,margin,softtriple"
SETTINGS = {
    "input.size": 32,
    "input.train_resize": 32,
    "input.test_resize": 32,
    "batch.size": 32,
    "schedule.epochs": 2,
    "schedule.milestones": [1],
    "selection.rule": "validation",
    "selection.folds": 2,
    "head.dim": 16,
    "evaluation.nmi_restarts": 1,
}
COMMAND = """
import faulthandler, os, signal, sys, time
faulthandler.register(signal.SIGUSR1, all_threads=False)
from mlbench.cli import main
from mlbench.training import checkpoint
checkpoint.INTERVAL_SECONDS, checkpoint._MAX_SHARE = 0.05, 1
fsync = os.fsync
os.fsync = lambda handle: (fsync(handle), time.sleep(0.03))
main(sys.argv[1:], prog_name="mlbench")
"""
TIMES = ("cost", "checksum")
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.003


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        chain: number of the chain, from 0.
        target: what it waited for.
        seconds: since the start of the process.
        where: innermost function of mlbench that was under way.
        writing: the file that was being written; "" if none.
        records: records that were there.
        checkpoints: checkpoints that were there.
    """

    chain: int
    target: str
    seconds: float
    where: str
    writing: str
    records: int
    checkpoints: int


@dataclass
class Report:
    """What came of all kills.

    Attributes:
        kills: in order.
        chains: of processes, up to one that ended by itself.
        runs: of those chains.
        continued: how often one of those runs went on from a checkpoint.
        seconds: wall time.
        problems: one line each; must be empty.
    """

    kills: list[Kill] = field(default_factory=list)
    chains: int = 0
    runs: int = 0
    continued: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Chain:
    """One results folder, one cache, and the process at work on them."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        given = [f"--set={key}={json.dumps(value)}" for key, value in SETTINGS.items()]
        source = ["--dataset", f"folder:{images}", "--losses", LOSSES]
        arguments = ["run", "--out", str(self.out), *source, *given]
        self.command = [sys.executable, "-c", COMMAND, *arguments]
        self.start()

    def start(self) -> None:
        """Start the command (again)."""
        self.started = time.monotonic()
        cache = str(self.folder / "cache")
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, "MLBENCH_CACHE": cache, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def kill(self, target: str, after: float) -> tuple[str, list[str]] | None:
        """Kill the process once ``target`` is there, and ``after`` seconds later.

        Returns:
            where it was and which files it was writing; None if it ended before.
        """
        while not self._is_there(target):
            if self.process.poll() is not None:
                return None
            if time.monotonic() - self.started > DEADLINE_SECONDS:
                raise TimeoutError(f"no end after {DEADLINE_SECONDS} s")
            time.sleep(POLL_SECONDS)
        time.sleep(after)
        self.process.send_signal(signal.SIGUSR1)  # prints where it is
        time.sleep(POLL_SECONDS)
        self.process.kill()
        if self.process.wait() >= 0:
            return None
        _, errors = self.process.communicate()
        return _innermost(errors.decode()), [_plain(name) for name in self._writing()]

    def _is_there(self, target: str) -> bool:
        if target == TABLE:
            assert self.process.stdout is not None
            return bool(self.process.stdout.read(1))
        return target == MOMENT or any(target in name for name in self._writing())

    def _writing(self) -> list[str]:
        owner = f"-{self.process.pid}-"
        return [path.name for path in self.temporary() if owner in path.name]

    def temporary(self) -> list[Path]:
        """Return all temporary files, of whatever process."""
        return [p for p in self.folder.rglob(".*.tmp") if p.parent.name != "images"]

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints."""
        return list(self.out.rglob("*.pt"))

    def finish(self) -> None:
        """Wait until the process ends well."""
        _, errors = self.process.communicate(timeout=DEADLINE_SECONDS)
        if self.process.returncode:
            raise RuntimeError(f"exit code {self.process.returncode}: {errors.decode()}")

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records by path, as they lie there."""
        paths = sorted(self.out.rglob("*.json"))
        return {str(p.relative_to(self.out)): json.loads(p.read_bytes()) for p in paths}

    def torn(self, wanted: dict[str, dict[str, Any]]) -> list[str]:
        """Name what lies there under its own name and is not as it should be."""
        problems = []
        for name, record in self.records().items():
            if timeless(record) != timeless(wanted[name]):
                problems.append(f"{self.folder.name}: {name} differs")
            if read_scores(self.out / name, record["queries_sha256"]) is None:
                problems.append(f"{self.folder.name}: {name} lacks its per-query results")
        return problems

    def ended(self, wanted: dict[str, dict[str, Any]]) -> list[str]:
        """Name what is missing, different or left over now that the process has ended."""
        missing = sorted(wanted.keys() - self.records().keys())
        left = [*self.temporary(), *self.checkpoints()]
        return [
            *self.torn(wanted),
            *(f"{self.folder.name}: {name} is missing" for name in missing),
            *(f"{self.folder.name}: {path.name} is left" for path in left),
        ]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what hangs on the clock or on how often it was interrupted."""
    rest = {key: value for key, value in record.items() if key not in TIMES}
    rest["images_seen"] = record["cost"]["images_seen"]
    rest["curve"] = [{k: v for k, v in row.items() if k != "seconds"} for row in record["curve"]]
    return rest


def _innermost(errors: str) -> str:
    """Return the innermost function of mlbench in a traceback of faulthandler.

    It is outside of mlbench while Python and torch are loaded, and after the end of the command.
    """
    frames = re.findall(r'File ".*/mlbench/([\w/]+)\.py", line \d+ in (\S+)', errors)
    return " ".join(frames[0]) if frames else "outside of mlbench"


def _plain(temporary: str) -> str:
    """Return what a temporary file was to be called."""
    return re.sub(r"\.[0-9a-f]{8}-\d+-[0-9a-f]+\.tmp$", "", temporary)[1:]


def draw_images(folder: Path) -> None:
    """Draw 16 classes of 60 images, told apart by colour."""
    rng = np.random.default_rng(0)
    for number in range(16):
        (folder / f"class{number:02}").mkdir(parents=True)
        colour = rng.integers(40, 215, 3)
        for i in range(60):
            pixels = np.clip(colour + rng.integers(-90, 90, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{number:02}" / f"{i:02}.png")


def killed(chain: Chain, usual: float, rng: random.Random) -> Iterator[Kill]:
    """Kill and start again until the process ends by itself.

    Args:
        chain: just started.
        usual: seconds that its command takes from the start; random moments lie in the first half,
            as what is continued takes less.
        rng: draws the moments.
    """
    for target in TARGETS:
        found = chain.kill(target, rng.uniform(0, usual / 2 if target == MOMENT else 0.06))
        if found is None:
            return
        where, writing = found
        seconds = round(time.monotonic() - chain.started, 2)
        counts = len(chain.records()), len(chain.checkpoints())
        yield Kill(int(chain.folder.name), target, seconds, where, " ".join(writing), *counts)
        chain.start()


def measure(folder: Path, kills: int, seed: int, console: Console) -> Report:
    """Make so many ``kills`` in the empty ``folder``."""
    rng, report = random.Random(seed), Report()
    started = time.monotonic()
    draw_images(folder / "images")
    whole = Chain(folder / "whole", folder / "images")
    whole.finish()
    usual, wanted = time.monotonic() - started, whole.records()
    while len(report.kills) < kills:
        chain = Chain(folder / str(report.chains), folder / "images")
        for kill in itertools.islice(killed(chain, usual, rng), kills - len(report.kills)):
            report.kills.append(kill)
            report.problems += chain.torn(wanted)
            console.print(f"[{len(report.kills)}/{kills}] {_line(kill)}", highlight=False)
        if chain.process.returncode is not None and chain.process.returncode < 0:
            chain.start()
        chain.finish()
        report.problems += chain.ended(wanted)
        report.chains += 1
        report.runs += len(wanted)
        report.continued += sum(r["cost"]["interruptions"] for r in chain.records().values())
        shutil.rmtree(chain.folder)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _line(kill: Kill) -> str:
    writing = f", writing {kill.writing}" if kill.writing else ""
    left = f"{kill.records} records, {kill.checkpoints} checkpoints"
    return f"chain {kill.chain}, {kill.target}, {kill.seconds} s: {kill.where}{writing}; {left}"


def summary(report: Report) -> Table:
    """Count the kills by what they hit."""
    table = Table(title=f"{len(report.kills)} kills, {report.chains} chains, {report.seconds} s")
    table.add_column("hit")
    table.add_column("kills", justify="right")
    hits = Counter(
        f"writing {Path(kill.writing).suffix} files" if kill.writing else kill.where
        for kill in report.kills
    )
    for hit, count in hits.most_common():
        table.add_row(hit, str(count))
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), options.kills, options.seed, console)
    console.print(summary(report))
    console.print(f"{report.runs} runs, {report.continued} times continued from a checkpoint")
    for problem in report.problems:
        console.print(f"PROBLEM {problem}", highlight=False)
    console.print(f"problems: {len(report.problems) or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
