"""Retrieval and clustering metrics: R@k, MAP@R, R-Precision and NMI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from mlbench.arrays import Labels
from mlbench.errors import MlbenchError
from mlbench.metrics.kmeans import kmeans
from mlbench.metrics.neighbors import Groups, neighbor_blocks, unit_rows, working_memory
from mlbench.metrics.roc import Verification
from mlbench.metrics.sides import Side, as_sides
from mlbench.metrics.ties import TIE, first_highest
from mlbench.metrics.vectors import LabelsLike, Vectors, as_labels, as_vectors
from mlbench.metrics.verification import all_figures, compare_pairs
from mlbench.scalars import check_seed, plain, whole_number
from mlbench.system.known_state import known_state


@dataclass(frozen=True)
class QueryResults:
    """What retrieval found, query by query.

    Attributes:
        ks: the k of each column of ``hits``.
        neighbors: ``(Q, min(max(ks), G))`` int64 gallery indices, best first; -1 where none is
            left.
        hits: ``(Q, len(ks))`` bool: is one of the first k neighbours of the query's class?
        ap_at_r: ``(Q,)`` float64, the query's term of MAP@R; 0 for a lone query.
        r_precision: ``(Q,)`` float64; 0 for a lone query.
        relevant: ``(Q,)`` int64: R, the images of the query's class that could be found.
        n_gallery: ``G``.
        at_depth: by metric, ``P@k`` and ``mAP@k`` for each depth, ``(Q,)`` float64 terms.
    """

    ks: tuple[int, ...]
    neighbors: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]
    ap_at_r: npt.NDArray[np.float64]
    r_precision: npt.NDArray[np.float64]
    relevant: npt.NDArray[np.int64]
    n_gallery: int
    at_depth: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, npt.NDArray[np.bool_] | npt.NDArray[np.float64]]:
        """By metric, the ``(Q,)`` scores that it is the mean of: ``R@k``, MAP@R and others."""
        hits = {f"R@{k}": column for k, column in zip(self.ks, self.hits.T, strict=True)}
        return {**hits, "MAP@R": self.ap_at_r, "R-Precision": self.r_precision, **self.at_depth}

    @property
    def n_query(self) -> int:
        """The number of queries."""
        return len(self.relevant)

    @property
    def n_lone(self) -> int:
        """The number of queries of whose class nothing could be found."""
        return int(np.count_nonzero(self.relevant == 0))


class Others(TypedDict, total=False):
    """What the functions below take alike, besides embeddings and labels."""

    gallery: Vectors | None
    gallery_labels: LabelsLike | None
    groups: LabelsLike | None
    gallery_groups: LabelsLike | None


def evaluate(
    embeddings: Vectors,
    labels: LabelsLike,
    *,
    gallery: Vectors | None = None,
    gallery_labels: LabelsLike | None = None,
    groups: LabelsLike | None = None,
    gallery_groups: LabelsLike | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    depths: Sequence[int] = (),
    verification: bool = False,
    nmi_restarts: int = 10,
    seed: int = 0,
    memory_mb: int | None = None,
) -> dict[str, float]:
    """Return all metrics of embeddings under mlbench's evaluation protocol.

    Without a gallery every row is a query against all others, excluding itself by index. With one,
    queries are searched in the gallery and nothing is excluded. Similarity is cosine; ties go to
    the lower index; a query without another image of its class is a miss and counted as lone.
    NMI uses only the queries (``embeddings``), also with a gallery.

    Args:
        embeddings: ``(Q, D)`` real numbers: a tensor, on whose device computation runs, or anything
            that NumPy or DLPack can read; masked and sparse arrays are rejected.
        labels: ``(Q,)`` integers, likewise.
        gallery: ``(G, D)``.
        gallery_labels: ``(G,)`` integers, given with ``gallery``.
        groups: ``(Q,)`` integers: images of one group, such as the frames of a video, never count
            as each other's neighbours. An image without a group has a number of its own.
        gallery_groups: ``(G,)`` integers, numbered as ``groups``; given if both ``groups`` and
            ``gallery`` are.
        ks: the k of R@k.
        depths: the k of P@k and mAP@k.
        verification: whether to also compare all pairs, as ``evaluate_pairs`` does.
        nmi_restarts: number of k-means restarts for NMI.
        seed: random seed of the k-means restarts, 0 .. 2^63 - 1.
        memory_mb: working memory of the neighbour search, in MiB above inputs and results; by
            default 256, and 2,048 on a GPU.

    Returns:
        ``R@k`` for each k, ``MAP@R``, ``R-Precision``, ``P@k`` and ``mAP@k`` for each depth, and
        ``NMI`` as fractions 0-1; with verification ``TAR@FAR=f`` for each false accept rate f that
        the number of pairs allows, ``EER``, and the cosines ``threshold@FAR=f``; then the counts
        ``n_query``, ``n_gallery`` and ``n_lone`` (ints).

    Raises:
        MlbenchError: empty or misshapen arrays, labels that are not integers, rows that are zero
            or not finite, or an option out of range.

    >>> import mlbench
    >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.8, 0.3]]
    >>> metrics = mlbench.evaluate(embeddings, labels=[0, 0, 1, 1], ks=(1, 2))
    >>> {name: round(metrics[name], 3) for name in ("R@1", "MAP@R", "NMI")}
    {'R@1': 0.75, 'MAP@R': 0.75, 'NMI': 0.344}
    """
    nmi_restarts, seed = whole_number(nmi_restarts, "nmi_restarts", 1), check_seed(seed)
    others: Others = {
        "gallery": gallery,
        "gallery_labels": gallery_labels,
        "groups": groups,
        "gallery_groups": gallery_groups,
    }
    results = evaluate_queries(
        embeddings, labels, **others, ks=ks, depths=depths, memory_mb=memory_mb
    )
    metrics = summarize(results)
    counts = {name: metrics.pop(name) for name in ("n_query", "n_gallery", "n_lone")}
    metrics["NMI"] = nmi(embeddings, labels, restarts=nmi_restarts, seed=seed)
    if verification:
        metrics |= all_figures(evaluate_pairs(embeddings, labels, **others))
    return {**metrics, **counts}


@known_state()
def evaluate_queries(
    embeddings: Vectors,
    labels: LabelsLike,
    *,
    gallery: Vectors | None = None,
    gallery_labels: LabelsLike | None = None,
    groups: LabelsLike | None = None,
    gallery_groups: LabelsLike | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    depths: Sequence[int] = (),
    memory_mb: int | None = None,
) -> QueryResults:
    """Return the retrieval results of each query, from one pass over its neighbours.

    Arguments and errors are those of ``evaluate``.

    >>> from mlbench.metrics import evaluate_queries
    >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.8, 0.3]]
    >>> results = evaluate_queries(embeddings, labels=[0, 0, 1, 1], ks=(1,))
    >>> results.neighbors.tolist()
    [[1], [0], [3], [1]]
    >>> results.hits[:, 0].tolist()
    [True, True, True, False]
    """
    queries, gallery_side = as_sides(
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        groups=groups,
        gallery_groups=gallery_groups,
    )
    searched = queries if gallery_side is None else gallery_side
    columns, deep = _check_ks(ks, "ks"), _check_ks(depths, "depths") if plain(depths) else ()
    exclude_self = gallery_side is None
    relevant = _count_relevant(queries, searched, exclude_self)
    depth = min(max(*columns, *deep, int(relevant.max())), len(searched.rows))
    results = _empty_results(columns, deep, relevant, len(searched.rows))
    blocks = neighbor_blocks(
        queries.rows,
        searched.rows,
        depth,
        exclude_self=exclude_self,
        memory_mb=working_memory(memory_mb, queries.rows.device),
        groups=_on_device(queries, searched),
    )
    for block, neighbors in blocks:
        of_class = searched.labels[neighbors] == queries.labels[block, None]
        _score(results, block, neighbors, of_class & (neighbors >= 0), deep)
    return results


def evaluate_pairs(
    embeddings: Vectors,
    labels: LabelsLike,
    *,
    gallery: Vectors | None = None,
    gallery_labels: LabelsLike | None = None,
    groups: LabelsLike | None = None,
    gallery_groups: LabelsLike | None = None,
) -> Verification:
    """Tell pairs of one class from pairs of two by a threshold on their cosine.

    All pairs of different images count, with a gallery all pairs of a query and a gallery image.
    Thresholds are multiples of 2^-15; besides a small block of pairs, 110 MB are taken.

    Arguments and errors are those of ``evaluate``.

    Raises:
        MlbenchError: also if there is no pair of one class, or none of two.

    >>> from mlbench.metrics import evaluate_pairs
    >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.8, 0.3]]
    >>> found = evaluate_pairs(embeddings, labels=[0, 0, 1, 1])
    >>> found.genuine, found.impostor, round(found.eer.value, 3)
    (2, 4, 0.5)
    """
    queries, searched = as_sides(
        embeddings,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        groups=groups,
        gallery_groups=gallery_groups,
    )
    found = compare_pairs(queries, searched)
    if found is None:
        raise MlbenchError("verification: needs a pair of images of one class, and one of two")
    return found


def summarize(results: QueryResults) -> dict[str, float]:
    """Return the means of the per-query results, named and ordered as ``evaluate`` does.

    >>> from mlbench.metrics import evaluate_queries, summarize
    >>> results = evaluate_queries([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9]], [0, 0, 1], ks=(1,))
    >>> summary = summarize(results)
    >>> round(summary["R@1"], 3), summary["n_lone"]
    (0.667, 1)
    """
    return {
        **{name: float(scores.mean()) for name, scores in results.scores.items()},
        "n_query": results.n_query,
        "n_gallery": results.n_gallery,
        "n_lone": results.n_lone,
    }


def nmi(embeddings: Vectors, labels: LabelsLike, *, restarts: int = 10, seed: int = 0) -> float:
    """Return the NMI of the k-means restart with the lowest inertia, 0-1.

    Arguments and errors are those of ``nmi_restarts``.

    >>> from mlbench.metrics import nmi
    >>> embeddings = [[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.0, 1.0]]
    >>> round(nmi(embeddings, [0, 0, 1, 1]), 3), round(nmi(embeddings, [0, 1, 1, 1]), 3)
    (1.0, 0.344)
    """
    runs = nmi_restarts(embeddings, labels, restarts=restarts, seed=seed)
    # An inertia is a difference of sums of about the points' number, which is its rounding's scale.
    slack = TIE * (1 + max(run.inertia for run in runs))
    return runs[first_highest([-run.inertia for run in runs], slack)].nmi


@dataclass(frozen=True)
class NmiRestart:
    """One k-means restart: its inertia, and the NMI of its clusters with the labels."""

    inertia: float
    nmi: float


@known_state()
def nmi_restarts(
    embeddings: Vectors, labels: LabelsLike, *, restarts: int = 10, seed: int = 0
) -> list[NmiRestart]:
    """Cluster unit embeddings into as many clusters as there are classes, and score each restart.

    NMI is normalised by the arithmetic mean of the entropies, as in scikit-learn, whose value for
    a single class is 1.

    Args:
        embeddings: ``(N, D)``, any real type.
        labels: ``(N,)`` integers.
        restarts: k-means restarts, at least 1.
        seed: of the restarts.

    Raises:
        MlbenchError: as for ``evaluate``.
    """
    rows = as_vectors(embeddings, "embeddings")
    classes = as_labels(labels, len(rows), "labels")
    restarts, seed = whole_number(restarts, "nmi_restarts", 1), check_seed(seed)
    points = unit_rows(rows, "embeddings")
    runs = kmeans(points, len(np.unique(classes)), restarts=restarts, seed=seed)
    return [NmiRestart(run.inertia, _score_clusters(classes, run.assignment)) for run in runs]


def _score_clusters(classes: Labels, assignment: Tensor) -> float:
    return float(normalized_mutual_info_score(classes, assignment.cpu().numpy()))


def _check_ks(ks: Sequence[int], what: str) -> tuple[int, ...]:
    values = plain(ks)
    columns = tuple(map(plain, values)) if isinstance(values, Iterable) else ()
    whole = all(type(k) is int and k >= 1 for k in columns)
    if not columns or not whole or len(set(columns)) < len(columns):
        raise MlbenchError(f"{what}: expected distinct integers of at least 1, got {values!r}")
    return columns


def _on_device(queries: Side, searched: Side) -> Groups | None:
    if queries.groups is None or searched.groups is None:
        return None
    device = queries.rows.device
    return torch.from_numpy(queries.groups).to(device), torch.from_numpy(searched.groups).to(device)


def _count_relevant(queries: Side, searched: Side, exclude_self: bool) -> Labels:
    """Return R of each query: the images of its class, but itself and its group."""
    relevant = _count_equal(queries.labels, searched.labels)
    if queries.groups is None or searched.groups is None:
        return relevant - int(exclude_self)
    ours = np.stack((queries.labels, queries.groups), 1)
    return relevant - _count_equal(ours, np.stack((searched.labels, searched.groups), 1))


def _count_equal(queries: Labels, gallery: Labels) -> Labels:
    """Return for each row of ``queries`` how many rows of ``gallery`` equal it."""
    both = np.concatenate((gallery, queries))
    codes = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(codes[: len(gallery)], minlength=codes.max() + 1)
    return counts[codes[len(gallery) :]]


def _empty_results(
    ks: tuple[int, ...], depths: tuple[int, ...], relevant: Labels, n_gallery: int
) -> QueryResults:
    count = len(relevant)
    deep = [name for k in depths for name in (f"P@{k}", f"mAP@{k}")]
    return QueryResults(
        ks=ks,
        neighbors=np.empty((count, min(max(ks), n_gallery)), dtype=np.int64),
        hits=np.empty((count, len(ks)), dtype=np.bool_),
        ap_at_r=np.empty(count),
        r_precision=np.empty(count),
        relevant=relevant,
        n_gallery=n_gallery,
        at_depth={name: np.empty(count) for name in deep},
    )


def _score(
    results: QueryResults,
    block: slice,
    neighbors: Labels,
    matches: npt.NDArray[np.bool_],
    depths: tuple[int, ...],
) -> None:
    """Fill in the results of one block from its ``(q, depth)`` neighbours and their matches."""
    results.neighbors[block] = neighbors[:, : results.neighbors.shape[1]]
    for column, k in enumerate(results.ks):
        results.hits[block, column] = matches[:, :k].any(axis=1)
    # Musgrave et al. 2020, eq. 2-3: only the first R ranks count, each by the precision there.
    ranks = np.arange(1, matches.shape[1] + 1)
    relevant = results.relevant[block]
    found = matches & (ranks <= relevant[:, None])
    precision = np.cumsum(matches, axis=1) / ranks
    whole = np.maximum(relevant, 1)
    results.r_precision[block] = found.sum(axis=1) / whole
    results.ap_at_r[block] = (precision * found).sum(axis=1) / whole
    for k in depths:
        results.at_depth[f"P@{k}"][block] = matches[:, :k].sum(axis=1) / k
        total = (precision[:, :k] * matches[:, :k]).sum(axis=1)
        results.at_depth[f"mAP@{k}"][block] = total / np.minimum(whole, k)
