"""CPU seconds and memory of mlbench's evaluator beside those of other tools.

    python benchmarks/speed/evaluator.py [--sop] [--json PATH]

Compared on random clustered unit embeddings of the shape of CUB's test set (or SOP's): mlbench,
pytorch-metric-learning's AccuracyCalculator, and the naive N x N argsort; then k-means against
scikit-learn's. Times are taken in alternation within one process, memory in one process per tool.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

OURS = "mlbench"
METRICS = ("R@1", "R-Precision", "MAP@R")
Values = dict[str, float]
Tool = Callable[[Tensor, Tensor], Values]


@dataclass(frozen=True)
class Shape:
    """A test set's shape, and how often each tool is timed on it."""

    name: str
    images: int
    classes: int
    tools: tuple[str, ...]
    repeats: int


CUB = Shape("CUB", 5924, 100, (OURS, "calculator", "argsort"), 5)
SOP = Shape("SOP", 60502, 11316, (OURS, "calculator"), 2)
SHAPES = {shape.name: shape for shape in (CUB, SOP)}
RESTARTS = 10


def make_data(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return unit embeddings ``(N, 64)`` around one centre a class, and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.randint(shape.classes, (shape.images - 2 * shape.classes,), generator=generator)
    labels = torch.cat((torch.arange(shape.classes).repeat(2), rest))
    centers = torch.nn.functional.normalize(torch.randn(shape.classes, 64, generator=generator))
    noise = 0.15 * torch.randn(shape.images, 64, generator=generator)
    return torch.nn.functional.normalize(centers[labels] + noise), labels


def load_tool(name: str) -> Tool:
    """Import a tool and return what computes R@1, R-Precision and MAP@R with it."""
    return {OURS: _load_mlbench, "calculator": _load_calculator, "argsort": lambda: _argsort}[
        name
    ]()


def _load_mlbench() -> Tool:
    from mlbench.metrics import evaluate_queries, summarize

    def run(embeddings: Tensor, labels: Tensor) -> Values:
        summary = summarize(evaluate_queries(embeddings, labels))
        return {name: summary[name] for name in METRICS}

    return run


def _load_calculator() -> Tool:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include, k="max_bin_count", device=torch.device("cpu"))

    def run(embeddings: Tensor, labels: Tensor) -> Values:
        values = calculator.get_accuracy(embeddings, labels)
        return {name: values[key] for name, key in zip(METRICS, include, strict=True)}

    return run


def _argsort(embeddings: Tensor, labels: Tensor) -> Values:
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-torch.inf)
    order = similarity.argsort(dim=1, descending=True)[:, :-1]
    matches = labels[order] == labels[:, None]
    relevant = matches.sum(1)
    ranks = torch.arange(1, matches.shape[1] + 1)
    found = matches & (ranks <= relevant[:, None])
    precision = found.cumsum(1) / ranks
    return {
        "R@1": matches[:, 0].double().mean().item(),
        "R-Precision": (found.sum(1) / relevant).double().mean().item(),
        "MAP@R": ((precision * found).sum(1) / relevant).double().mean().item(),
    }


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of a call, over all threads, and its result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def time_tools(shape: Shape) -> dict[str, Any]:
    """Time the tools in alternation after one unmeasured round on a tenth of the data."""
    embeddings, labels = make_data(shape)
    tools = {name: load_tool(name) for name in shape.tools}
    for tool in tools.values():
        tool(embeddings[::10].contiguous(), labels[::10])
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    values: dict[str, Values] = {}
    for _ in range(shape.repeats):
        for name, tool in tools.items():
            spent, values[name] = cpu_seconds(lambda tool=tool: tool(embeddings, labels))
            seconds[name].append(spent)
    return {"seconds": seconds, "values": values}


def measure_memory(shape: Shape, name: str) -> dict[str, float]:
    """Return a tool's peak memory in GB above this process with the inputs in it."""
    embeddings, labels = make_data(shape)
    tool = load_tool(name)
    tool(embeddings[:64], labels[:64] % 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tool(embeddings, labels)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"gigabytes": (after - before) * 1024 / 1e9}


