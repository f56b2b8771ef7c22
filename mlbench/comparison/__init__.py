"""Which figures may stand together, and how sure they are."""

from mlbench.comparison.comparison import Comparison, Row, compare, told_apart
from mlbench.comparison.statistics import Difference, Estimate, estimate, paired_difference

__all__ = [
    "Comparison",
    "Difference",
    "Estimate",
    "Row",
    "compare",
    "estimate",
    "paired_difference",
    "told_apart",
]
