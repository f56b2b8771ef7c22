"""Variance of differences between losses, for other test classes and other seeds, in closed form.

Queries of one class are not independent, so a run is described by its totals by test class. Classes
and seeds are crossed random effects: each seed is tested on each class. The variance of a
difference is that of classes plus that of seeds minus what both contain (two-way clustering:
Cameron, Gelbach and Miller 2011; the pigeonhole bootstrap without its double counting: Owen 2007),
with Satterthwaite's (1946) degrees of freedom. Here are the parts; ``pairs`` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Figures = npt.NDArray[np.float64]

_ROUNDING = 1e-12
"""A standard deviation below this part of the largest score is rounding, not noise."""

_TINY = 1e-300

_NOISY = 0.01
"""Chance that one row of a table of equally noisy ones is taken for noisier than the rest."""


@dataclass(frozen=True, eq=False)
class ClassTotals:
    """What the runs of one row scored, by test class.

    Attributes:
        totals: ``(S, G)`` sums over the queries of a class (hits at k, AP@R) of ``S`` runs.
        queries: ``(G,)`` of each class.
    """

    totals: npt.ArrayLike
    queries: npt.ArrayLike


@dataclass(frozen=True, eq=False)
class SeedNoise:
    """Variances of one run, by row; pooled over rows unless one is noisier than the rest.

    Attributes:
        seeds: ``(L,)`` of a run's score, from seed to seed; zero without seed noise.
        both: ``(L,)`` the part of it that is of class and seed together, and of queries.
        freedom: ``(L,)`` degrees of freedom of both; zero if no row has two runs.
        own: ``(L,)`` whether a row has its own variances, as it is noisier than the rest.
    """

    seeds: Figures
    both: Figures
    freedom: Figures
    own: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Components:
    """What the runs of ``L`` rows say of their differences.

    Attributes:
        names: of the rows.
        means: ``(L,)`` over runs.
        runs: ``(L,)`` number of each; 1 where all are one run copied.
        deterministic: ``(L,)`` whether a row has no seed noise.
        classes: number with queries; 0 where only scores are known.
        class_products: ``(L, L)`` covariance of the means that is due to classes.
        class_variance: ``(P,)`` of the differences of all pairs, in the order of ``Pairs``.
        class_freedom: its degrees of freedom; 0 if the class part is unknown or not asked for.
        noise: between runs.
    """

    names: tuple[str, ...]
    means: Figures
    runs: npt.NDArray[np.int64]
    deterministic: npt.NDArray[np.bool_]
    classes: int
    class_products: Figures
    class_variance: Figures
    class_freedom: float
    noise: SeedNoise

    @property
    def noisy(self) -> tuple[str, ...]:
        """Rows that are noisier from seed to seed than the rest."""
        return tuple(n for n, own in zip(self.names, self.noise.own, strict=True) if own)

    @property
    def for_other_seeds(self) -> bool:
        """Whether the noise between seeds is known, or there is none."""
        return bool((self.deterministic | (self.noise.freedom > 0)).all())

    @property
    def for_other_classes(self) -> bool:
        """Whether the class part is in it."""
        return self.class_freedom > 0

    @property
    def share_of_run(self) -> Figures:
        """``(L,)`` share that one run has in the mean; 0 without seed noise."""
        import numpy as np

        return np.where(self.deterministic, 0.0, 1 / self.runs)


def components(
    rows: Mapping[str, ClassTotals], deterministic: Collection[str] | None = None
) -> Components:
    """Return means and variance components of rows that were tested on the same classes.

    Runs are not paired by seed: losses hardly share what a seed does, and with two seeds pairing
    would leave one degree of freedom.

    Args:
        rows: by name, one or more.
        deterministic: names of those without seed noise; None takes those for it that have the
            same totals in all of two or more runs. A metric that is saturated looks so as well:
            whoever has several metrics should judge by all of them.

    Raises:
        MlbenchError: a row has other classes or queries than the first, no runs, or figures that
            are not finite.
    """
    return _components(rows, deterministic, None)


def _components(
    rows: Mapping[str, ClassTotals], deterministic: Collection[str] | None, step: float | None
) -> Components:
    """Return the components; ``step`` is what one query changes in a score, None for a total."""
    import numpy as np
    from scipy.spatial.distance import pdist

    queries, totals = aligned(rows)
    copied = _copied(totals, deterministic)
    single = np.array([name in copied for name in rows])
    runs = [_once(each) if name in copied else each for name, each in totals.items()]
    sums = [_sums(each, queries) for each in runs]
    means = np.array([each.mean for each in sums])

    correction, freedom = class_weights(queries)
    by_class = np.array([each.by_class for each in sums])
    squares = np.array([[s.of_seeds for s in sums], [correction * s.of_both for s in sums]])
    counts = np.array([len(each) for each in runs])
    step = float(1 / queries.sum()) if step is None else step
    return Components(
        names=tuple(rows),
        means=means,
        runs=counts,
        deterministic=single,
        classes=int(np.count_nonzero(queries)),
        class_products=correction * (by_class @ by_class.T),
        class_variance=correction * np.asarray(pdist(by_class, "sqeuclidean"), dtype=np.float64),
        class_freedom=freedom,
        noise=_noise(squares, counts - 1, single, means, step),
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of one row: its mean, ``(G,)`` residuals of classes, sums of squares over its runs."""

    mean: float
    by_class: Figures
    of_seeds: float
    of_both: float


