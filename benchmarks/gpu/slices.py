"""Check, measure and train on a GPU, in slices that go on where the last one stopped.

    python benchmarks/gpu/slices.py OUT [--minutes 8] [--only NAME,...] [--again NAME,...]
        [--from STATE] [--jobs 4] [--device cuda] [--tiny]

The same command is given until it says that all is done. OUT/packed holds what is to be kept. See
README.md beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from steps import ROOT, Plan, Step, path

GRACE = 30.0
"""Seconds from the request to stop to the end of a step."""
BOUND_MB = 100.0
LOG_BYTES = 20_000


@dataclass(frozen=True)
class Mark:
    """What became of a step.

    Attributes:
        state: ``done``, ``failed``, or ``stopped`` by a slice's end, to go on in the next; a step
            that cannot go on is tried once more from its start.
        exit: code of its last process.
        seconds: over all slices.
        slices: in which it was tried.
        command: the process, for whoever repeats it by hand.
    """

    state: str
    exit: int
    seconds: float
    slices: int
    command: str


class Marks:
    """The marks of all steps, a JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, step: Step) -> Mark | None:
        """Return the mark of a step, or None if it was never tried."""
        file = self._file(step)
        return Mark(**json.loads(file.read_text())) if file.exists() else None

    def write(self, step: Step, mark: Mark) -> None:
        """Replace the mark of a step."""
        new = self._file(step).with_suffix(".new")
        new.write_text(json.dumps(asdict(mark), indent=1) + "\n")
        new.replace(self._file(step))

    def forget(self, step: Step) -> None:
        """Let a step be tried anew."""
        self._file(step).unlink(missing_ok=True)

    def open(self, step: Step) -> bool:
        """Tell whether a step is still to be made."""
        mark = self.read(step)
        return mark is None or mark.state == "stopped"

    def _file(self, step: Step) -> Path:
        return self.folder / f"{step.name}.json"


