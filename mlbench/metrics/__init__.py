"""R@k, MAP@R and NMI, and the exact neighbours under them."""

from typing import TYPE_CHECKING

from mlbench._lazy import lazy_names

if TYPE_CHECKING:
    from mlbench.metrics.evaluation import (
        QueryResults,
        evaluate,
        evaluate_pairs,
        evaluate_queries,
        nmi,
        summarize,
    )

__all__ = [
    "QueryResults",
    "evaluate",
    "evaluate_pairs",
    "evaluate_queries",
    "nmi",
    "summarize",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "QueryResults": "evaluation",
        "evaluate": "evaluation",
        "evaluate_pairs": "evaluation",
        "evaluate_queries": "evaluation",
        "nmi": "evaluation",
        "summarize": "evaluation",
    },
)
