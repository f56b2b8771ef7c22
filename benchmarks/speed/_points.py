"""The points that scale.py's cost model stands on: each measured on one core."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import torch
from _loops import CLASSES, Case, ours
from _photos import image_set, photos, pixels
from evaluator import Shape, make_data

from mlbench.datasets.pixels import PixelCache, decoded
from mlbench.metrics.evaluation import evaluate_queries
from mlbench.metrics.kmeans import kmeans
from mlbench.training.batches import ImageSource
from mlbench.training.crops import open_crops
from mlbench.training.embed import embed

DIM, SIDE, QUERIES = 64, 256, 2000
PER_CLASS = 60502 / 11316
"""Images of a class in SOP's test set; larger sets are taken to be like it."""

PROBES, LINKS, WIDTH = 64, 32, 64
"""Lists that IVF looks into; links of a vector and candidates of a search in HNSW."""

Floats = npt.NDArray[np.float32]
Work = Callable[[], object]


@dataclass(frozen=True)
class Point:
    """A measured figure.

    Attributes:
        value: in ``unit``.
        unit: e.g. ``images/s``.
        how: what was measured.
    """

    value: float
    unit: str
    how: str


Points = dict[str, Point]


@dataclass(frozen=True)
class Found:
    """What an index returned: neighbours ``(Q, 10)``, and seconds of building and searching."""

    neighbors: npt.NDArray[np.int64]
    build: float
    search: float


