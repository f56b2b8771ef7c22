"""Differences between all pairs of many losses at once, from products of matrices.

The sums of squares that ``statistics.paired_difference`` takes over one pair's ``(S, Q)``
differences follow, for all pairs that share their runs, from the inner products of the losses.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from mlbench.metrics.ties import TIE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]
    Runs = Mapping[Hashable, Scores]
    Figures = npt.NDArray[np.float64]

Run = tuple[Hashable, int]
"""Seed and fold, and the number of queries."""


@dataclass(frozen=True)
class Contrasts:
    """The differences of ``P`` pairs of losses over the same runs and queries.

    Attributes:
        pairs: the names.
        runs: seeds and folds that all of them share.
        queries: of each run.
        mean: ``(P,)`` first loss minus second.
        run_variance: ``(P,)`` of the difference from run to run.
        query_variance: ``(P,)`` of the mean difference, due to the draw of the queries.
    """

    pairs: tuple[tuple[str, str], ...]
    runs: int
    queries: int
    mean: Figures
    run_variance: Figures
    query_variance: Figures


def contrasts(scores: Mapping[str, Runs], names: Sequence[str]) -> list[Contrasts]:
    """Return all pairs of losses that share anything to tell them apart by, by the runs they share.

    Args:
        scores: by loss, and by run (seed and fold), ``(Q,)`` scores of the queries in one order.
        names: the losses; in a pair the one that comes first here is the first.
    """
    runs = {name: frozenset((k, len(v)) for k, v in scores[name].items()) for name in names}
    # Most losses have the same runs: no need to look at each pair's one by one.
    shared_by = functools.cache(frozenset[Run].intersection)
    groups: dict[frozenset[Run], list[tuple[str, str]]] = {}
    for a, b in combinations(names, 2):
        groups.setdefault(shared_by(runs[a], runs[b]), []).append((a, b))
    return [
        _contrasts({name: scores[name] for pair in pairs for name in pair}, pairs, whole)
        for shared, pairs in groups.items()
        if (whole := _whole(shared, scores[pairs[0][0]]))
        and (len(whole) > 1 or max(shared, key=_length)[1] > 1)
    ]


def _length(run: Run) -> int:
    return run[1]


def _whole(shared: frozenset[Run], order: Runs) -> list[Hashable]:
    """Return the runs with the most queries, in a given order: others lost their per-query scores.

    A set has another order in every process, and sums would differ in their last digits.
    """
    queries = max(map(_length, shared), default=0)
    return [run for run in order if (run, queries) in shared]


def _contrasts(
    scores: Mapping[str, Runs], pairs: Sequence[tuple[str, str]], shared: Sequence[Hashable]
) -> Contrasts:
    import numpy as np

    sums = _sums(list(scores.values()), shared)
    number = {name: i for i, name in enumerate(scores)}
    a, b = np.array([[number[x], number[y]] for x, y in pairs]).T
    s, q = sums.by_run.shape[1], sums.by_query.shape[1]
    runs, means = _centred(sums.by_run / q)
    queries, _ = _centred(sums.by_query / s)
    mean = means[a] - means[b]
    mean[np.abs(mean) <= TIE] = 0
    of_runs = ((runs[a] - runs[b]) ** 2).sum(axis=1)
    of_queries = _distances(queries @ queries.T, a, b)
    # Analysis of variance: what neither the run nor the query explains is left of the total.
    rest = _distances(sums.products, a, b) - s * q * mean**2 - q * of_runs - s * of_queries
    unexplained = np.maximum(rest, 0) / max((s - 1) * (q - 1), 1)
    query_variance = np.maximum(of_queries / max(q - 1, 1) - unexplained / s, 0) / q
    return Contrasts(tuple(pairs), s, q, mean, of_runs / max(s - 1, 1), query_variance)


@dataclass(frozen=True)
class _Sums:
    """Of ``L`` losses: by run ``(L, S)``, by query ``(L, Q)``, of products ``(L, L)``."""

    by_run: Figures
    by_query: Figures
    products: Figures


def _sums(losses: Sequence[Runs], shared: Sequence[Hashable]) -> _Sums:
    hits = all(runs[run].dtype == bool for runs in losses for run in shared)
    return _sums_of_hits(losses, shared) if hits else _sums_of_figures(losses, shared)


def _sums_of_hits(losses: Sequence[Runs], shared: Sequence[Hashable]) -> _Sums:
    """Count bits: the product of two runs is the number of hits in common."""
    import numpy as np

    hits = np.array([[runs[run] for run in shared] for runs in losses]).view(np.uint8)
    bits = _packed(hits)
    products = np.empty((len(losses), len(losses)))
    for number, own in enumerate(bits):
        common = np.bitwise_count(own & bits[number:]).sum(axis=(1, 2), dtype=np.int64)
        products[number, number:] = products[number:, number] = common
    by_run = np.bitwise_count(bits).sum(axis=2, dtype=np.int64)
    by_query = hits.sum(axis=1, dtype=np.min_scalar_type(len(shared)))
    return _Sums(by_run.astype(np.float64), by_query.astype(np.float64), products)


def _packed(hits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the bits of the last axis, made up with zeros to whole words."""
    import numpy as np

    packed = np.packbits(hits, axis=2)
    return np.pad(packed, ((0, 0), (0, 0), (0, -packed.shape[2] % 8))).view(np.uint64)


def _sums_of_figures(losses: Sequence[Runs], shared: Sequence[Hashable]) -> _Sums:
    import numpy as np

    count, queries = len(losses), len(losses[0][shared[0]])
    sums = _Sums(
        np.empty((count, len(shared))), np.zeros((count, queries)), np.zeros((count, count))
    )
    for number, run in enumerate(shared):
        values = np.array([runs[run] for runs in losses], dtype=np.float64)
        sums.by_run[:, number] = values.sum(axis=1)
        np.add(sums.by_query, values, out=sums.by_query)
        np.add(sums.products, values @ values.T, out=sums.products)
    return sums


def _centred(values: Figures) -> tuple[Figures, Figures]:
    means = values.mean(axis=1)
    return values - means[:, None], means


def _distances(products: Figures, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Figures:
    """Return the squared distances of pairs of rows from the products of all rows."""
    import numpy as np

    squares = products.diagonal()
    return np.maximum(squares[a] + squares[b] - 2 * products[a, b], 0)
