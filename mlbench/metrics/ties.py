"""What rounding alone may have told apart is a tie: no choice hangs on the order of a sum."""

from __future__ import annotations

from collections.abc import Sequence

TIE = 1e-9
"""Figures (fractions 0-1, and sums of such over their number) that differ by no more are equal.

Far above what rounding leaves in a mean of float64, far below what one image changes.
"""


def first_highest(values: Sequence[float], slack: float = TIE) -> int:
    """Return the position of the highest of at least one value, of the first of those that tie.

    >>> from mlbench.metrics.ties import first_highest
    >>> first_highest([0.25, 0.5, 0.5 + 1e-12])
    1
    """
    least = max(values) - slack
    return next(i for i, value in enumerate(values) if value >= least)
