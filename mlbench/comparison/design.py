"""A two-level fractional factorial between two recipes: which runs tell what each factor does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.comparison.comparison import differences
from mlbench.comparison.effects import Levels
from mlbench.comparison.factorial import Factorial, in_order
from mlbench.comparison.factors import Factor, check_data, flat, grouped, plan_of
from mlbench.comparison.ladder import finished_runs
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Plan

if TYPE_CHECKING:
    from mlbench.records.record import RunRecord

FURTHER_SEEDS = 101
"""Seed of the first run that repeats an end; rows are numbered from 0."""


@dataclass(frozen=True)
class Row:
    """One setting of the factors.

    Attributes:
        setting: level of each factor.
        plans: its run as a row of the design, seeded by the row's number, then those that repeat an
            end; all of one recipe.
    """

    setting: Levels
    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Design:
    """What is to be run to tell what each factor does.

    Attributes:
        factors: fields that are changed together.
        rows: the settings of the design in their order; the start before them if it is none.
        size: number of settings of the design.
    """

    factors: tuple[Factor, ...]
    rows: tuple[Row, ...]
    size: int

    @property
    def settings(self) -> tuple[Levels, ...]:
        """The settings of the design."""
        return tuple(row.setting for row in self.rows[-self.size :])

    @property
    def plans(self) -> list[Plan]:
        """All that is to be run."""
        return [plan for row in self.rows for plan in row.plans]


def factorial_design(
    start: Plan,
    end: Plan,
    runs: int = 16,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Design:
    """Return the two-level design of the highest resolution between two recipes.

    The row of number ``n`` is run with seed ``n``; both ends are run until each has as many runs as
    the plans have seeds.

    Args:
        start: the plan with all factors at their first level, of one loss.
        end: the plan with all factors at their second.
        runs: number of settings at most, without the runs that repeat an end.
        groups: as for ``grouped``.

    Raises:
        MlbenchError: there are fewer than two factors, or more than the runs can tell apart; a
            setting is no recipe; the recipes are of two data sets.
    """
    check_data(start, end)
    here = flat(start)
    factors = tuple(grouped(differences(here, flat(end)), groups))
    settings = two_level([factor.name for factor in factors], runs)
    first = (-1,) * len(factors)
    rows = [
        Row(setting, _plans(setting, number, factors, (start, end)))
        for number, setting in enumerate(settings)
    ]
    if first not in settings:
        rows.insert(0, Row(first, (start,)))
    return Design(factors, tuple(rows), len(settings))


def _plans(
    setting: Levels, number: int, factors: Sequence[Factor], ends: tuple[Plan, Plan]
) -> tuple[Plan, ...]:
    """Return the runs of one setting: its own, and those that repeat an end."""
    fields = flat(ends[0])
    for factor, level in zip(factors, setting, strict=True):
        fields |= {key: pair[level > 0] for key, pair in factor.changes.items()}
    try:
        plan = plan_of(fields, *ends)
    except MlbenchError as error:
        raise MlbenchError(
            f"setting {number} of the design is not valid ({error}); combine fields that depend on "
            "each other into one factor with --group NAME=FIELD,FIELD"
        ) from error
    own = replace(plan, seeds=1, first_seed=number)
    if len({*setting}) > 1 or plan.seeds == 1:
        return (own,)
    return own, replace(plan, seeds=plan.seeds - 1, first_seed=FURTHER_SEEDS)


def two_level(factors: Sequence[str], runs: int) -> list[Levels]:
    """Return the settings of a two-level design of the highest resolution, and of fewest settings.

    A full factorial if the runs allow it; else a fraction of one by generators (pydoe).

    Args:
        factors: names.
        runs: number of settings at most.

    Raises:
        MlbenchError: there are fewer than two factors, or more than the runs can tell apart.
    """
    count = len(factors)
    if count < 2:
        what = f"only in one factor ({factors[0]})" if count else "in nothing"
        raise MlbenchError(f"the recipes differ {what}; a factorial needs at least two factors")
    if 2**count <= runs:
        return list(product((-1, 1), repeat=count))
    if count >= runs:
        least = 1 << count.bit_length()
        raise MlbenchError(
            f"{count} factors ({', '.join(factors)}) take {least} runs or more: raise --runs, or "
            "combine some of them into one factor with --group NAME=FIELD,FIELD"
        )
    from pydoe import fracfact_by_res

    for wanted in range(runs.bit_length(), 2, -1):
        try:
            signs = fracfact_by_res(count, wanted)
        except ValueError:  # no design of this resolution can be built
            continue
        if len(signs) <= runs:
            return [tuple(int(sign) for sign in row) for row in signs]
    raise MlbenchError(f"no two-level design of {count} factors in {runs} runs; raise --runs")


@dataclass(frozen=True)
class RowResult:
    """What came of a row.

    Attributes:
        row: the row.
        runs: its finished runs, in the order of their seeds.
        problem: why its own run or another could not be made; "" if all were.
    """

    row: Row
    runs: tuple[RunRecord, ...]
    problem: str = ""


def carry_out(design: Design, run: Callable[[Plan], Mapping[Path, RunRecord]]) -> list[RowResult]:
    """Run the rows of a design.

    Args:
        design: the rows.
        run: makes (or finds) the runs of a plan and returns their records by path.

    Returns:
        one result a row; one that cannot run (such as for lack of weights) says why.
    """
    results = []
    for row in design.rows:
        found = [finished_runs(plan, run) for plan in row.plans]
        runs = tuple(record for records, _ in found for record in records.values())
        results.append(RowResult(row, runs, next((why for _, why in found if why), "")))
    return results


def as_factorial(design: Design, results: Sequence[RowResult]) -> Factorial | None:
    """Return the study that has been run; None if a setting or an end has no finished run."""
    if not all(result.runs for result in results):
        return None
    loss = design.rows[0].plans[0].losses[0].name
    runs = {result.row.setting: in_order(result.runs) for result in results}
    return Factorial(loss, design.factors, tuple(sorted(design.settings)), runs)


def resolution(design: Sequence[Levels]) -> int | None:
    """Return the length of the shortest word: how many factors multiply to a constant sign.

    At resolution 3, main effects are free of one another; at 4, of two-factor interactions as well;
    at 5, two-factor interactions are free of one another. None for a full factorial.
    """
    count = len(design[0])
    for length in range(1, count + 1):
        for columns in combinations(range(count), length):
            if len({prod(setting[c] for c in columns) for setting in design}) == 1:
                return length
    return None
