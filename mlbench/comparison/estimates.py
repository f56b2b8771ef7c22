"""Means of a few figures, with the interval of Student's t."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        mean: of the values.
        half_width: of the 95 % interval of the mean over seeds; None where it is not known, or
            where there is no noise between seeds.
        n: number of values.
    """

    mean: float
    half_width: float | None
    n: int


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of at least one value with its two-sided Student t-interval.

    >>> from mlbench.comparison import estimate
    >>> recall = estimate([0.61, 0.63, 0.62])
    >>> f"{recall.mean:.3f} ± {recall.half_width:.3f}"
    '0.620 ± 0.025'
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, _t_quantile(n - 1, confidence) * math.sqrt(variance / n), n)


@functools.cache
def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))