def measure(*, quick: bool) -> Points:
    """Measure all points; ``quick`` takes smaller ones."""
    part = 4 if quick else 1
    with photos(256 // part) as paths:
        points = decoding(paths) | network(paths, steps=4 // part)
    points |= search("exact search, few classes", 5924 // part, 100)
    points |= search("exact search, many", 16000 // part, round(16000 / part / PER_CLASS))
    points |= clustering("k-means, few", 5924 // part, 100)
    points |= clustering("k-means, many", 12000 // part, round(12000 / part / PER_CLASS))
    return points | approximate(200_000 // part)


def seconds(work: Work, rounds: int = 3) -> float:
    """Return the least time of some rounds after one that is not measured."""
    taken = []
    for _ in range(1 + rounds):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def decoding(paths: list[Path]) -> Points:
    """Measure decoding and resizing, and the bytes that it makes of an image."""
    images = image_set(paths, 1)
    sizes = [image.nbytes for image in decoded(images, SIDE) if isinstance(image, np.ndarray)]
    taken = seconds(lambda: [None for _ in decoded(images, SIDE)], rounds=2)
    how = f"{len(paths)} JPEG files to {SIDE} px"
    return {
        "decode": Point(1e3 * taken / len(paths), "ms an image", how),
        "pixel bytes": Point(float(np.mean(sizes)), "bytes an image", f"mean of {how}"),
    }


def network(paths: list[Path], steps: int) -> Points:
    """Measure training and embedding with EfficientNet-Lite0 at 128 px."""
    case = Case("efficientnet_lite0", 128, 32, steps, torch.device("cpu"))
    with pixels(image_set(paths, CLASSES), case.cached_side) as cache:
        train = seconds(ours(case, cache, compiled=False), rounds=2)
        forward = seconds(_embedding(case, cache), rounds=2)
    what = "EfficientNet-Lite0, 128 px"
    return {
        "train": Point(case.images / train, "images/s", f"{what}, {steps} steps of 32"),
        "embed": Point(len(paths) / forward, "images/s", f"{what}, {len(paths)} images"),
    }


def _embedding(case: Case, cache: PixelCache) -> Work:
    source = ImageSource(cache, open_crops(cache, case.device), case.recipe().input)
    model, _ = case.network(torch.channels_last)
    return lambda: embed(model, source)


def search(name: str, images: int, classes: int) -> Points:
    """Measure exact search by its pairs, ``images`` squared."""
    rows, labels = make_data(Shape("search", images, DIM, classes, (), 1))
    taken = seconds(lambda: evaluate_queries(rows, labels), rounds=2)
    how = f"mlbench's evaluation, {images:,} x {images:,}, {DIM} dims, {classes:,} classes"
    return {name: Point(images**2 / taken, "pairs/s", how)}


def clustering(name: str, images: int, clusters: int) -> Points:
    """Measure k-means by the distances that plain Lloyd would take, and count its iterations."""
    rows, _ = make_data(Shape("k-means", images, DIM, clusters, (), 1))
    run = kmeans(rows, clusters)[0]
    taken = seconds(lambda: kmeans(rows, clusters), rounds=1)
    passes = run.iterations + 2 + int(math.log(clusters))
    how = f"one restart, {images:,} x {DIM} into {clusters:,}"
    return {
        name: Point(images * clusters * passes / taken, "point-centre distances/s", how),
        f"{name}: passes": Point(passes, "passes", f"{how}; Lloyd's and the trials of the start"),
    }


def approximate(gallery: int) -> Points:
    """Measure faiss's IVF and HNSW beside its exact search, their neighbours beside exact ones."""
    faiss.omp_set_num_threads(1)
    count = gallery + QUERIES
    rows, labels = make_data(Shape("ann", count, DIM, int(count / PER_CLASS), (), 1))
    base, queries, classes = rows[:gallery].numpy(), rows[gallery:].numpy(), labels.numpy()
    exact = _found(faiss.IndexFlatIP(DIM), base, queries)
    made = {"IVF": _ivf(gallery), "HNSW": _hnsw()}
    points: Points = {}
    for name, index in made.items():
        found = _found(index, base, queries)
        how = f"{QUERIES:,} queries in {gallery:,} x {DIM}, clustered"
        points |= _speed(name, found, gallery, how) | _losses(name, found, exact, classes, how)
    return points


def lists(gallery: int) -> int:
    """Return the lists of an IVF index by faiss's rule, four times the root of its size."""
    return round(4 * math.sqrt(gallery))


def _ivf(gallery: int) -> faiss.Index:
    count = lists(gallery)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, count, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = PROBES
    # faiss's own 25 iterations would take most of the time there is.
    index.cp.niter, index.cp.max_points_per_centroid = 10, 40
    return index


def _hnsw() -> faiss.Index:
    index = faiss.IndexHNSWFlat(DIM, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = WIDTH
    return index


def _found(index: faiss.Index, base: Floats, queries: Floats) -> Found:
    started = time.perf_counter()
    index.train(base)
    index.add(base)
    built = time.perf_counter()
    neighbors = index.search(queries, 10)[1]
    return Found(neighbors, built - started, time.perf_counter() - built)


def _speed(name: str, found: Found, gallery: int, how: str) -> Points:
    return {
        f"{name} build": Point(1e6 * found.build / gallery, "us a vector", how),
        f"{name} search": Point(1e3 * found.search / QUERIES, "ms a query", how),
    }


def _losses(
    name: str, found: Found, exact: Found, classes: npt.NDArray[np.int64], how: str
) -> Points:
    """Return the exact neighbours missed, and R@k less than exact search's, in percent."""
    points: Points = {}
    for k in (1, 10):
        pairs = zip(found.neighbors[:, :k], exact.neighbors[:, :k], strict=True)
        kept = float(np.mean([np.isin(b, a).mean() for a, b in pairs]))
        points[f"{name} missed@{k}"] = Point(100 * (1 - kept), "% of exact neighbours", how)
        lost = _recall(exact, classes, k) - _recall(found, classes, k)
        points[f"{name} R@{k} lost"] = Point(lost, "points of R@k", how)
    return points


def _recall(found: Found, classes: npt.NDArray[np.int64], k: int) -> float:
    own = classes[-QUERIES:, None]
    # Where an index finds fewer than ten it says -1, which is nobody's class.
    theirs = np.where(found.neighbors < 0, -1, classes[found.neighbors])
    return 100 * float((theirs[:, :k] == own).any(axis=1).mean())
