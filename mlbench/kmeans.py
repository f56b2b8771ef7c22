"""Seeded k-means: greedy k-means++ starts, then Lloyd's iterations.

Lloyd's iterations leave out what cannot matter: a centre whose points stayed has not moved, and a
point is compared with it again only if its own centre went away from it (activity detection:
Kaukoranta, Fränti & Nevalainen, IEEE Trans. Image Processing 2000).

Rows are gathered with ``index_select``, which on a CPU is three times as fast as indexing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlbench.errors import MlbenchError

# Distances at a time: a processor's cache should hold them, a GPU wants many.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
MIN_ROWS = 256


@dataclass(frozen=True)
class Clustering:
    """One restart of k-means.

    Attributes:
        assignment: ``(N,)`` int64 cluster of each point, on the points' device.
        inertia: sum of squared distances of the points to their centres.
        iterations: Lloyd iterations made.
    """

    assignment: Tensor
    inertia: float
    iterations: int


@torch.no_grad()
def kmeans(
    points: Tensor, clusters: int, *, restarts: int = 1, seed: int = 0, max_iterations: int = 300
) -> list[Clustering]:
    """Cluster by k-means, once per restart.

    Starts are greedy k-means++ (Arthur & Vassilvitskii 2007, with 2 + ln k trials a step). Lloyd's
    iterations end when no assignment changes. A cluster that empties moves to the point that is
    farthest from its centre. Restart ``r`` depends on ``seed`` and ``r`` alone.

    Args:
        points: ``(N, D)`` float32; its device does the work.
        clusters: number of clusters, 1 to N.
        restarts: independent starts.
        seed: of the starts.
        max_iterations: upper bound on Lloyd's iterations.

    Returns:
        One clustering per restart, in order.

    Raises:
        MlbenchError: ``clusters`` is not in 1 to N, or ``restarts`` is below 1.
    """
    if not 1 <= clusters <= len(points):
        raise MlbenchError(f"k-means: {clusters} clusters of {len(points)} points; need 1 to N")
    if restarts < 1:
        raise MlbenchError(f"k-means: restarts is {restarts}; it must be at least 1")
    lloyd = _Lloyd(points, clusters)
    starts = _plus_plus(points, clusters, restarts, seed)
    return [lloyd.run(assignment, max_iterations) for assignment in starts]


def _plus_plus(points: Tensor, clusters: int, restarts: int, seed: int) -> Iterator[Tensor]:
    """Yield, for each restart, the nearest of greedy k-means++'s centres to each point ``(N,)``."""
    trials = 2 + int(math.log(clusters))
    distances = _Distances(points)
    together = max(1, BLOCK_ELEMENTS[points.device.type] // (trials * len(points)))
    for first in range(0, restarts, together):
        group = range(first, min(first + together, restarts))
        draws = _uniform_draws(seed, group, clusters, trials).to(points.device)
        yield from _greedy_starts(distances, draws)


def _greedy_starts(distances: _Distances, draws: Tensor) -> Tensor:
    """Return the index ``(R, N)`` of each point's nearest start, from draws ``(R, k, T)``."""
    restarts, clusters, trials = draws.shape
    first_trial = trials * torch.arange(restarts, device=draws.device)
    # One buffer serves all steps: fresh pages for each cost more than the product.
    reached = distances.left.new_empty(restarts, trials, distances.count)
    first = (draws[:, 0] * distances.count).long()
    nearest = distances.to(first, out=reached)[:, 0].clamp(min=0)
    assignment = torch.zeros_like(nearest, dtype=torch.int64)
    for step in range(1, clusters):
        distances.to(_sample(nearest, draws[:, step]), out=reached)
        torch.minimum(reached, nearest[:, None], out=reached)
        best = reached.sum(2).argmin(1) + first_trial
        closer = reached.flatten(0, 1).index_select(0, best).clamp_(min=0)
        assignment.masked_fill_(closer < nearest, step)
        nearest = closer
    return assignment


class _Distances:
    """Squared distances of all points to some of them: one matrix product, nothing to add."""

    def __init__(self, points: Tensor) -> None:
        squares = points.square().sum(1, keepdim=True)
        ones = torch.ones_like(squares)
        self.count = len(points)
        self.left = torch.cat((-2 * points, ones, squares), dim=1)
        self.right = torch.cat((points, squares, ones), dim=1).T.contiguous()

    def to(self, rows: Tensor, out: Tensor) -> Tensor:
        """Write the distances to points ``rows`` ``(R, T)`` to ``(R, T, N)``; may round below 0."""
        torch.mm(self.left.index_select(0, rows.flatten()), self.right, out=out.flatten(0, 1))
        return out


def _uniform_draws(seed: int, restarts: range, clusters: int, trials: int) -> Tensor:
    """Return ``(restarts, clusters, trials)`` float64 in [0, 1), the same on every device."""
    shape = (clusters, trials)
    draws = [np.random.default_rng((seed, restart)).random(shape) for restart in restarts]
    return torch.from_numpy(np.stack(draws))


def _sample(weights: Tensor, draws: Tensor) -> Tensor:
    """Turn draws ``(R, T)`` into rows picked with probability proportional to ``(R, N)``."""
    cumulated = weights.cumsum(1, dtype=torch.float64)
    picks = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True)
    return picks.clamp_(max=weights.shape[1] - 1)


