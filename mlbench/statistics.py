"""How sure a figure is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        mean: of the values.
        half_width: of the 95 % t-interval of the mean; None with fewer than two values.
        n: number of values.
    """

    mean: float
    half_width: float | None
    n: int


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of at least one value with its two-sided Student t-interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, n)
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    quantile = float(stdtrit(n - 1, 0.5 + confidence / 2))
    return Estimate(mean, quantile * math.sqrt(variance / n), n)
