"""What tuning varies of a loss: its search ranges, as Optuna's distributions and back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlbench.errors import MlbenchError, not_installed, unknown_name
from mlbench.interfaces import LossEntry, ParamValue
from mlbench.recipes.spec import FIELDS_OF_LOSSES, LossSpec, Recipe
from mlbench.records.trials import SearchRange
from mlbench.registry import LOSSES

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def parse_range(text: str) -> SearchRange:
    """Read ``KEY=LOW:HIGH``, as ``--search`` takes it.

    >>> from mlbench.runs.search import parse_range
    >>> parse_range("schedule.epochs = 5:50")
    SearchRange(name='schedule.epochs', low=5.0, high=50.0)
    """
    key, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        found = SearchRange(key.strip(), float(low), float(high))
    except ValueError:
        found = None
    if found is None or not found.name or not found.low < found.high < float("inf"):
        raise MlbenchError(
            f"--search {text}: expected KEY=LOW:HIGH with LOW below HIGH, such as "
            "schedule.epochs=5:50 or softtriple.la=5:80"
        )
    return found


def search_ranges(
    loss: LossSpec, recipe: Recipe, given: Sequence[SearchRange] = ()
) -> tuple[SearchRange, ...]:
    """Return the ranges that are searched for a loss.

    Args:
        loss: its untuned parameters; those that differ from the declared defaults, and values of
            its own for fields of the recipe, were set on purpose and are not searched.
        recipe: whose values are the defaults of its fields.
        given: ranges beside the declared ones or in their place: fields of the recipe, for every
            loss, or ``LOSS.parameter``.

    Raises:
        MlbenchError: a range is of no parameter or no number, the default is outside, or an end
            is no value of it.
    """
    entry = LOSSES.get(loss.name)
    ranges = {name: SearchRange(name, *bounds) for name, bounds in entry.search.items()}
    own = [_of(entry, each) for each in given]
    ranges |= {each.name: each for each in own if each is not None}
    defaults = {**entry.defaults, **_fields(entry, recipe)}
    for each in ranges.values():
        _check(entry, each, defaults.get(each.name))
    values = {**defaults, **dict(loss.params)}
    return tuple(
        each
        for each in ranges.values()
        if each.name not in loss.fields and values[each.name] == defaults[each.name]
    )


def check_ranges(given: Sequence[SearchRange], losses: Sequence[LossSpec]) -> None:
    """Raise MlbenchError if one of the given ranges is for none of the losses."""
    for each in given:
        if not any(_of(LOSSES.get(loss.name), each) for loss in losses):
            known = [*FIELDS_OF_LOSSES]
            known += [f"{s.name}.{p}" for s in losses for p in LOSSES.get(s.name).defaults]
            raise MlbenchError(f"--search: {unknown_name('parameter', each.name, known)}")


def _of(entry: LossEntry, given: SearchRange) -> SearchRange | None:
    """Return a given range as one of a loss's; None if it is not for this loss."""
    if given.name in FIELDS_OF_LOSSES:
        return given
    owner, _, name = given.name.rpartition(".")
    fits = owner == entry.name and name in entry.defaults
    return SearchRange(name, given.low, given.high) if fits else None


def _fields(entry: LossEntry, recipe: Recipe) -> dict[str, ParamValue]:
    """Return the values that a recipe gives to a loss for ``FIELDS_OF_LOSSES``."""
    flat = {name: recipe.flat()[name] for name in FIELDS_OF_LOSSES}
    if flat["optimizer.loss_lr"] == "declared" and not isinstance(entry.lr, Mapping):
        flat["optimizer.loss_lr"] = entry.lr or recipe.optimizer.head_lr
    return flat


def _check(entry: LossEntry, given: SearchRange, default: ParamValue | None) -> None:
    held = (
        isinstance(default, int | float)
        and not isinstance(default, bool)
        and given.low <= default <= given.high
    )
    if not held:
        raise MlbenchError(
            f"loss '{entry.name}': search range {given.name} = ({given.low:g}, {given.high:g}) "
            f"must belong to a numeric default and contain it, got {default!r}"
        )
    for end in (given.low, given.high):
        whole = isinstance(default, int) and float(end).is_integer()
        LossSpec.of(entry, {given.name: int(end) if whole else end}, "search range")


def distributions(
    loss: LossSpec, recipe: Recipe, ranges: Sequence[SearchRange]
) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions by the names of the ranges."""
    entry, kinds = LOSSES.get(loss.name), optuna().distributions
    defaults = {**entry.defaults, **_fields(entry, recipe)}
    return {
        each.name: kinds.IntDistribution(int(each.low), int(each.high), log=each.logarithmic)
        if isinstance(defaults[each.name], int)
        else kinds.FloatDistribution(each.low, each.high, log=each.logarithmic)
        for each in ranges
    }


def untuned(loss: LossSpec, recipe: Recipe) -> dict[str, ParamValue]:
    """Return the value that each parameter has before tuning, those of the recipe included."""
    return {**_fields(LOSSES.get(loss.name), recipe), **dict(loss.params)}


def with_params(loss: LossSpec, recipe: Recipe, sampled: Mapping[str, ParamValue]) -> LossSpec:
    """Return the loss with sampled values, those that are new rounded to three digits to be read.

    Args:
        loss: with its untuned parameters.
        recipe: of the trials.
        sampled: values of what is searched.
    """
    before = untuned(loss, recipe)
    new = {name: _rounded(value) for name, value in sampled.items() if value != before[name]}
    return LossSpec.of(LOSSES.get(loss.name), {**dict(loss.params), **new})


def _rounded(value: ParamValue) -> ParamValue:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def optuna() -> Any:
    """Import Optuna, silenced; it takes a second, and only tuning needs it."""
    try:
        module = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise not_installed("tuning needs Optuna", "tune") from error
    module.logging.set_verbosity(module.logging.ERROR)
    return module