class _Lloyd:
    """Lloyd's iterations over the same points, from one assignment after another.

    A score is a point's squared distance to a centre less the point's own squared length.
    """

    def __init__(self, points: Tensor, clusters: int) -> None:
        self.clusters = clusters
        # A column of ones lets one product add the centres' squared lengths, and one sum count.
        self.points = torch.cat((points, torch.ones_like(points[:, :1])), dim=1)
        parts = points.split(MIN_ROWS * 64)
        self.squares = sum(part.double().square().sum().item() for part in parts)
        block = max(BLOCK_ELEMENTS[points.device.type], MIN_ROWS * clusters)
        # One buffer serves all blocks: fresh pages for each cost more than the product.
        self.buffer = points.new_empty(min(block, len(points) * clusters))
        self.rows = torch.arange(len(points), device=points.device)
        self.everyone = self.rows[:clusters]

    def run(self, assignment: Tensor, max_iterations: int) -> Clustering:
        """Iterate from ``assignment`` ``(N,)``, which is changed, until it stays as it is."""
        self._start(assignment)
        iteration = 0
        while self.changed and iteration < max_iterations:
            self._move_centers()
            self._reassign()
            iteration += 1
        return Clustering(assignment, self._inertia(), iteration)

    def _start(self, assignment: Tensor) -> None:
        self.assignment = assignment
        self.scores = torch.empty_like(self.points[:, 0])
        # float64 sums are updated by difference, and hardly depend on the order of additions.
        shape = (self.clusters, self.points.shape[1])
        self.sums = torch.zeros(shape, dtype=torch.float64, device=self.points.device)
        for part in _slices(len(assignment), MIN_ROWS * 64):
            self.sums.index_add_(0, assignment[part], self.points[part].double())
        self.touched = torch.ones_like(self.sums[:, 0], dtype=torch.bool)
        self.changed = True

    def _move_centers(self) -> None:
        centers = (self.sums[:, :-1] / self.sums[:, -1:].clamp(min=1)).float()
        empty = (self.sums[:, -1] == 0).nonzero()[:, 0]
        if len(empty):
            own = self.points[:, :-1] - centers[self.assignment]
            centers[empty] = self.points[own.norm(dim=1).topk(len(empty))[1], :-1]
            self.touched[empty] = True
        self.weights = torch.cat((-2 * centers, centers.square().sum(1, keepdim=True)), dim=1)

    def _reassign(self) -> None:
        """Move each point to the centre that is nearest, if that is strictly nearer."""
        moved = self.touched.nonzero()[:, 0]
        self.touched = torch.zeros_like(self.touched)
        self.changed = False
        if 2 * len(moved) > self.clusters:
            self._compare_all_with_all()
        else:
            left = self._compare_all_with_moved(moved)
            for rows in left.split(len(self.buffer) // self.clusters):
                scores = self._product(self.points.index_select(0, rows), self.weights)
                self._join_nearer(rows, scores, self.scores[rows], self.everyone)

    def _compare_all_with_all(self) -> None:
        for block in self._blocks(self.clusters):
            scores = self._product(self.points[block], self.weights)
            own = scores.gather(1, self.assignment[block, None])[:, 0]
            self.scores[block] = own
            self._join_nearer(self.rows[block], scores, own, self.everyone)

    def _compare_all_with_moved(self, moved: Tensor) -> Tensor:
        """Compare all points with the centres that moved; return those that their own left."""
        column = torch.full_like(self.everyone, -1)
        column[moved] = self.everyone[: len(moved)]
        weights, left = self.weights.index_select(0, moved), []
        for block in self._blocks(len(moved)):
            scores = self._product(self.points[block], weights)
            place = column[self.assignment[block]]
            mine = (place >= 0).nonzero()[:, 0]
            own = self.scores[block]
            fresh = scores[mine, place[mine]]
            left.append(self.rows[block][mine[fresh > own[mine]]])
            own[mine] = fresh
            self._join_nearer(self.rows[block], scores, own, moved)
        return torch.cat(left)

    def _blocks(self, centers: int) -> Iterator[slice]:
        return _slices(len(self.points), max(1, len(self.buffer) // max(1, centers)))

    def _product(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return scores ``(n, c)``, which the next call overwrites."""
        shape = (len(points), len(weights))
        out = self.buffer[: shape[0] * shape[1]].view(shape)
        return torch.mm(points, weights.T, out=out)

    def _join_nearer(self, rows: Tensor, scores: Tensor, own: Tensor, centers: Tensor) -> None:
        """Move the points ``rows`` that score strictly less with one of ``centers``."""
        # A plain minimum is several times as fast as one that says where: ask that of few rows.
        nearer = (scores.amin(1) < own).nonzero()[:, 0]
        if not len(nearer):
            return
        best, place = scores.index_select(0, nearer).min(1)
        rows, after = rows[nearer], centers[place]
        before, points = self.assignment[rows], self.points.index_select(0, rows).double()
        self.sums.index_add_(0, before, points, alpha=-1).index_add_(0, after, points)
        self.touched[before] = self.touched[after] = True
        self.assignment[rows], self.scores[rows] = after, best
        self.changed = True

    def _inertia(self) -> float:
        # Of the means: squares of the points less those of the means, each as often as it counts.
        means = self.sums[:, :-1].square().sum(1) / self.sums[:, -1].clamp(min=1)
        return max(0.0, self.squares - means.sum().item())


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
