"""Speed and memory of SoftTriple beside pytorch-metric-learning's, equality checked.

Run ``python benchmarks/speed/softtriple.py [--json PATH]``. Both losses take turns in one process,
so that whatever else the machine does falls on both.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SoftTripleLoss
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mlbench.losses.softtriple import SoftTriple

CLASSES, CENTERS, BATCH, DIM = 100, 10, 32, 64
SOP_CLASSES = 11_318
REPEATS, STEPS = 60, 5
SPEED_TARGET, MEMORY_TARGET_MB, TOLERANCE = 5.0, 300.0, 1e-6


def pair() -> tuple[SoftTriple, SoftTripleLoss]:
    """Return our loss and the library's, with the same centres and the paper's parameters."""
    torch.manual_seed(0)
    ours = SoftTriple(CLASSES, DIM, centers_per_class=CENTERS)
    theirs = SoftTripleLoss(
        CLASSES,
        DIM,
        centers_per_class=CENTERS,
        weight_regularizer=SparseCentersRegularizer(CLASSES, CENTERS),
        weight_reg_weight=0.2,
    )
    theirs.fc.data.copy_(ours.centers.data.flatten(0, 1).T)
    return ours, theirs


def batch(classes: int) -> tuple[Tensor, Tensor]:
    """Return unit embeddings ``(32, 64)`` that want a gradient, and their labels."""
    x = F.normalize(torch.randn(BATCH, DIM)).requires_grad_()
    return x, torch.randint(classes, (BATCH,))


def differences() -> dict[str, float]:
    """Return the largest absolute differences of value and gradients in float64.

    What remains is the authors' 1e-5 under the root of the regulariser, which the library lacks.
    """
    ours, theirs = pair()
    x, y = batch(CLASSES)
    raw = x.detach().double().requires_grad_()
    results = []
    for loss, weights in ((ours, ours.centers), (theirs, theirs.fc)):
        value = loss.double()(F.normalize(raw), y)
        results.append((value.detach(), *torch.autograd.grad(value, [raw, weights])))
    (value, by_x, by_w), (value2, by_x2, by_w2) = results
    return {
        "value": (value - value2).abs().item(),
        "embedding_gradient": (by_x - by_x2).abs().max().item(),
        "center_gradient": (by_w.flatten(0, 1).T - by_w2).abs().max().item(),
    }


def seconds(step: Callable[[], None]) -> float:
    """Return the time of one step, the mean over a few."""
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS


def training_step(loss: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that takes one forward and backward pass."""

    def step() -> None:
        loss.zero_grad()
        x.grad = None
        loss(x, y).backward()

    return step


def speed(ours: nn.Module, theirs: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """Return the times of both losses in seconds, taken in turns."""
    steps = {"ours": training_step(ours, x, y), "theirs": training_step(theirs, x, y)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 3):
        for name, step in steps.items():
            taken = seconds(step)
            if repeat >= 3:  # the first are warm-up
                times[name].append(taken)
    return times


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_memory() -> float:
    """Return the MB that a step at SOP's size needs above parameters and gradients."""
    training_step(SoftTriple(2, DIM, centers_per_class=2), *batch(2))()  # loads what torch loads
    loss = SoftTriple(SOP_CLASSES, DIM, centers_per_class=CENTERS)
    loss.centers.grad = torch.zeros_like(loss.centers)
    loss.centers.grad.fill_(1.0)  # touched, so that it is resident
    before = peak_mb()
    x, y = batch(SOP_CLASSES)
    loss(x, y).backward()
    return peak_mb() - before


def memory_in_subprocess() -> float:
    """Run ``measure_memory`` in a fresh process, whose peak is its own."""
    command = [sys.executable, __file__, "--memory"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure() -> dict[str, Any]:
    """Return all figures, with the targets and whether they are met."""
    ours, theirs = pair()
    x, y = batch(CLASSES)
    differ = differences()
    times = speed(ours, theirs, x, y)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    memory = memory_in_subprocess()
    return {
        "difference": differ,
        "milliseconds": {k: 1e3 * statistics.median(v) for k, v in times.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "memory_mb": memory,
        "met": {
            "equal": max(differ.values()) < TOLERANCE,
            "speed": statistics.median(ratios) >= SPEED_TARGET,
            "memory": memory < MEMORY_TARGET_MB,
        },
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures beside their targets."""
    table = Table(title=f"SoftTriple, C {CLASSES}, K {CENTERS}, batch {BATCH}, D {DIM}")
    for column in ("figure", "measured", "target"):
        table.add_column(column)
    ratio, ms = figures["ratio"], figures["milliseconds"]
    for name, value in figures["difference"].items():
        table.add_row(f"largest difference of {name}", f"{value:.1e}", f"< {TOLERANCE:.0e}")
    table.add_row("ms of a step, ours | theirs", f"{ms['ours']:.2f} | {ms['theirs']:.2f}")
    spread = f"{ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})"
    table.add_row("theirs / ours, median (range)", spread, f">= {SPEED_TARGET:.0f}")
    memory = f"{figures['memory_mb']:.0f}", f"< {MEMORY_TARGET_MB:.0f}"
    table.add_row(f"MB of a step at C {SOP_CLASSES}", *memory)
    Console().print(table)
    missed = [name for name, fine in figures["met"].items() if not fine]
    print(f"missed: {', '.join(missed)}" if missed else "all targets met")


def main() -> None:
    """Measure, print and, if asked, save; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.memory:
        print(measure_memory())
        return
    figures = measure()
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(0 if all(figures["met"].values()) else 1)


if __name__ == "__main__":
    main()
