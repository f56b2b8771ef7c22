"""Figures of single rows: how sure a mean is, how often a row wins, on which classes it leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlbench.comparison.crossed import ClassTotals, Components, aligned
from mlbench.comparison.pairs import Pairs, all_pairs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Figures = npt.NDArray[np.float64]


def mean_half_widths(parts: Components) -> dict[str, float | None]:
    """Return the half-width of the 95 % interval of each mean, over seeds alone.

    None for a row without seed noise, and where no row has two runs.
    """
    import numpy as np
    from scipy.special import stdtrit

    noise = parts.noise
    widths = stdtrit(np.maximum(noise.freedom, 1), 0.975) * np.sqrt(noise.seeds / parts.runs)
    known = ~parts.deterministic & (noise.freedom > 0)
    return {
        name: width if told else None
        for name, width, told in zip(parts.names, widths.tolist(), known.tolist(), strict=True)
    }


@dataclass(frozen=True)
class Better:
    """Chance that a run of one row beats a run of another, on other test classes.

    Attributes:
        chance: the estimate, which is crude with few seeds or classes.
        low, high: of its 95 % interval.
    """

    chance: float
    low: float
    high: float


def better_than_next(parts: Components, found: Pairs | None = None) -> dict[str, Better]:
    """Return the chance that each row but the last beats the next, in the order of means.

    Empty where it is unknown: without totals by class, or where no row has two runs.

    Args:
        parts: of the rows.
        found: the differences of all of them, if they are there already.
    """
    import numpy as np
    from scipy.special import ndtr

    if not (parts.for_other_classes and parts.for_other_seeds):
        return {}
    order = np.lexsort((np.array(parts.names), -parts.means.round(9)))  # beyond is rounding
    row, following = order[:-1], order[1:]
    found = found or all_pairs(parts)
    gap = parts.means[row] - parts.means[following]
    width = found.square(found.half_widths())[row, following]
    spread = np.sqrt(found.square(_variance_of_a_run(parts))[row, following])
    ends = np.array([gap, gap - width, gap + width])
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = ndtr(np.where(ends == 0, 0.0, ends / spread))
    return {
        parts.names[number]: Better(*each)
        for number, each in zip(row.tolist(), chances.T.tolist(), strict=True)
    }


def _variance_of_a_run(parts: Components) -> Figures:
    """Return the variance of the difference of two runs, on other classes: ``(P,)``."""
    import numpy as np

    first, second = np.triu_indices(len(parts.names), 1)
    both, seeds = parts.noise.both * parts.share_of_run, parts.noise.seeds
    of_classes = np.maximum(parts.class_variance - both[first] - both[second], 0)
    return of_classes + seeds[first] + seeds[second]


def share_of_classes(rows: Mapping[str, ClassTotals]) -> dict[str, float]:
    """Return the share of classes on which each row has the highest mean; ties are split evenly.

    It describes these runs: noise of class and seed is in it.
    """
    import numpy as np

    queries, totals = aligned(rows)
    means = np.array([each.sum(axis=0) / len(each) for each in totals.values()])[:, queries > 0]
    # Sums of fractions may differ in their last digits, hits cannot.
    leads = means >= means.max(axis=0) - 1e-9 * queries[queries > 0]
    shares = (leads / leads.sum(axis=0)).mean(axis=1)
    return dict(zip(rows, shares.tolist(), strict=True))
