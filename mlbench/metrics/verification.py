"""Verification: are two images of one class? Pairs are accepted from a cosine on.

All pairs are counted, in one pass, by the similarity: in bins of 2^-15, which is the resolution of
thresholds. A rate is exact at the edge of a bin. Similarities are taken in float64, so that
rounding moves no pair to another bin unless it lies within some 1e-14 of an edge.

The unit of the intervals is the class: counts are kept by block of classes (one class a block, or
100 blocks of classes), and all figures are taken again without each block (the delete-a-group
jackknife; Shao & Tu 1995, *The Jackknife and Bootstrap*, sec. 2.3). Its variance errs upwards
(Efron & Stein 1981), most for thresholds, which depend on pairs of classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

from mlbench.arrays import Labels
from mlbench.metrics.neighbors import unit_rows
from mlbench.metrics.roc import Interval, OperatingPoint, Verification
from mlbench.metrics.sides import Side
from mlbench.system.known_state import known_state

FARS = (0.1, 0.01, 0.001, 0.0001)
ROC_FARS = tuple(10.0 ** (-step / 10) for step in range(50, -1, -1))
ENOUGH = 30
"""Pairs that must be accepted falsely for a rate to be given: the rule of thirty (Doddington et
al. 2000, *The NIST speaker recognition evaluation*): then it is known to within 30 %, at 90 %."""

_SCALE = 2**15
_BINS = 2 * _SCALE + 1
"""Bin ``i`` is around the cosine ``i / 2^15 - 1``: sums of few coordinates lie amid a bin."""

_OUT = _BINS
_MOST_BLOCKS = 100
_ROWS = 512

Counts = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float64]


@known_state()
def compare_pairs(queries: Side, gallery: Side | None = None) -> Verification | None:
    """Compare all pairs of different images, or all queries with all images of a gallery.

    Args:
        queries: their tensor's device does the work.
        gallery: on the same device, its classes and groups numbered as those of the queries.

    Returns:
        None if there is no pair of one class, or none of two.

    Raises:
        MlbenchError: a row is zero or not finite.
    """
    counts = _count(queries, gallery)
    impostor, genuine = counts.impostor, counts.genuine
    if not (impostor.any() and genuine.any()):
        return None
    allowed = [far for far in ROC_FARS if far * impostor.sum() >= ENOUGH]
    fars = [far for far in FARS if far * impostor.sum() >= ENOUGH]
    whole = _figures(impostor, genuine, fars)
    eer, *points = _intervals(whole, *_standard_errors(counts, fars))
    tars, thresholds = points[: len(fars)], points[len(fars) :]
    roc = _figures(impostor, genuine, allowed)[1 : 1 + len(allowed)]
    return Verification(
        genuine=int(genuine.sum()),
        impostor=int(impostor.sum()),
        eer=eer,
        points=tuple(map(OperatingPoint, fars, tars, thresholds)),
        roc=tuple(zip(allowed, roc.tolist(), strict=True)),
    )


def accept_rates(found: Verification) -> dict[str, float]:
    """Return the true accept rates as metrics by name, ``TAR@FAR=0.001``."""
    return {f"TAR@FAR={point.far:g}": point.tar.value for point in found.points}


def all_figures(found: Verification) -> dict[str, float]:
    """Return the figures by name: true accept rates, ``EER``, ``threshold@FAR=0.001``."""
    thresholds = {f"threshold@FAR={point.far:g}": point.threshold.value for point in found.points}
    return {**accept_rates(found), "EER": found.eer.value, **thresholds}


@dataclass(frozen=True)
class _PairCounts:
    """Pairs by bin of their similarity.

    Attributes:
        impostor: ``(bins,)`` pairs of two classes.
        genuine: ``(bins,)`` pairs of one class.
        impostor_of: ``(B, bins)`` pairs of two classes, at least one of them of the block.
        genuine_of: ``(B, bins)`` pairs of one class, which is of the block.
    """

    impostor: Counts
    genuine: Counts
    impostor_of: Counts
    genuine_of: Counts


@dataclass(frozen=True)
class _Sorted:
    """The images of one side, those of a block of classes together.

    Attributes:
        rows: ``(N, D)`` float32 of unit length.
        marks: ``(N, 1)`` class, or ``(N, 2)`` class and group.
        bounds: ``(B + 1,)`` where each block starts.
    """

    rows: Tensor
    marks: Tensor
    bounds: list[int]

    def part(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return rows and marks of the blocks from ``first`` up to ``last``, which is left out."""
        part = slice(self.bounds[first], self.bounds[last])
        return self.rows[part], self.marks[part]


def _count(queries: Side, gallery: Side | None) -> _PairCounts:
    sides = (queries,) if gallery is None else (queries, gallery)
    codes = np.unique(np.concatenate([side.labels for side in sides]), return_inverse=True)[1]
    blocks = min(_MOST_BLOCKS, int(codes.max()) + 1)
    parts = np.split(codes % blocks, [len(queries.labels)])
    left, *others = (_sort(*each, blocks) for each in zip(sides, parts, strict=False))
    right = others[0] if others else left

    impostor = np.zeros(_BINS, np.int64)
    impostor_of, genuine_of = np.zeros((2, blocks, _BINS), np.int64)
    for block in range(blocks):
        own = left.part(block, block + 1)
        before = _histogram(own, right.part(0, block))
        after = _histogram(own, right.part(block + 1, blocks))
        inside, genuine_of[block] = _within(own, right.part(block, block + 1), not others)
        impostor_of[block] = before + after + inside
        impostor += after + inside
        if others:
            impostor += before
            own = right.part(block, block + 1)
            impostor_of[block] += _histogram(own, left.part(0, block))
            impostor_of[block] += _histogram(own, left.part(block + 1, blocks))
    return _PairCounts(impostor, genuine_of.sum(0), impostor_of, genuine_of)


