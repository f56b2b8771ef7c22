"""Speed and memory of SoftTriple beside pytorch-metric-learning's, equality checked.

    python benchmarks/speed/softtriple.py [--quick] [--json PATH]

Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import Spread, arguments, copy_limit, finish, product_limit, ratio, show, take_turns
from pytorch_metric_learning.losses import SoftTripleLoss
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from torch import Tensor, nn

from mlbench.losses.softtriple import SoftTriple

CLASSES, CENTERS, BATCH, DIM = 100, 10, 32, 64
SOP_CLASSES = 11_318
ROUNDS, STEPS = 60, 5
OURS, THEIRS = TOOLS = ("mlbench", "pytorch-metric-learning")
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


def training_steps(loss: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that takes some forward and backward passes."""

    def steps() -> None:
        for _ in range(STEPS):
            loss.zero_grad()
            x.grad = None
            loss(x, y).backward()

    return steps


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure_memory() -> float:
    """Return the MB that a step at SOP's size needs above parameters and gradients."""
    training_steps(SoftTriple(2, DIM, centers_per_class=2), *batch(2))()  # loads what torch loads
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


def counted() -> tuple[float, float]:
    """Return floating-point operations and bytes of a step: two passes back for one forth."""
    centers = CLASSES * CENTERS * DIM
    products = 2.0 * centers * (BATCH + CENTERS)  # with the batch; of a class's centres
    return 3 * products, 3 * 4.0 * centers  # centres read twice, their gradient written


def main() -> None:
    """Measure, print and, if asked, save; exit with 1 if a target is missed."""
    parser = arguments(__doc__)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.memory:
        print(measure_memory())
        return
    differ = differences()
    x, y = batch(CLASSES)
    tools = {name: training_steps(loss, x, y) for name, loss in zip(TOOLS, pair(), strict=True)}
    seconds = take_turns(tools, 6 if options.quick else ROUNDS, warmup=3)
    milliseconds = {name: Spread.of(seconds[name]).scaled(1e3 / STEPS) for name in TOOLS}
    speed, memory = ratio(seconds, THEIRS, OURS), memory_in_subprocess()
    rows = [
        *(
            (f"largest difference of {name}", f"{value:.1e}", f"< {TOLERANCE:.0e}")
            for name, value in differ.items()
        ),
        *((f"ms of a step, {name}", str(milliseconds[name]), "") for name in TOOLS),
        (f"times {OURS}", str(speed), f">= {SPEED_TARGET:g}"),
        (f"MB of a step at C {SOP_CLASSES}", f"{memory:.0f}", f"< {MEMORY_TARGET_MB:g}"),
    ]
    title = f"SoftTriple, C {CLASSES}, K {CENTERS}, batch {BATCH}, D {DIM}, median (range)"
    show(title, ("figure", "measured", "target"), rows)
    print(work(milliseconds[OURS].median / 1e3))
    finish({"difference": differ, "ms": milliseconds, "times": speed, "mb": memory}, options.json)
    fine = {
        "equality": max(differ.values()) < TOLERANCE,
        "speed": speed.median >= SPEED_TARGET,
        "memory": memory < MEMORY_TARGET_MB,
    }
    missed = [name for name, met in fine.items() if not met]
    print(f"missed: {', '.join(missed)}" if missed else "all targets met")
    sys.exit(1 if missed else 0)


def work(seconds: float) -> str:
    """Return what was counted and how much of the machine's rates that is."""
    flops, moved = counted()
    product, copy = product_limit(), copy_limit()
    return (
        f"{OURS}: {flops / 1e6:.1f} MFLOP and {moved / 1e6:.2f} MB counted, "
        f"{flops / seconds / product:.1%} of a large product's {product / 1e9:.0f} GFLOP/s, "
        f"{moved / seconds / copy:.1%} of a large copy's {copy / 1e9:.1f} GB/s"
    )


if __name__ == "__main__":
    main()