def _sums(runs: Figures, queries: Figures) -> _Sums:
    import numpy as np

    total, by_run, by_class = queries.sum(), runs.sum(axis=1), runs.mean(axis=0)
    mean = math.fsum(by_run) / (len(runs) * total)
    seeds = by_run / total - mean
    rest = runs - by_class
    rest -= np.outer(seeds, queries)
    of_both = np.vdot(rest, rest) / total**2
    return _Sums(float(mean), (by_class - queries * mean) / total, seeds @ seeds, float(of_both))


def components_of_scores(
    scores: Mapping[str, npt.ArrayLike], deterministic: Collection[str] | None = None
) -> Components:
    """Return the components of a metric without totals by class, such as NMI: of seeds alone.

    Args:
        scores: by name, ``(S,)`` of the runs.
        deterministic: as in ``components``.

    Raises:
        MlbenchError: a row has no runs, or scores that are not finite.
    """
    import numpy as np

    values = {
        name: np.asarray(each, dtype=np.float64).reshape(-1, 1) for name, each in scores.items()
    }
    rows = {name: ClassTotals(each, [1]) for name, each in values.items()}
    return replace(_components(rows, deterministic, 0.0), classes=0)


def for_these_classes(parts: Components) -> Components:
    """Return the components of the narrower statement: these test classes as they are."""
    import numpy as np

    noise = replace(parts.noise, both=np.zeros_like(parts.noise.both))
    return replace(
        parts,
        class_products=np.zeros_like(parts.class_products),
        class_variance=np.zeros_like(parts.class_variance),
        class_freedom=0.0,
        noise=noise,
    )


def aligned(rows: Mapping[str, ClassTotals]) -> tuple[Figures, dict[str, Figures]]:
    """Return ``(G,)`` queries, the same for all rows, and ``(S, G)`` totals, checked."""
    import numpy as np

    if not rows:
        raise MlbenchError("no rows to compare")
    first = next(iter(rows))
    queries = np.asarray(rows[first].queries, dtype=np.float64)
    if queries.ndim != 1 or not np.isfinite(queries).all() or (queries < 0).any():
        raise MlbenchError(f"'{first}': queries by class are no list of counts")
    if not queries.any():
        raise MlbenchError(f"'{first}': no class has queries")

    totals = {name: np.asarray(row.totals, dtype=np.float64) for name, row in rows.items()}
    for name, each in totals.items():
        if not np.array_equal(np.asarray(rows[name].queries), queries):
            raise MlbenchError(
                f"'{name}' was tested on other classes or queries than '{first}'; "
                "they cannot be compared"
            )
        if each.ndim != 2 or each.shape[1] != len(queries) or not len(each):
            wanted = f"runs x {len(queries)} classes"
            raise MlbenchError(f"'{name}': totals of shape {each.shape}, not {wanted}")
        if not np.isfinite(each).all():
            raise MlbenchError(f"'{name}': totals by class that are not finite")
    return queries, totals


