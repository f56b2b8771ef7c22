"""Make the runs of a plan, here or elsewhere."""

from typing import TYPE_CHECKING

from mlbench._lazy import lazy_names

if TYPE_CHECKING:
    from mlbench.runs.ingredients import Ingredients
    from mlbench.runs.outcomes import Outcome, make_run
    from mlbench.runs.run import run_one

__all__ = [
    "Ingredients",
    "Outcome",
    "make_run",
    "run_one",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"Ingredients": "ingredients", "Outcome": "outcomes", "make_run": "outcomes", "run_one": "run"},
)
