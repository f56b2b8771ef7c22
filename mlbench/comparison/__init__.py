"""Which figures may stand together, and how sure they are."""

from mlbench.comparison.best import Behind
from mlbench.comparison.comparison import Comparison, compare, told_apart
from mlbench.comparison.estimates import Estimate, estimate
from mlbench.comparison.judgement import Scope
from mlbench.comparison.rows import Row

__all__ = [
    "Behind",
    "Comparison",
    "Estimate",
    "Row",
    "Scope",
    "compare",
    "estimate",
    "told_apart",
]
