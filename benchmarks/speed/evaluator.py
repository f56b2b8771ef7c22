"""CPU and wall seconds and memory of mlbench's evaluator and k-means beside those of other tools.

    python benchmarks/speed/evaluator.py [--search] [--sop] [--shape NAME] [--threads N]
        [--device cuda] [--alone] [--kmeans] [--quick] [--json PATH]

Random clustered unit embeddings of the shape of CUB's test set, with ``--sop`` of SOP's too (half
an hour): mlbench, pytorch-metric-learning's AccuracyCalculator, and the N x N argsort of
SoftTriple's authors; then k-means beside scikit-learn's. Times are taken in alternation within one
process, memory in one process per tool. With ``--search`` the exact search alone, beside faiss's
``IndexFlatIP`` and a bare product of matrices: 60 neighbours of each image (12 at SOP's size); and
the comparison of all pairs. With ``--device cuda`` mlbench's part is done there, and only its wall
clock says anything; memory is then not measured. With ``--alone`` mlbench's evaluator alone is
timed, with ``--kmeans`` the k-means alone.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from _measure import Seconds, Spread, arguments, finish, product_limit, ratio, show, take_turns
from torch import Tensor

OURS = "mlbench"
METRICS = ("R@1", "R-Precision", "MAP@R")
RESTARTS = 10
Values = dict[str, float]
Tool = Callable[[Tensor, Tensor], Values]


@dataclass(frozen=True)
class Shape:
    """A test set's shape, and how often each tool is timed on it."""

    name: str
    images: int
    dim: int
    classes: int
    tools: tuple[str, ...]
    rounds: int
    noise: float = 0.15
    neighbors: int = 12

    @property
    def flops(self) -> float:
        """Floating-point operations of all similarities."""
        return 2.0 * self.images**2 * self.dim

    @property
    def bytes(self) -> float:
        """Bytes of all similarities, written once and read once."""
        return 8.0 * self.images**2


CUB = Shape("CUB", 5924, 64, 100, (OURS, "calculator", "argsort"), 5, neighbors=60)
SOP64 = Shape("SOP64", 60502, 64, 11316, (OURS, "calculator"), 3)
SOP512 = Shape("SOP512", 60502, 512, 11316, (OURS, "calculator"), 2, noise=0.1)
SHAPES = {shape.name: shape for shape in (CUB, SOP64, SOP512)}


def alone(shape: Shape) -> Shape:
    """Return a shape on which mlbench alone is timed."""
    return replace(shape, tools=(OURS,))


