"""What tuning a loss leaves: its trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from mlbench.errors import MlbenchError
from mlbench.metrics.ties import first_highest
from mlbench.recipes.spec import LossSpec, Recipe

_AT_BOUND = 0.05

DEFAULT_FOLDS = 2


TRIAL_SEED = 0


@dataclass(frozen=True)
class SearchRange:
    """A parameter of a loss that is tuned, or a field of the recipe.

    Attributes:
        name: of the parameter, or the full key of the field.
        low, high: the least and the greatest value that is tried.
    """

    name: str
    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        """Whether it spans a factor of 10, so that values are tried evenly in the logarithm."""
        return self.low > 0 and self.high / self.low >= 10

    def ends_at(self, value: float) -> bool:
        """Tell whether a value lies in the outer 5 % of the range on either side."""
        low, high, value = (
            [math.log(each) for each in (self.low, self.high, value)]
            if self.logarithmic
            else (self.low, self.high, value)
        )
        margin = _AT_BOUND * (high - low)
        return not low + margin < value < high - margin


@dataclass(frozen=True)
class Trial:
    """One set of parameters and how it did on the validation classes.

    Attributes:
        loss: the loss with these parameters.
        score: MAP@R, mean over the folds; 0 if training diverged in one of them.
        diverged: whether it did.
        images_seen: in training, over all folds.
    """

    loss: LossSpec
    score: float
    diverged: bool
    images_seen: int


@dataclass(frozen=True)
class Tuned:
    """All trials of one loss, that of its untuned parameters first.

    Attributes:
        trials: at least one.
        searched: what was varied; the other parameters were given or have no range.
    """

    trials: tuple[Trial, ...]
    searched: tuple[SearchRange, ...]

    @property
    def default(self) -> Trial:
        """The trial of the untuned parameters."""
        return self.trials[0]

    @property
    def chosen(self) -> Trial:
        """The trial of the highest score, the earliest of several."""
        return self.trials[first_highest([trial.score for trial in self.trials])]


def validation_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the trials: that of the final runs, with validation folds.

    Raises:
        MlbenchError: the recipe selects epochs, which would be tuning of another kind.
    """
    if recipe.selection.rule != "last":
        raise MlbenchError(
            f"tune: selection.rule '{recipe.selection.rule}' selects epochs; only "
            f"hyperparameters are "
            "tuned here: --set selection.rule=last"
        )
    return with_folds(recipe, recipe.selection.folds or DEFAULT_FOLDS)


def with_folds(recipe: Recipe, folds: int) -> Recipe:
    """Return the recipe with so many validation folds."""
    return replace(recipe, selection=replace(recipe.selection, folds=folds))
