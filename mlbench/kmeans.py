"""Seeded k-means: greedy k-means++ starts, then Lloyd's iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlbench.errors import MlbenchError

BLOCK_ELEMENTS = 2**24


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
    starts = _plus_plus(points, clusters, restarts, seed)
    return [_Lloyd(points, points[rows]).run(max_iterations) for rows in starts]


def _plus_plus(points: Tensor, clusters: int, restarts: int, seed: int) -> Tensor:
    """Return the rows ``(restarts, clusters)`` that greedy k-means++ picks as centres."""
    trials = 2 + int(math.log(clusters))
    draws = _uniform_draws(seed, restarts, clusters, trials).to(points.device)
    squares = points.square().sum(1)
    restart = torch.arange(restarts, device=points.device)
    rows = torch.empty(restarts, clusters, dtype=torch.int64, device=points.device)
    rows[:, 0] = (draws[:, 0, 0] * len(points)).long()
    nearest = _squared_distances(points, squares, rows[:, :1])[:, 0]
    for step in range(1, clusters):
        picks = _sample(nearest, draws[:, step])
        reached = torch.minimum(_squared_distances(points, squares, picks), nearest[:, None])
        best = reached.sum(2).argmin(1)
        rows[:, step] = picks[restart, best]
        nearest = reached[restart, best]
    return rows


def _uniform_draws(seed: int, restarts: int, clusters: int, trials: int) -> Tensor:
    """Return ``(restarts, clusters, trials)`` float64 in [0, 1), the same on every device."""
    shape = (clusters, trials)
    draws = [np.random.default_rng((seed, restart)).random(shape) for restart in range(restarts)]
    return torch.from_numpy(np.stack(draws))


def _sample(weights: Tensor, draws: Tensor) -> Tensor:
    """Turn draws ``(R, T)`` into rows picked with probability proportional to ``(R, N)``."""
    cumulated = weights.double().cumsum(1)
    picks = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True)
    return picks.clamp_(max=weights.shape[1] - 1)


def _squared_distances(points: Tensor, squares: Tensor, rows: Tensor) -> Tensor:
    """Return squared distances ``(R, T, N)`` of all points to the points ``rows`` ``(R, T)``."""
    picked = rows.flatten()
    distances = torch.addmm(squares, points[picked], points.T, alpha=-2)
    return distances.add_(squares[picked, None]).clamp_(min=0).unflatten(0, rows.shape)


class _Lloyd:
    """Lloyd's iterations from given centres; every point starts in cluster 0."""

    def __init__(self, points: Tensor, centers: Tensor) -> None:
        self.points = points
        self.centers = centers
        # A column of ones lets one matrix product add the centres' squared lengths as well.
        self.extended = torch.cat((points, torch.ones_like(points[:, :1])), dim=1)
        self.assignment = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        # float64 sums are updated by difference, and hardly depend on the order of additions.
        self.sums = torch.zeros_like(centers, dtype=torch.float64)
        self.counts = torch.zeros(len(centers), dtype=torch.int64, device=points.device)
        self._join(points, self.assignment, 1)

    def run(self, max_iterations: int) -> Clustering:
        """Iterate until no assignment changes."""
        changed = self._reassign()
        self._move_centers()
        iteration = 1
        while changed and iteration < max_iterations:
            changed = self._reassign()
            self._move_centers()
            iteration += 1
        return Clustering(self.assignment, self._inertia(), iteration)

    def _move_centers(self) -> None:
        self.centers = (self.sums / self.counts.clamp(min=1)[:, None]).float()
        empty = (self.counts == 0).nonzero()[:, 0]
        if len(empty):
            self.centers[empty] = self.points[self._own_distances().topk(len(empty))[1]]

    def _reassign(self) -> bool:
        """Move points to strictly nearer centres; True if one moved."""
        weights = torch.cat((-2 * self.centers, self.centers.square().sum(1, keepdim=True)), dim=1)
        step = max(1, BLOCK_ELEMENTS // len(weights))
        starts = range(0, len(self.points), step)
        moved = [self._reassign_block(slice(start, start + step), weights) for start in starts]
        return any(moved)

    def _reassign_block(self, block: slice, weights: Tensor) -> bool:
        scores = self.extended[block] @ weights.T
        assignment = self.assignment[block]
        own = scores.gather(1, assignment[:, None])[:, 0]
        # A plain minimum is several times as fast as one that says where: ask that of few rows.
        rows = (scores.amin(1) < own).nonzero()[:, 0]
        before, after = assignment[rows], scores[rows].argmin(1)
        assignment[rows] = after
        points = self.points[block][rows]
        self._join(points, before, -1)
        self._join(points, after, 1)
        return len(rows) > 0

    def _join(self, points: Tensor, assignment: Tensor, sign: int) -> None:
        self.sums.index_add_(0, assignment, points.double(), alpha=sign)
        self.counts.index_add_(0, assignment, torch.full_like(assignment, sign))

    def _own_distances(self) -> Tensor:
        return (self.points - self.centers[self.assignment]).norm(dim=1)

    def _inertia(self) -> float:
        return self._own_distances().double().square().sum().item()