def make_data(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return unit embeddings ``(N, D)`` around one centre a class, and labels ``(N,)``."""
    generator = torch.Generator().manual_seed(0)
    rest = torch.randint(shape.classes, (shape.images - 2 * shape.classes,), generator=generator)
    labels = torch.cat((torch.arange(shape.classes).repeat(2), rest))
    centers = torch.randn(shape.classes, shape.dim, generator=generator)
    noise = torch.randn(shape.images, shape.dim, generator=generator)
    rows = torch.nn.functional.normalize(centers)[labels] + shape.noise * noise
    return torch.nn.functional.normalize(rows), labels


def load_tool(name: str) -> Tool:
    """Import a tool and return what computes R@1, R-Precision and MAP@R with it."""
    if name == OURS:
        return _load_mlbench()
    return _load_calculator() if name == "calculator" else _argsort


def _load_mlbench() -> Tool:
    from mlbench.metrics.evaluation import evaluate_queries, summarize

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


def alternate(tools: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """Return CPU seconds (of all threads) and wall seconds of tools that take turns."""
    cpu: Seconds = {name: [] for name in tools}

    def timed(name: str, tool: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            tool()
            cpu[name].append(time.process_time() - started)

        return run

    turns = {name: timed(name, tool) for name, tool in tools.items()}
    return {"wall": take_turns(turns, rounds, warmup=0), "cpu": cpu}


def time_tools(shape: Shape, rounds: int, device: str) -> dict[str, Any]:
    """Time the evaluators after one round on a tenth of the data that is not measured."""
    embeddings, labels = make_data(shape)
    loaded = {name: load_tool(name) for name in shape.tools}
    rows = {name: embeddings.to(device) if name == OURS else embeddings for name in loaded}
    values: dict[str, Values] = {}

    def turn(name: str) -> None:
        values[name] = loaded[name](rows[name], labels)

    for name, tool in loaded.items():
        tool(rows[name][::10].contiguous(), labels[::10])
    tools = {name: lambda name=name: turn(name) for name in loaded}
    return {**alternate(tools, rounds), "values": values, "product_limit": product_limit()}


def time_search(shape: Shape, rounds: int, device: str) -> dict[str, Any]:
    """Time the exact search for the nearest neighbours of all images, and all their pairs."""
    import faiss

    from mlbench.metrics.evaluation import evaluate_pairs
    from mlbench.metrics.neighbors import nearest

    rows, labels = make_data(shape)
    rows = rows.to(device)
    array = rows.cpu().numpy()

    def flat() -> None:
        index = faiss.IndexFlatIP(shape.dim)
        index.add(array)
        index.search(array, shape.neighbors + 1)  # it has no way to leave the query itself out

    def product() -> None:
        for block in rows.split(1024):
            torch.mm(block, rows.T)

    tools = {
        OURS: lambda: nearest(rows, rows, shape.neighbors, exclude_self=True),
        "faiss IndexFlatIP": flat,
        "product alone": product,
        "evaluate_pairs": lambda: evaluate_pairs(rows, labels),
    }
    nearest(rows[::10], rows[::10], shape.neighbors)
    return alternate(tools, rounds)


def measure_memory(shape: Shape, name: str) -> dict[str, float]:
    """Return a tool's peak memory in GB above this process with the inputs in it (on Linux)."""
    embeddings, labels = make_data(shape)
    tool = load_tool(name)
    tool(embeddings[:64], labels[:64] % 2)
    # The kernel forgets the peak that making the data had.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    tool(embeddings, labels)
    return {"gigabytes": (_status("VmHWM") - before) * 1024 / 1e9}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def time_kmeans(shape: Shape, rounds: int, device: str) -> dict[str, Any]:
    """Time ten restarts of each k-means; then take the inertia of single restarts of both."""
    from sklearn.cluster import KMeans

    from mlbench.metrics.kmeans import kmeans

    points = make_data(shape)[0].to(device)
    array = points.cpu().numpy()
    kmeans(points[::10], shape.classes)
    KMeans(shape.classes).fit(array[::10])
    ten: dict[str, Any] = {"n_init": RESTARTS}  # typed as a string there
    tools = {
        OURS: lambda: kmeans(points, shape.classes, restarts=RESTARTS),
        "sklearn": lambda: KMeans(shape.classes, **ten, random_state=0).fit(array),
    }
    taken = alternate(tools, rounds)
    count = rounds * RESTARTS
    ours = kmeans(points, shape.classes, restarts=count)
    theirs = [KMeans(shape.classes, random_state=seed).fit(array) for seed in range(count)]
    inertia = {
        OURS: [run.inertia for run in ours],
        "sklearn": [cast(float, run.inertia_) for run in theirs],
    }
    iterations = statistics.fmean(run.iterations for run in ours)
    flops = RESTARTS * kmeans_flops(shape, iterations)
    limit = product_limit()
    return {
        **taken,
        "inertia": inertia,
        "iterations": iterations,
        "flops": flops,
        "product_limit": limit,
    }


def kmeans_flops(shape: Shape, iterations: float) -> float:
    """Return the operations of a restart if every iteration compared all points and centres."""
    trials = 2 + int(math.log(shape.classes))
    columns = shape.classes * (trials + iterations)
    return 2.0 * shape.images * shape.dim * columns


def run_job(shape: Shape, job: str, quick: bool, device: str) -> dict[str, Any]:
    """Do one measurement: ``time``, ``search``, ``kmeans``, or ``memory:TOOL``."""
    kind, _, tool = job.partition(":")
    if kind == "memory":
        return measure_memory(shape, tool)
    rounds = 1 if quick else shape.rounds
    jobs = {"time": time_tools, "search": time_search, "kmeans": time_kmeans}
    return jobs[kind](shape, rounds, device)


def in_subprocess(
    shape: Shape, job: str, threads: int, quick: bool, device: str = "cpu"
) -> dict[str, Any]:
    """Run one measurement in a fresh process whose libraries all use ``threads`` threads."""
    command = [sys.executable, __file__, "--job", job, "--shape", shape.name, "--device", device]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # Threads that wait by spinning would count as CPU time that a tool needs.
    environment = os.environ | dict.fromkeys(names, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    command += ["--quick"] * quick + ["--alone"] * (shape.tools == (OURS,))
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def columns(result: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a tool's seconds, and the ratios of its seconds to ours round by round."""
    return (
        *(f"{Spread.of(result[clock][name]).median:.3f}" for clock in ("cpu", "wall")),
        *(str(ratio(result[clock], name, OURS)) for clock in ("cpu", "wall")),
    )


TIMES = ("tool", "CPU s", "wall s", "CPU / ours", "wall / ours")


def work(flops: float, result: Mapping[str, Any]) -> str:
    """Return what was counted and how much of the machine's product rate that is."""
    seconds = Spread.of(result["cpu"][OURS]).median
    limit = result["product_limit"]
    return (
        f"{OURS}: {flops / 1e9:.1f} GFLOP counted, {flops / seconds / 1e9:.0f} GFLOP per CPU s, "
        f"{flops / seconds / limit:.0%} of a 2048-cube product's {limit / 1e9:.0f}"
    )


def benchmark_search(shape: Shape, threads: int, quick: bool, device: str) -> dict[str, Any]:
    """Measure exact searches on one shape."""
    result = in_subprocess(shape, "search", threads, quick, device)
    title = f"{shape.name}: {shape.neighbors} of {shape.images} x {shape.dim}, {threads} threads"
    show(title, TIMES, [(name, *columns(result, name)) for name in result["cpu"]])
    return {"shape": asdict(shape), **result}


def benchmark(shape: Shape, threads: int, quick: bool, device: str) -> dict[str, Any]:
    """Measure the evaluators on one shape."""
    result = in_subprocess(shape, "time", threads, quick, device)
    result["gigabytes"] = {
        name: in_subprocess(shape, f"memory:{name}", threads, quick)["gigabytes"]
        if device == "cpu"
        else math.nan
        for name in shape.tools
    }
    rows = [
        (
            name,
            *columns(result, name),
            f"{result['gigabytes'][name]:.2f}",
            *(f"{result['values'][name][metric]:.6f}" for metric in METRICS),
        )
        for name in shape.tools
    ]
    title = (
        f"{shape.name}: {shape.images} x {shape.dim}, {shape.classes} classes, {threads} threads"
    )
    show(title, (*TIMES, "GB above inputs", *METRICS), rows)
    print(work(shape.flops, result) + f"; {shape.bytes / 1e9:.2f} GB of similarities\n")
    return {"shape": asdict(shape), **result}


def benchmark_kmeans(shape: Shape, threads: int, quick: bool, device: str) -> dict[str, Any]:
    """Measure k-means on one shape."""
    result = in_subprocess(shape, "kmeans", threads, quick, device)
    rows = [
        (name, *columns(result, name), _mean_and_error(result["inertia"][name]))
        for name in (OURS, "sklearn")
    ]
    title = f"k-means, {RESTARTS} restarts, {shape.images} x {shape.dim}, {shape.classes} clusters"
    show(title, (*TIMES, "inertia of a restart"), rows)
    print(work(result["flops"], result) + " (as if every iteration compared all)\n")
    return {"shape": asdict(shape), **result}


def _mean_and_error(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {error:.2f} (s.e., n = {len(values)})"


def main() -> None:
    """Parse the command line and run."""
    parser = arguments(__doc__)
    parser.add_argument("--sop", action="store_true", help="SOP's shape as well (half an hour)")
    parser.add_argument("--search", action="store_true", help="the exact search alone")
    parser.add_argument("--threads", type=int, default=2, help="threads of each library")
    parser.add_argument("--device", default="cpu", help="where mlbench's part is done")
    parser.add_argument("--alone", action="store_true", help="mlbench's evaluator alone")
    parser.add_argument("--kmeans", action="store_true", help="k-means alone")
    parser.add_argument("--job", help="used by the benchmark itself")
    parser.add_argument("--shape", choices=SHAPES, help="this shape alone")
    options = parser.parse_args()
    if options.job:
        shape = alone(SHAPES[options.shape]) if options.alone else SHAPES[options.shape]
        job = run_job(shape, options.job, options.quick, options.device)
        print(json.dumps(job))
        return
    shapes = (CUB, SOP64, SOP512) if options.sop else (CUB,)
    if options.shape:
        shapes = (SHAPES[options.shape],)
    how = options.threads, options.quick, options.device
    if options.search:
        searches = [benchmark_search(shape, *how) for shape in shapes]
        finish({"threads": options.threads, "searches": searches}, options.json, options.device)
        return
    figures: dict[str, Any] = {"threads": options.threads, "device": options.device}
    if options.alone:
        shapes = tuple(map(alone, shapes))
    if not options.kmeans:
        figures["evaluators"] = [benchmark(shape, *how) for shape in shapes]
    if not options.alone:
        figures["kmeans"] = benchmark_kmeans(CUB, *how)
    finish(figures, options.json, options.device)


if __name__ == "__main__":
    main()
