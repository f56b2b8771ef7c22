"""Seeded k-means: greedy k-means++ starts, then Lloyd's iterations.

Which way a product is rounded depends on the processor, and on the shape of the product. No
decision does: distances that float64's rounding cannot tell apart are ties, a tie moves no point,
and among several the first counts. Lloyd's iterations screen in float32, with room for its
rounding, and decide in float64. So every move brings a point nearer to a centre, the inertia falls
with every iteration, and they come to an end.

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
from mlbench.system.known_state import known_state

# Distances at a time: a processor's cache should hold them, a GPU wants many.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
MIN_ROWS = 256
EPSILON = 2.0**-53
"""Unit roundoff of float64; that of float32 is 2**29 times as large."""


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

    >>> import torch
    >>> from mlbench.metrics.kmeans import kmeans
    >>> (clustering,) = kmeans(torch.tensor([[0.0, 1.0], [0.2, 1.0], [5.0, 1.0]]), clusters=2)
    >>> clustering.assignment.tolist(), round(clustering.inertia, 3)
    ([0, 0, 1], 0.02)
    """
    if not 1 <= clusters <= len(points):
        raise MlbenchError(f"k-means: {clusters} clusters of {len(points)} points; need 1 to N")
    if restarts < 1:
        raise MlbenchError(f"k-means: restarts is {restarts}; it must be at least 1")
    starts = _plus_plus(points, clusters, restarts, seed)
    with known_state():
        lloyd = _Lloyd(points, clusters)
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
    nearest = distances.to(first, out=reached)[:, 0].clone()
    assignment = torch.zeros_like(nearest, dtype=torch.int64)
    for step in range(1, clusters):
        distances.to(_sample(nearest, draws[:, step]), out=reached)
        torch.minimum(reached, nearest[:, None], out=reached)
        best = distances.least(reached.sum(2)) + first_trial
        closer = reached.flatten(0, 1).index_select(0, best)
        assignment.masked_fill_(closer < nearest - distances.slack, step)
        nearest = closer
    return assignment


class _Distances:
    """Squared distances of all points to some of them: one float64 product, nothing to add.

    Attributes:
        slack: of two distances that differ by no more, rounding may have made the difference.
    """

    def __init__(self, points: Tensor) -> None:
        wide = points.double()
        squares = wide.square().sum(1, keepdim=True)
        ones = torch.ones_like(squares)
        self.count = len(points)
        self.slack = _slack(points)
        self.left = torch.cat((-2 * wide, ones, squares), dim=1)
        self.right = torch.cat((wide, squares, ones), dim=1).T.contiguous()

    def to(self, rows: Tensor, out: Tensor) -> Tensor:
        """Write the distances to points ``rows`` ``(R, T)`` to ``(R, T, N)``; 0 within slack."""
        torch.mm(self.left.index_select(0, rows.flatten()), self.right, out=out.flatten(0, 1))
        return torch.threshold_(out, self.slack, 0.0)

    def least(self, sums: Tensor) -> Tensor:
        """Return which of sums ``(R, T)`` of ``N`` distances is the least ``(R,)``."""
        least = sums.amin(1, keepdim=True)
        slack = self.count * (self.slack + 2 * EPSILON * least)
        return _first(sums <= least + slack)


def _uniform_draws(seed: int, restarts: range, clusters: int, trials: int) -> Tensor:
    """Return ``(restarts, clusters, trials)`` float64 in [0, 1), the same on every device."""
    shape = (clusters, trials)
    draws = [np.random.default_rng((seed, restart)).random(shape) for restart in restarts]
    return torch.from_numpy(np.stack(draws))


def _sample(weights: Tensor, draws: Tensor) -> Tensor:
    """Turn draws ``(R, T)`` into rows picked with probability proportional to ``(R, N)``."""
    cumulated = weights.cumsum(1)
    picks = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True)
    return picks.clamp_(max=weights.shape[1] - 1)


