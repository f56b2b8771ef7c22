"""CPU seconds and recall of the approximate index beside the exact search.

    python benchmarks/speed/approximate.py [--images N] [--noise S] [--threads N]

Clustered unit embeddings of 64 dimensions, 50 images a class, around whose centre they scatter by S
in each dimension; 1,000 queries, 10 neighbours each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from _measure import show
from evaluator import Shape, make_data

T = TypeVar("T")
DIM, QUERIES, TOP = 64, 1000, 10


def timed(work: Callable[[], T]) -> tuple[str, T]:
    """Return the CPU seconds of all threads, and what the work gives."""
    started = time.process_time()
    result = work()
    return f"{time.process_time() - started:.3g}", result


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from mlbench.metrics.neighbors import nearest
    from mlbench.models.approximate import find, make_cells, recall

    images, noise = options.images, options.noise
    shape = Shape("gallery", images, DIM, images // 50, (), 1, noise=noise)
    gallery = make_data(shape)[0].numpy()
    queries = gallery[:: max(1, len(gallery) // QUERIES)][:QUERIES]
    building, cells = timed(lambda: make_cells(gallery))
    rows = [
        ("exact search", timed(lambda: nearest(queries, gallery, TOP))[0], "1"),
        ("building the index", building, ""),
        (
            f"search of {cells.probes} of {len(cells.centroids)} cells",
            timed(lambda: find(cells, gallery, queries, TOP))[0],
            f"{recall(cells, gallery):.4f}",
        ),
    ]
    title = f"{images:,} x {DIM}, noise {noise:g}, {options.threads} threads"
    show(title, ("what", "CPU s", "recall of 10"), rows)


if __name__ == "__main__":
    main()