def _sort(side: Side, block: Labels, blocks: int) -> _Sorted:
    order = torch.from_numpy(np.argsort(block, kind="stable"))
    marks = [side.labels] if side.groups is None else [side.labels, side.groups]
    bounds = np.concatenate(([0], np.bincount(block, minlength=blocks).cumsum())).tolist()
    device = side.rows.device
    rows = unit_rows(side.rows, "embeddings")[order.to(device)]
    return _Sorted(rows, torch.from_numpy(np.stack(marks, 1))[order].to(device), bounds)


_Part = tuple[Tensor, Tensor]


def _histogram(ours: _Part, theirs: _Part) -> Counts:
    """Count pairs of images of different blocks, and so of two classes."""
    counts = np.zeros(_BINS, np.int64)
    for places, _, our_marks, their_marks in _tiles(ours, theirs):
        if our_marks.shape[1] == 2:
            places[our_marks[:, None, 1] == their_marks[None, :, 1]] = _OUT
        counts += _binned(places)
    return counts


def _within(ours: _Part, theirs: _Part, same: bool) -> tuple[Counts, Counts]:
    """Count pairs of images of one block: those of two classes, and those of one.

    Args:
        ours: images.
        theirs: images.
        same: they are the same images, each pair of which counts once.
    """
    impostor, genuine = np.zeros((2, _BINS), np.int64)
    for places, offset, our_marks, their_marks in _tiles(ours, theirs):
        equal = our_marks[:, None] == their_marks[None]
        if our_marks.shape[1] == 2:
            places[equal[..., 1]] = _OUT
        if same:
            places[torch.ones_like(equal[..., 0]).tril(offset)] = _OUT
        genuine += _binned(places[equal[..., 0]])
        impostor += _binned(places[~equal[..., 0]])
    return impostor, genuine


def _tiles(ours: _Part, theirs: _Part) -> Iterator[tuple[Tensor, int, Tensor, Tensor]]:
    """Yield bins ``(q, g)`` of pairs, the diagonal on which both are one, and marks of both."""
    step = _ROWS if ours[0].device.type == "cpu" else 16 * _ROWS
    for i in range(0, len(ours[0]), step):
        queries = ours[0][i : i + step].double() * _SCALE
        for j in range(0, len(theirs[0]), 2 * step):
            columns = slice(j, j + 2 * step)
            places = (queries @ theirs[0][columns].double().T).add_(_SCALE + 0.5).int()
            yield places, i - j, ours[1][i : i + step], theirs[1][columns]


def _binned(places: Tensor) -> Counts:
    return torch.bincount(places.flatten(), minlength=_OUT + 1)[:_BINS].cpu().numpy()


def _figures(impostor: Counts, genuine: Counts, fars: Sequence[float]) -> Figures:
    """Return the equal error rate, the true accept rate at each FAR, and each threshold."""
    accepted, found = (_accepted(counts) for counts in (impostor, genuine))
    crossing = np.abs(accepted + found - 1).argmin()
    eer = (accepted[crossing] + 1 - found[crossing]) / 2
    # Rates fall with the threshold; the last place, above all bins, accepts nothing.
    first = len(accepted) - np.searchsorted(accepted[::-1], fars, side="right")
    return np.concatenate(([eer], found[first], (first - 0.5) / _SCALE - 1))


def _accepted(counts: Counts) -> Figures:
    """Return the share of pairs from each bin on, and 0 above the last."""
    return np.append(counts[::-1].cumsum()[::-1], 0) / counts.sum()


def _standard_errors(counts: _PairCounts, fars: Sequence[float]) -> tuple[Figures, int]:
    """Return standard errors of ``_figures`` over classes, and their degrees of freedom."""
    rest = [
        (counts.impostor - impostor, counts.genuine - genuine)
        for impostor, genuine in zip(counts.impostor_of, counts.genuine_of, strict=True)
    ]
    values = np.array([_figures(*each, fars) for each in rest if each[0].any() and each[1].any()])
    if len(values) < 2:
        return np.full(1 + 2 * len(fars), np.inf), 1
    return np.sqrt((len(values) - 1) * values.var(axis=0)), len(values) - 1


def _intervals(values: Figures, errors: Figures, freedom: int) -> Iterator[Interval]:
    """Yield the intervals of ``_figures``: rates are in 0 .. 1, thresholds in -1 .. 1."""
    widths = stdtrit(freedom, 0.975) * errors
    rates = 1 + len(values) // 2
    widths[rates:] += 1 / _SCALE  # thresholds are known to a bin
    for place, (value, width) in enumerate(zip(values.tolist(), widths.tolist(), strict=True)):
        lowest = 0.0 if place < rates else -1.0
        yield Interval(value, max(lowest, value - width), min(1.0, value + width))
