"""Approximate search of large galleries: only the cells nearest to a query are looked into.

An inverted file (Jégou et al., PAMI 2011) by faiss, which is imported here and nowhere else. An
index file keeps plain arrays of it, the centroids and the cell of each image, and they are checked
like any other: faiss's own files are not read, because its reader trusts them. So images can be
added and removed as rows. A graph (HNSW) could be kept in faiss's form alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlbench.metrics.neighbors import nearest

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

LARGE = 100_000
"""Images from which on an index is approximate unless something else is asked for."""

GOAL = 0.99
"""Recall at which no more cells are looked into."""

_PAYS = 16
"""Looking into an image of a cell costs about ten times its part of an exact search's product."""

_SAMPLE, _TOP = 200, 10
_POINTS_PER_CELL = 64


@dataclass(frozen=True, eq=False)
class Cells:
    """A gallery in cells.

    Attributes:
        centroids: float32 ``(C, D)``.
        of: int32 ``(N,)`` the cell of each image.
        probes: cells that are looked into for a query.
    """

    centroids: Vectors
    of: npt.NDArray[np.int32]
    probes: int

    @property
    def pays(self) -> bool:
        """Whether a query looks into so few cells that an exact search would take longer."""
        return _PAYS * self.probes <= len(self.centroids)


def make_cells(gallery: Vectors) -> Cells:
    """Cluster a gallery ``(N, D)`` of unit rows, and choose how many cells a query needs."""
    count = max(1, min(len(gallery), round(4 * len(gallery) ** 0.5)))
    clustering = _faiss().Kmeans(
        gallery.shape[1],
        count,
        niter=10,
        seed=1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_PER_CELL,
    )
    clustering.train(gallery)
    centroids = np.ascontiguousarray(clustering.centroids, np.float32)
    return choose_probes(Cells(centroids, assign(centroids, gallery), 1), gallery)


def assign(centroids: Vectors, rows: Vectors) -> npt.NDArray[np.int32]:
    """Return the cell ``(N,)`` of each row: that of the centroid with the largest product."""
    return _flat(centroids).search(rows, 1)[1][:, 0].astype(np.int32)


def choose_probes(cells: Cells, gallery: Vectors) -> Cells:
    """Return the cells with the least number of probes, a power of two, that reaches the goal."""
    sample = _exact(gallery)
    probes = 1
    while probes < len(cells.centroids):
        if _recall(replace(cells, probes=probes), gallery, *sample) >= GOAL:
            break
        probes = min(2 * probes, len(cells.centroids))
    return replace(cells, probes=probes)


def recall(cells: Cells, gallery: Vectors) -> float:
    """Return the share of the exact 10 nearest that is found, of 200 images of the gallery."""
    return _recall(cells, gallery, *_exact(gallery))


def _exact(gallery: Vectors) -> tuple[Rows, Rows]:
    """Return some rows of the gallery, and the nearest of each, itself or a copy among them."""
    sample = np.linspace(0, len(gallery) - 1, min(_SAMPLE, len(gallery))).astype(np.int64)
    return sample, nearest(gallery[sample], gallery, min(_TOP + 1, len(gallery)))


def _recall(cells: Cells, gallery: Vectors, sample: Rows, exact: Rows) -> float:
    found = find(cells, gallery, gallery[sample], exact.shape[1])
    others = [row[row != own] for row, own in zip(exact, sample, strict=True)]
    hits = [len(np.intersect1d(*each)) for each in zip(others, found, strict=True)]
    return sum(hits) / max(1, sum(map(len, others)))


def find(cells: Cells, gallery: Vectors, queries: Vectors, top: int) -> Rows:
    """Return rows ``(Q, top)`` of the gallery, best first; -1 where the cells hold no more.

    Args:
        cells: of the gallery.
        gallery: ``(N, D)`` unit rows.
        queries: ``(Q, D)`` unit rows.
        top: rows wanted.
    """
    faiss = _faiss()
    dim, count = gallery.shape[1], len(cells.centroids)
    index = faiss.IndexIVFFlat(_flat(cells.centroids), dim, count, faiss.METRIC_INNER_PRODUCT)
    index.is_trained, index.nprobe = True, cells.probes
    rows, of = np.arange(len(gallery)), cells.of.astype(np.int64)
    gallery = np.ascontiguousarray(gallery)
    index.add_core(len(gallery), *map(faiss.swig_ptr, (gallery, rows, of)))
    return index.search(np.ascontiguousarray(queries), top)[1]


def _flat(rows: Vectors) -> Any:
    flat = _faiss().IndexFlatIP(rows.shape[1])
    flat.add(np.ascontiguousarray(rows))
    return flat


@functools.cache
def _import() -> Any:
    import faiss

    return faiss


def _faiss() -> Any:
    """Return faiss with as many threads as torch has: it brings an OpenMP runtime of its own."""
    faiss = _import()
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
