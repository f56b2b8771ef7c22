"""How times grow: search and NMI, SoftTriple's step, a matrix of runs.

    python benchmarks/speed/growth.py [--threads N] [--quick] [--json PATH]

The points of an axis take turns, and the least time of each counts: what else the machine does only
adds. The exponent is the slope of log time over log size, by least squares; fixed costs lower it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _measure import Spread, arguments, finish, show, take_turns
from evaluator import Shape, make_data

from mlbench.losses.softtriple import SoftTriple
from mlbench.metrics.evaluation import evaluate_queries, nmi
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import RunSpec
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import run_one
from mlbench.training.device import resolve_device

Work = Callable[[], object]
LOSSES = ("softtriple", "softmax_norm", "triplet", "npairs")
TINY: dict[str, Any] = {
    "input.size": 16,
    "input.train_resize": 20,
    "input.test_resize": 20,
    "schedule.epochs": 1,
    "schedule.milestones": [],
    "batch.size": 16,
    "evaluation.nmi_restarts": 1,
    "head.dim": 8,
    "backbone.weights": "none",
}


@dataclass(frozen=True)
class Axis:
    """One thing measured at some sizes.

    Attributes:
        what: is timed.
        over: what grows.
        held: what stays as it is.
        sizes: ascending.
        make: gives the work of a size; what it does itself is not timed.
        rounds: measured.
    """

    what: str
    over: str
    held: str
    sizes: tuple[int, ...]
    make: Callable[[int], Work]
    rounds: int = 3


def search(images: int, dim: int, classes: int) -> Work:
    """Return the evaluation of neighbours over random clustered embeddings."""
    rows, labels = make_data(Shape("search", images, dim, classes, (), 1))
    return lambda: evaluate_queries(rows, labels)


def clusters(images: int, dim: int, classes: int) -> Work:
    """Return NMI of one k-means restart over random clustered embeddings."""
    rows, labels = make_data(Shape("nmi", images, dim, classes, (), 1))
    return lambda: nmi(rows, labels, restarts=1)


def softtriple(classes: int, dim: int) -> Work:
    """Return both passes of SoftTriple with 10 centres a class over 32 embeddings."""
    torch.manual_seed(0)
    loss = SoftTriple(classes, dim, centers_per_class=10)
    x = F.normalize(torch.randn(32, dim)).requires_grad_()
    y = torch.randint(classes, (32,))

    def step() -> None:
        loss.zero_grad()
        loss(x, y).backward()

    return step


def matrix(losses: int, seeds: int) -> Work:
    """Return a matrix of tiny runs on glyphs, in this process."""
    plan = make_plan(
        Request(
            recipe="cpu",
            losses=LOSSES[:losses],
            dataset="glyphs",
            backbone="convnet",
            settings=tuple(TINY.items()),
        )
    )

    def run() -> None:
        ingredients = Ingredients(plan.recipe, plan.files, resolve_device("cpu"), lambda *_: None)
        for loss in plan.losses:
            for seed in range(seeds):
                run_one(RunSpec(plan.recipe, loss, seed, None), ingredients)

    return run


AXES = (
    Axis(
        *("search", "images", "64 dims, 50 images a class", (2000, 4000, 8000, 16000)),
        lambda n: search(n, 64, n // 50),
    ),
    Axis(
        *("search", "dims", "6,000 images, 100 classes", (16, 64, 256, 512)),
        lambda n: search(6000, n, 100),
    ),
    Axis(
        *("search", "classes", "6,000 images, 64 dims", (10, 100, 1000, 3000)),
        lambda n: search(6000, 64, n),
    ),
    Axis(
        *("NMI", "images", "64 dims, 100 classes", (2000, 4000, 8000, 16000)),
        lambda n: clusters(n, 64, 100),
    ),
    Axis(
        *("NMI", "dims", "6,000 images, 100 classes", (16, 64, 256, 512)),
        lambda n: clusters(6000, n, 100),
    ),
    Axis(
        *("NMI", "classes", "6,000 images, 64 dims", (30, 100, 300, 1000)),
        lambda n: clusters(6000, 64, n),
    ),
    Axis(
        *("SoftTriple", "classes", "64 dims, batch 32", (100, 400, 1600, 6400)),
        lambda n: softtriple(n, 64),
    ),
    Axis(
        *("SoftTriple", "dims", "400 classes, batch 32", (16, 64, 256, 512)),
        lambda n: softtriple(400, n),
    ),
    Axis("matrix", "losses", "1 seed", (1, 2, 4), lambda n: matrix(n, 1), rounds=1),
    Axis("matrix", "seeds", "SoftTriple", (1, 2, 4), lambda n: matrix(1, n), rounds=1),
)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Return the slope of log seconds over log sizes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(axis: Axis, *, quick: bool) -> dict[str, Any]:
    """Return the times of an axis and the exponent of the least ones."""
    tools = {str(size): axis.make(size) for size in axis.sizes}
    taken = take_turns(tools, 1 if quick else axis.rounds, warmup=0 if quick else 1)
    spreads = {size: Spread.of(seconds) for size, seconds in taken.items()}
    return {
        "what": axis.what,
        "over": axis.over,
        "held": axis.held,
        "seconds": spreads,
        "exponent": exponent(axis.sizes, [spread.min for spread in spreads.values()]),
    }


def report(found: list[dict[str, Any]]) -> None:
    """Print the times of all axes, and those of a run of the matrices."""
    rows = [
        (
            each["what"],
            f"{each['over']} ({each['held']})",
            ", ".join(f"{size}: {1e3 * s.min:.3g}" for size, s in each["seconds"].items()),
            f"{each['exponent']:.2f}",
        )
        for each in found
    ]
    show("Growth", ("what", "over", "size: least ms", "exponent"), rows)
    runs = [
        (f"{size} {each['over']}", f"{spread.min / int(size):.2f}")
        for each in found
        if each["what"] == "matrix"
        for size, spread in each["seconds"].items()
    ]
    show("Matrix of tiny runs", ("runs", "least wall seconds a run"), runs)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLBENCH_CACHE"] = str(Path(folder))
        found = [measure(axis, quick=options.quick) for axis in AXES]
    report(found)
    finish({"axes": found}, options.json)


if __name__ == "__main__":
    main()