def time_kmeans(shape: Shape) -> dict[str, Any]:
    """Time ten restarts of each k-means in alternation; inertia is the mean per restart."""
    from sklearn.cluster import KMeans

    from mlbench.kmeans import kmeans

    points = make_data(shape)[0]
    array = points.numpy()

    def ours(seed: int) -> list[float]:
        return [r.inertia for r in kmeans(points, shape.classes, restarts=RESTARTS, seed=seed)]

    def sklearn(seed: int) -> list[float]:
        states = range(seed * RESTARTS, (seed + 1) * RESTARTS)
        runs = [KMeans(shape.classes, random_state=state).fit(array) for state in states]
        return [cast(float, run.inertia_) for run in runs]

    tools = {OURS: ours, "sklearn": sklearn}
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    inertia: dict[str, list[float]] = {name: [] for name in tools}
    for seed in range(shape.repeats):
        for name, tool in tools.items():
            spent, found = cpu_seconds(lambda tool=tool, seed=seed: tool(seed))
            seconds[name].append(spent)
            inertia[name] += found
    means = {name: {"mean inertia": statistics.fmean(found)} for name, found in inertia.items()}
    return {"seconds": seconds, "values": means}


def in_subprocess(shape: Shape, job: str, threads: int) -> dict[str, Any]:
    """Run one measurement in a fresh process whose libraries all use ``threads`` threads."""
    command = [sys.executable, __file__, "--job", job, "--shape", shape.name]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_job(shape: Shape, job: str) -> dict[str, Any]:
    """Do one measurement: ``time``, ``kmeans``, or ``memory:TOOL``."""
    kind, _, tool = job.partition(":")
    if kind == "memory":
        return measure_memory(shape, tool)
    return {"time": time_tools, "kmeans": time_kmeans}[kind](shape)


def ratios(seconds: dict[str, list[float]], name: str) -> str:
    """Return "median (min-max)" of another tool's CPU time over ours, round by round."""
    rounds = [other / own for other, own in zip(seconds[name], seconds[OURS], strict=True)]
    return f"{statistics.median(rounds):.2f} ({min(rounds):.2f}-{max(rounds):.2f})"


def print_table(title: str, result: dict[str, Any]) -> None:
    """Print one row per tool."""
    names = list(next(iter(result["values"].values())))
    table = Table("tool", "CPU s", "CPU s / ours", "GB above inputs", *names, title=title)
    for name, spent in result["seconds"].items():
        memory = result.get("gigabytes", {}).get(name)
        table.add_row(
            name,
            f"{statistics.median(spent):.2f}",
            ratios(result["seconds"], name),
            "" if memory is None else f"{memory:.2f}",
            *(f"{result['values'][name][metric]:.6f}" for metric in names),
        )
    Console(width=120).print(table)


def benchmark(shape: Shape, threads: int) -> dict[str, Any]:
    """Measure the evaluators on one shape, and k-means too on the small one."""
    result = in_subprocess(shape, "time", threads)
    result["gigabytes"] = {
        name: in_subprocess(shape, f"memory:{name}", threads)["gigabytes"] for name in shape.tools
    }
    print_table(f"{shape.name}: {shape.images} x 64, {shape.classes} classes", result)
    report = {"shape": asdict(shape), "evaluators": result}
    if shape is CUB:
        report["kmeans"] = in_subprocess(shape, "kmeans", threads)
        print_table(f"k-means, {RESTARTS} restarts, {shape.classes} clusters", report["kmeans"])
    return report


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sop", action="store_true", help="SOP's shape as well (minutes)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each library")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(SHAPES[options.shape], options.job)))
        return
    shapes = [
        benchmark(shape, options.threads) for shape in ((CUB, SOP) if options.sop else (CUB,))
    ]
    system = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    if options.json:
        report = {"system": system, "threads": options.threads, "shapes": shapes}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
