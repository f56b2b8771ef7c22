"""Variances of the differences of all pairs of rows, from their components, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlbench.comparison.crossed import Components, SeedNoise

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Figures = npt.NDArray[np.float64]
    Ways = tuple[tuple[Figures, Figures], ...]

_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Pairs:
    """Variances of the differences of all pairs of rows, ``P = L (L - 1) / 2``.

    Attributes:
        first, second: ``(P,)`` numbers of the rows: (0, 1), (0, 2), ..., (1, 2), ...
        difference: ``(P,)`` mean of the first minus that of the second.
        ways: variance ``(P,)`` and degrees of freedom ``(P,)`` of classes and seeds together, then
            of seeds alone and of classes alone; only one of these if no more is known.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    difference: Figures
    ways: Ways

    @property
    def variance(self) -> Figures:
        """``(P,)`` of the differences; infinite where nothing is known of it."""
        return self.ways[0][0]

    @property
    def freedom(self) -> Figures:
        """``(P,)`` of ``variance``."""
        return self.ways[0][1]

    def half_widths(self, tail: float = 0.025) -> Figures:
        """Return ``(P,)`` half-widths: the interval of a pair misses at ``tail`` on either side.

        None is narrower than that of a statement about seeds alone or classes alone.
        """
        return half_widths(self.ways, tail)

    def p_values(self) -> Figures:
        """Return ``(P,)`` two-sided p: twice the tail at which the interval just reaches zero."""
        return p_values(self.difference, self.ways)

    def square(self, values: Figures) -> Figures:
        """Return ``(P,)`` values of pairs as a symmetric ``(L, L)``, zero on the diagonal."""
        from scipy.spatial.distance import squareform

        return squareform(values, checks=False)


def _quantiles(freedom: Figures, level: float) -> Figures:
    """Return Student's quantiles; one for all pairs where they have the same degrees of freedom."""
    from scipy.special import stdtrit

    return stdtrit(freedom[:1] if (freedom == freedom[:1]).all() else freedom, level)


def half_widths(ways: Ways, tail: float = 0.025) -> Figures:
    """Return ``(P,)`` half-widths of intervals that miss at ``tail`` on either side.

    Args:
        ways: variance and degrees of freedom, each ``(P,)``, as in ``Pairs``; the widest counts.
        tail: on either side.
    """
    import numpy as np

    return np.max([_quantiles(f, 1 - tail) * np.sqrt(v) for v, f in ways], axis=0)


def p_values(difference: Figures, ways: Ways) -> Figures:
    """Return ``(P,)`` two-sided p: twice the tail at which the interval just reaches zero."""
    import numpy as np
    from scipy.special import stdtr

    size = np.abs(difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        tails = [stdtr(f, -np.where(size > 0, size / np.sqrt(v), 0.0)) for v, f in ways]
    return 2 * np.max(tails, axis=0)


def all_pairs(parts: Components) -> Pairs:
    """Return the variances of the differences of all pairs."""
    import numpy as np

    first, second = np.triu_indices(len(parts.names), 1)
    difference = parts.means[first] - parts.means[second]
    noise, share = parts.noise, parts.share_of_run
    of_seeds, seeds = _summed(noise.seeds * share, noise, first, second)
    of_classes, classes = parts.class_variance, np.full(len(first), parts.class_freedom)
    if not parts.for_other_classes:
        unknown = ~parts.deterministic & (noise.freedom == 0)
        variance = np.where(unknown[first] | unknown[second], np.inf, of_seeds)
        return Pairs(first, second, difference, ((variance, np.maximum(seeds, 1)),))
    if not parts.for_other_seeds or parts.deterministic.all():
        return Pairs(first, second, difference, ((of_classes, classes),))

    of_both, both = _summed(noise.both * share, noise, first, second)
    ways = (of_seeds, seeds), (of_classes, classes)
    together = both_ways(ways[1], ways[0], (of_both, both * classes))
    return Pairs(first, second, difference, (together, *ways))


def both_ways(
    of_classes: tuple[Figures, Figures],
    of_seeds: tuple[Figures, Figures],
    of_both: tuple[Figures, Figures],
) -> tuple[Figures, Figures]:
    """Return variances for other classes and seeds, and their degrees of freedom.

    Args:
        of_classes: variances due to classes, what is of class and seed with it; their freedom.
        of_seeds: the same of seeds.
        of_both: what is of class and seed, which the two others both hold.
    """
    import numpy as np

    (classes, class_freedom), (seeds, seed_freedom) = of_classes, of_seeds
    variance = np.max([classes + seeds - of_both[0], classes, seeds], axis=0)
    freedom = satterthwaite(variance, (of_classes, of_seeds, of_both))
    least = np.minimum(class_freedom, seed_freedom)
    return variance, np.clip(freedom, least, class_freedom + seed_freedom)


def _summed(
    variances: Figures,
    noise: SeedNoise,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
) -> tuple[Figures, Figures]:
    """Return the sums of pairs of ``(L,)`` variances of means, and their degrees of freedom."""
    import numpy as np

    a, b = variances[first], variances[second]
    one, other = noise.freedom[first], noise.freedom[second]
    apart = noise.own[first] | noise.own[second]
    separate = satterthwaite(a + b, ((a, one), (b, other)))
    return a + b, np.where(apart, separate, one)


def satterthwaite(variance: Figures, terms: Sequence[tuple[Figures, Figures]]) -> Figures:
    """Return the degrees of freedom of a variance made of terms; of none, the first's."""
    import numpy as np

    spread = np.sum([np.square(v) / np.maximum(f, _TINY) for v, f in terms], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, np.square(variance) / spread, terms[0][1])
