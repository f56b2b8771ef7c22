"""How far each row is behind the best one, whichever that is: all statements hold at once.

The best row is picked by the data that it is judged by, so every pair is compared, at a level that
makes up for their number (all-pairs form of multiple comparisons with the best: Hsu 1996; maximum
of correlated t-values: Hothorn, Bretz and Westfall 2008). A row is marked if and only if its
interval reaches zero, so that mark and interval cannot disagree.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mlbench.comparison.pairs import all_pairs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.comparison.crossed import Components
    from mlbench.comparison.pairs import Pairs

    Figures = npt.NDArray[np.float64]

_DRAWS = 4000
_SCALES = 400
"""Values of the chi-square, each as likely as the others, that the draws are divided by."""
_QUANTILE = 0.96
"""Not 0.95: each pair has a class variance of its own, which one common chi-square does not show;
at 0.95 the error was .05 to .09 in simulations."""

_SAME = 1e-9
"""What is below this part of the largest score, or variance, is rounding."""


@dataclass(frozen=True)
class Behind:
    """How far a row is behind the true best one, simultaneously for all rows.

    Attributes:
        gap: the best mean minus this one's; never outside the interval.
        low, high: of the 95 % interval; 0 and infinite where nothing is known.
    """

    gap: float
    low: float
    high: float

    @property
    def reaches_zero(self) -> bool:
        """Whether the row may be as good as the best."""
        return self.low == 0


@dataclass(frozen=True)
class Standing:
    """All rows against the best.

    Attributes:
        behind: by row; empty with one row.
        judged: whether rows may be marked: the noise between seeds is known.
        tail: of the interval of a pair, on either side, that makes all of them hold at once.
        pairs: the differences of all rows.
    """

    behind: Mapping[str, Behind]
    judged: bool
    tail: float
    pairs: Pairs

    @property
    def marked(self) -> frozenset[str]:
        """Rows that cannot be told apart from the best; none if they are not judged."""
        return frozenset(n for n, each in self.behind.items() if self.judged and each.reaches_zero)


def compare_with_best(parts: Components) -> Standing:
    """Compare all rows with the best, at 95 % for all statements together.

    Args:
        parts: of the rows, for other classes and seeds or narrower.
    """
    found = all_pairs(parts)
    tail = pair_tail(parts, found) if len(parts.names) > 1 else 0.025
    return against_best(parts.names, parts.means, found, tail, judged=parts.for_other_seeds)


def against_best(
    names: Sequence[str], means: Figures, found: Pairs, tail: float, *, judged: bool
) -> Standing:
    """Return how rows stand, from the differences of all of them.

    Args:
        names: of the rows.
        means: ``(L,)`` of them.
        found: their differences.
        tail: of a pair's interval, on either side.
        judged: whether rows may be marked.
    """
    if len(names) < 2:
        return Standing({}, judged=False, tail=tail, pairs=found)
    behind = behind_best(means, found.square(found.half_widths(tail)))
    return Standing(dict(zip(names, behind, strict=True)), judged, tail, found)


def behind_best(means: Figures, half_widths: Figures) -> list[Behind]:
    """Return the intervals of the distances to the best.

    Args:
        means: ``(L,)`` of the rows.
        half_widths: ``(L, L)`` of their differences, all of which hold at once.
    """
    import numpy as np

    gaps = means[None, :] - means[:, None]  # of a row (first axis) behind another
    gap, low = gaps.max(axis=1), np.max(gaps - half_widths, axis=1)
    rounding = _SAME * np.abs(means).max()
    gap[gap <= rounding] = 0.0
    low[low <= rounding] = 0.0
    high = np.max(np.where(low == 0, gaps + half_widths, 0.0), axis=1, initial=0.0)
    columns = gap, low, high
    return [Behind(*row) for row in np.array(columns).T.tolist()]


def pair_tail(parts: Components, found: Pairs) -> float:
    """Return the tail of each pair's interval, on either side, at which 95 % of all sets hold.

    Between Bonferroni's, which it is where there are few classes, and that of one pair alone.
    """
    import numpy as np
    from scipy.special import stdtr

    rows, several = len(parts.names), len(found.first)
    if several == 1:
        return 0.025
    few = parts.for_other_classes and parts.class_freedom < 2 * rows
    if few or not np.isfinite(found.variance).all():
        return 0.025 / several
    freedom = float(np.median(found.freedom))
    largest = _largest_ratios(parts, freedom)
    tail = stdtr(freedom, -np.quantile(largest, _QUANTILE))
    return float(np.clip(tail, 0.025 / several, 0.025))


def _largest_ratios(parts: Components, freedom: float) -> npt.NDArray[np.float32]:
    """Draw the largest t-value of all pairs if no rows differ: ``(draws,)``."""
    import numpy as np
    from scipy.special import chdtri

    # In the order of the names, so that the order of the rows changes nothing. That of the means
    # would hang on rounding where two of them are equal.
    order = np.argsort(parts.names)
    noise = np.maximum(parts.noise.seeds - parts.noise.both, 0) * parts.share_of_run
    covariance = (parts.class_products + np.diag(noise))[np.ix_(order, order)]
    own = covariance.diagonal()
    ridge = np.diag(np.full(len(own), _SAME * own.max() or 1.0))
    square = own[:, None] + own - 2 * covariance
    scale = np.where(square > _SAME * (own[:, None] + own), square, np.inf) ** -0.5
    # Cholesky's factor is unique, where eigenvectors may turn with the last digit.
    factor = np.linalg.cholesky(covariance + ridge)
    unit = np.sqrt(own.max()) or 1.0

    normal, places = _drawn(len(own))
    values = (factor / unit).astype(np.float32) @ normal
    scale = (scale * unit).astype(np.float32)
    largest = np.zeros(_DRAWS, np.float32)
    for row in range(len(own) - 1):
        ratios = values[row + 1 :] - values[row]
        ratios *= scale[row, row + 1 :, None]
        np.maximum(largest, np.abs(ratios, out=ratios).max(axis=0), out=largest)
    scales = np.sqrt(freedom / chdtri(freedom, (np.arange(_SCALES) + 0.5) / _SCALES))
    return largest * scales[places]


@functools.lru_cache(maxsize=32)
def _drawn(rows: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return ``(L, draws)`` normal numbers and ``(draws,)`` places of scales, always the same."""
    import numpy as np

    # The one generator whose numbers no later version of numpy changes (NEP 19).
    generator = np.random.RandomState(0)
    normal = generator.standard_normal((rows, _DRAWS)).astype(np.float32)
    return normal, generator.permutation(_DRAWS) % _SCALES


def rope(behind: Behind, width: float) -> Literal["equal", "behind", "open"]:
    """Return whether a row is practically equal to the best, practically behind it, or neither.

    Args:
        behind: of the row.
        width: of the region of practical equivalence: a difference that does not matter.
    """
    if behind.high <= width:
        return "equal"
    return "behind" if behind.low > width else "open"