def make_slice(steps: Iterable[Step], marks: Marks, logs: Path, end: float) -> None:
    """Make the steps that are open, in order, until ``end`` by ``time.monotonic``.

    A step is begun only if the time it is said to need is left; it gets all that is left.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for step in steps:
        left = end - time.monotonic()
        if not marks.open(step) or left < step.minutes * 60:
            continue
        print(f"{step.name}: {step.tells} ({left:.0f} s are left)", flush=True)
        mark = make(step, marks.read(step), logs / f"{step.name}.txt", left)
        marks.write(step, mark)
        print(f"  {mark.state}, exit code {mark.exit}, {mark.seconds:.0f} s", flush=True)


def make(step: Step, before: Mark | None, log: Path, limit: float) -> Mark:
    """Start a step, wait for it, ask it to stop after ``limit`` seconds, and tell what became."""
    if step.figures:
        step.figures.parent.mkdir(parents=True, exist_ok=True)
    environment = (
        os.environ | {"PYTHONPATH": path(), "PYTHONUNBUFFERED": "1"} | dict(step.environment)
    )
    started, stopped = time.monotonic(), False
    with log.open("ab") as file:
        file.write(f"$ {' '.join(step.command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
            code = stop(process)
        except BaseException:
            stop(process)
            raise
    seconds = time.monotonic() - started + (before.seconds if before else 0.0)
    slices = 1 + (before.slices if before else 0)
    again = stopped and (step.resumes or slices == 1)
    state = "done" if code == 0 else "stopped" if again else "failed"
    return Mark(state, code, round(seconds, 1), slices, " ".join(step.command))


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask a step to stop, then end it and whatever it started."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def pack(out: Path, steps: Iterable[Step], marks: Marks) -> list[str]:
    """Fill ``out/packed`` anew and return the lines of its summary.

    It gets the records of each study as one file, all figures in one JSON file, the ends of the
    logs, the summary, and a state from which another machine goes on (``--from``).
    """
    packed = out / "packed"
    packed.mkdir(exist_ok=True)
    steps = list(steps)
    for folder in sorted(p for p in (out / "records").glob("*") if any(p.glob("*/*.json"))):
        command = [sys.executable, "-m", "mlbench", "pack", str(folder), "-o"]
        environment = os.environ | {"PYTHONPATH": path()}
        file = packed / f"{folder.name}.mlpack"
        subprocess.run([*command, str(file)], cwd=ROOT, env=environment, check=False)
    figures = {f.stem: json.loads(f.read_text()) for f in sorted((out / "figures").glob("*.json"))}
    (packed / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (packed / "logs.txt").write_bytes(b"".join(_ends_of_logs(out / "logs")))
    save_state(out, packed / "state.tar.gz")
    lines = summary(steps, marks)
    size = sum(f.stat().st_size for f in packed.rglob("*")) / 1e6
    lines.append(f"{packed}: {size:.1f} MB, {'below' if size < BOUND_MB else 'ABOVE'} 100 MB")
    (packed / "summary.txt").write_text("\n".join(lines) + "\n")
    return lines


def _ends_of_logs(folder: Path) -> Iterable[bytes]:
    for file in sorted(folder.glob("*.txt")):
        yield f"==== {file.stem}\n".encode() + file.read_bytes()[-LOG_BYTES:] + b"\n"


def save_state(out: Path, file: Path) -> None:
    """Write marks, figures and records, without which another machine would start anew."""
    kept = [out / "marks", out / "figures", *(out / "records").rglob("*.json")]
    with tarfile.open(file, "w:gz") as archive:
        for each in kept:
            if each.exists():
                archive.add(each, str(each.relative_to(out)))


def load_state(file: Path, out: Path) -> None:
    """Unpack what ``save_state`` wrote into a folder that has no marks yet."""
    if any((out / "marks").glob("*.json")):
        return
    with tarfile.open(file) as archive:
        archive.extractall(out, filter="data")


def summary(steps: Iterable[Step], marks: Marks) -> list[str]:
    """Return a line for each step: what became of it, and what it tells."""
    lines = []
    for step in steps:
        mark = marks.read(step)
        state = f"{mark.state}, {mark.seconds:.0f} s" if mark else "to be made"
        lines.append(f"{step.name:<28} {state:<18} {step.tells}")
    return lines


def photographs(out: Path, *, tiny: bool) -> tuple[str, ...]:
    """Return the options of ``mlbench run`` for its images; none if there are none."""
    if tiny:
        return ("--dataset", f"folder:{_draw(out / 'drawn')}")
    root = os.environ.get("MLBENCH_DATA_ROOT")
    return ("--dataset", "cub200", "--data-root", root) if root else ()


def _draw(folder: Path) -> Path:
    """Draw six classes of eight small images."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(0 if folder.exists() else 6):
        place = folder / f"class{number}"
        place.mkdir(parents=True)
        colour = rng.integers(40, 215, 3)
        for i in range(8):
            noise = rng.integers(-30, 30, (40, 44, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(
                place / f"{i}.png"
            )
    return folder


def main() -> None:
    """Parse the command line, make a slice, pack, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that gets everything")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this slice [default: 8]")
    parser.add_argument("--only", metavar="NAME,...", help="these steps alone")
    parser.add_argument(
        "--again", metavar="NAME,...", default="", help="forget what became of these"
    )
    parser.add_argument("--from", dest="state", type=Path, help="state.tar.gz of another machine")
    parser.add_argument(
        "--jobs", type=int, default=4, help="runs of a study at a time [default: 4]"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearsal: tiny sizes, drawn images")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the step under way is stopped first
    end = time.monotonic() + options.minutes * 60
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.state:
        load_state(options.state, out)
    images = photographs(out, tiny=options.tiny)
    if not images:
        print("MLBENCH_DATA_ROOT is not set: steps that need CUB-200-2011 are left out")
    plan = Plan(out, options.device, options.tiny, options.jobs, images)
    steps, marks = plan.steps(), Marks(out / "marks")
    wanted = set((options.only or ",".join(s.name for s in steps)).split(","))
    for step in steps:
        if step.name in options.again.split(","):
            marks.forget(step)
    # The end of a slice takes its time: a step that is asked to stop, and packing.
    chosen = [step for step in steps if step.name in wanted]
    make_slice(chosen, marks, out / "logs", end - (5.0 if options.tiny else GRACE))
    print("\n".join(pack(out, steps, marks)))
    open_steps = [step.name for step in chosen if marks.open(step)]
    print(
        f"to be made: {', '.join(open_steps)}; give the same command again"
        if open_steps
        else "all done"
    )


if __name__ == "__main__":
    main()