class _Lloyd:
    """Lloyd's iterations over the same points, from one assignment after another.

    A score is a point's squared distance to a centre less the point's own squared length.

    Attributes:
        doubt: of two float32 scores that differ by no more, rounding may have made the difference.
        slack: the same of two float64 scores.
    """

    def __init__(self, points: Tensor, clusters: int) -> None:
        self.clusters = clusters
        # A column of ones lets one product add the centres' squared lengths, and one sum count.
        self.points = torch.cat((points, torch.ones_like(points[:, :1])), dim=1)
        self.parts = list(_slices(len(points), MIN_ROWS * 64))
        self.squares = sum(points[part].double().square().sum().item() for part in self.parts)
        self.slack = _slack(points)
        self.doubt = self.slack * 2**29
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
        for part in self.parts:
            self.sums.index_add_(0, assignment[part], self.points[part].double())
        self.touched = torch.ones_like(self.sums[:, 0], dtype=torch.bool)
        self.changed = True

    def _move_centers(self) -> None:
        centers = self.sums[:, :-1] / self.sums[:, -1:].clamp(min=1)
        empty = (self.sums[:, -1] == 0).nonzero()[:, 0]
        if len(empty):
            centers[empty] = self._farthest(centers, len(empty))
            self.touched[empty] = True
        self.wide = torch.cat((-2 * centers, centers.square().sum(1, keepdim=True)), dim=1)
        self.weights = self.wide.float()

    def _farthest(self, centers: Tensor, count: int) -> Tensor:
        """Return the ``count`` points that are farthest from their own centres, in float64."""
        away = torch.cat([self._away(centers, part) for part in self.parts])
        rows = []
        for _ in range(count):
            rows.append(_first((away >= away.max() - self.slack)[None]))
            away[rows[-1]] = -torch.inf
        return self.points[torch.cat(rows), :-1].double()

    def _away(self, centers: Tensor, part: slice) -> Tensor:
        own = centers.index_select(0, self.assignment[part])
        return (self.points[part, :-1] - own).square().sum(1)

    def _reassign(self) -> None:
        """Move each point to the centre that is nearest, if that is nearer."""
        moved = self.touched.nonzero()[:, 0]
        self.touched = torch.zeros_like(self.touched)
        self.changed = False
        left = self.rows
        if 2 * len(moved) <= self.clusters:
            left = self._compare_all_with_moved(moved)
        for rows in left.split(len(self.buffer) // self.clusters):
            self._compare_with_all(rows)

    def _compare_with_all(self, rows: Tensor) -> None:
        """Compare the points ``rows`` with all centres."""
        scores = self._product(self.points.index_select(0, rows), self.weights)
        mine = self.assignment.index_select(0, rows)[:, None]
        own = scores.gather(1, mine)[:, 0]
        self.scores[rows] = own
        scores.scatter_(1, mine, torch.inf)
        self._join_nearer(rows[scores.amin(1) < own + self.doubt], self.everyone)

    def _compare_all_with_moved(self, moved: Tensor) -> Tensor:
        """Compare all points with the centres that moved; return those that their own left."""
        column = torch.full_like(self.everyone, -1)
        column[moved] = self.everyone[: len(moved)]
        weights, left = self.weights.index_select(0, moved), []

        for block in _slices(len(self.points), max(1, len(self.buffer) // max(1, len(moved)))):
            scores = self._product(self.points[block], weights)
            place = column[self.assignment[block]]
            mine = (place >= 0).nonzero()[:, 0]
            own = self.scores[block]
            fresh = scores[mine, place[mine]]
            left.append(self.rows[block][mine[fresh > own[mine] - self.doubt]])
            own[mine] = fresh
            scores[mine, place[mine]] = torch.inf
            self._join_nearer(self.rows[block][scores.amin(1) < own + self.doubt], moved)
        return torch.cat(left)

    def _product(self, points: Tensor, weights: Tensor) -> Tensor:
        """Return scores ``(n, c)``, which the next call overwrites."""
        shape = (len(points), len(weights))
        out = self.buffer[: shape[0] * shape[1]].view(shape)
        return torch.mm(points, weights.T, out=out)

    def _join_nearer(self, rows: Tensor, centers: Tensor) -> None:
        """Move those of the points ``rows`` to which one of ``centers`` is nearer than their own.

        Float64 decides: nearer by more than its rounding, and the first of those that tie.
        """
        points = self.points.index_select(0, rows).double()
        scores = torch.mm(points, self.wide.index_select(0, centers).T)
        before = self.assignment.index_select(0, rows)
        own = (points * self.wide.index_select(0, before)).sum(1)
        least = scores.amin(1)
        nearer = (least < own - self.slack).nonzero()[:, 0]
        if not len(nearer):
            return

        least, rows, before, points = (t[nearer] for t in (least, rows, before, points))
        after = centers[_first(scores[nearer] <= least[:, None] + self.slack)]
        self.sums.index_add_(0, before, points, alpha=-1).index_add_(0, after, points)
        self.touched[before] = self.touched[after] = True
        self.assignment[rows], self.scores[rows] = after, least.float()
        self.changed = True

    def _inertia(self) -> float:
        # Of the means: squares of the points less those of the means, each as often as it counts.
        means = self.sums[:, :-1].square().sum(1) / self.sums[:, -1].clamp(min=1)
        return max(0.0, self.squares - means.sum().item())


def _slack(points: Tensor) -> float:
    """Return by how much rounding can set two equal squared distances or scores apart in float64.

    Each is a sum of at most D + 2 products, less than 4 M^2 in all for points no longer than M: in
    any order it is rounded by less than 4 (D + 2) M^2 times the unit roundoff (Higham 2002, sec.
    3.1), its factors by less than half of that, and this is more than twice the sum of both.
    """
    longest = points.square().sum(1).max().item()
    return 16 * (points.shape[1] + 2) * longest * EPSILON


def _first(chosen: Tensor) -> Tensor:
    """Return the first column that is chosen in each row of ``(n, c)``."""
    return chosen.to(torch.uint8).argmax(1)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