def _copied(totals: Mapping[str, Figures], declared: Collection[str] | None) -> frozenset[str]:
    import numpy as np

    if declared is not None:
        return frozenset(declared)
    return frozenset(
        name
        for name, each in totals.items()
        if len(each) > 1 and np.array_equal(each[0], each[1]) and (each == each[0]).all()
    )


def _once(totals: Figures) -> Figures:
    return totals[:1] if (totals == totals[0]).all() else totals.mean(axis=0, keepdims=True)


def class_weights(queries: Figures) -> tuple[float, float]:
    """Return what class residuals are scaled by, and the degrees of freedom of their variance.

    Both are exact for equal class effects; with ``G`` classes of equal size they are
    ``G / (G - 1)`` and ``G - 1``. Two classes or more have at least one degree of freedom.

    Args:
        queries: ``(G,)`` of each class.
    """
    import numpy as np

    if np.count_nonzero(queries) < 2:
        return 0.0, 0.0
    w = queries / queries.sum()
    square, cube, fourth = ((w**power).sum() for power in (2, 3, 4))
    correction = 1 / (1 - 2 * cube / square + square)
    return float(correction), max(float(square**2 / fourth - 1), 1.0)


def _noise(
    squares: Figures,
    freedom: npt.NDArray[np.int64],
    deterministic: npt.NDArray[np.bool_],
    means: Figures,
    step: float,
) -> SeedNoise:
    """Pool ``(2, L)`` sums of squares, of seeds and of both, apart from rows noisier than the rest.

    Args:
        squares: over the runs of each row.
        freedom: ``(L,)`` of each sum.
        deterministic: ``(L,)`` rows without noise.
        means: ``(L,)`` which tell what is rounding.
        step: what one query changes in a score.
    """
    import numpy as np

    squares = np.where(squares <= freedom * (_ROUNDING * np.abs(means).max()) ** 2, 0.0, squares)
    known = (freedom > 0) & ~deterministic
    own = _noisier(squares[0], freedom, known, step)
    pool = known & ~own
    pooled = squares[:, pool].sum(axis=1) / max(freedom[pool].sum(), 1)
    alone = squares / np.maximum(freedom, 1)
    seeds, both = np.where(own, alone, pooled[:, None]) * ~deterministic
    return SeedNoise(seeds, both, np.where(own, freedom, freedom[pool].sum()) * 1.0, own)


def _noisier(
    squares: Figures, freedom: npt.NDArray[np.int64], known: npt.NDArray[np.bool_], step: float
) -> npt.NDArray[np.bool_]:
    """Return which rows are noisier than the rest, taken out one at a time by an F-test."""
    import numpy as np
    from scipy.special import fdtri

    own, pool = np.zeros_like(known), known.copy()
    while np.count_nonzero(pool) > 1:
        rest = freedom[pool].sum() - freedom
        # Few hits may repeat by chance: less than the rounding to whole hits is not believed.
        others = np.maximum(
            (squares[pool].sum() - squares) / np.maximum(rest, 1), max(step**2 / 12, _TINY)
        )
        limit = fdtri(np.maximum(freedom, 1), np.maximum(rest, 1), 1 - _NOISY / len(pool))
        excess = np.where(pool, squares / np.maximum(freedom, 1) / others / limit, 0.0)
        if excess.max() <= 1:
            break
        own[excess.argmax()], pool[excess.argmax()] = True, False
    return own
