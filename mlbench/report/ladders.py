"""Ladders among records: chains of recipes in which one factor after the other changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from mlbench.comparison.comparison import differences
from mlbench.comparison.factors import factor_of, flat_fields
from mlbench.comparison.ladder import Rung, RungResult, climb, ladder
from mlbench.recipes.plan import Files, Plan
from mlbench.recipes.spec import LossSpec, Recipe
from mlbench.records.record import RunRecord
from mlbench.report.drawings import waterfall
from mlbench.report.groups import Runs
from mlbench.report.svg import Picture, figure_picture
from mlbench.tables.layout import ladder_sheet
from mlbench.tables.sheet import Sheet

_FEWEST_RUNGS = 4
"""Start and three factors: two differing recipes alone are no ladder."""

Step = tuple[Recipe, LossSpec]
Steps = dict[Step, Runs]


@dataclass(frozen=True)
class Ladder:
    """A ladder that was found among records.

    Attributes:
        title: loss and number.
        name: of its picture.
        results: of its rungs.
    """

    title: str
    name: str
    results: tuple[RungResult, ...]

    @property
    def sheet(self) -> Sheet:
        """Its table."""
        return ladder_sheet(self.results, self.title)

    @functools.cached_property
    def picture(self) -> Picture:
        """Its waterfall."""
        words = _in_words(self.results)
        return figure_picture(lambda: waterfall(self.results), self.name, self.title, words)


def ladders(records: Mapping[Path, RunRecord]) -> list[Ladder]:
    """Find the cumulative ladders whose rungs are all among the records.

    Records do not say what made them, so a ladder is known by its rungs: from
    its first to its last, each recipe that ``mlbench ablate`` would have run in between is there.

    Args:
        records: by path.
    """
    found = []
    for (loss, *_), steps in _by_loss(records).items():
        for rungs in _longest(_complete(steps)):
            number = len(found) + 1
            results = climb(rungs, lambda plan, steps=steps: steps[plan.recipe, plan.losses[0]])
            found.append(Ladder(f"{loss}, ladder {number}", f"ladder-{number}", tuple(results)))
    return found


def _by_loss(records: Mapping[Path, RunRecord]) -> dict[tuple[str, ...], Steps]:
    """Sort finished runs by loss and data, and in there by recipe and the loss's parameters."""
    losses: dict[tuple[str, ...], Steps] = {}
    for path, record in records.items():
        if record.status == "ok":
            spec = record.spec
            data = spec.recipe.data.name, record.dataset.fingerprint
            steps = losses.setdefault((record.loss, *data), {})
            steps.setdefault((spec.recipe, spec.loss), {})[path] = record
    return losses


def _complete(steps: Steps) -> list[list[Rung]]:
    """Return every ladder between two steps whose rungs are all there."""
    found = []
    for start, end in permutations(steps, 2):
        changed = differences(flat_fields(*start), flat_fields(*end))
        if len({factor_of(key) for key in changed}) + 1 < _FEWEST_RUNGS:
            continue
        rungs = ladder(_plan(start), _plan(end))
        if all(_step(rung) in steps for rung in rungs):
            found.append(rungs)
    return found


def _longest(found: Sequence[list[Rung]]) -> list[list[Rung]]:
    """Leave out ladders that are part of a longer one."""
    sets = [frozenset(map(_step, rungs)) for rungs in found]
    return [
        rungs
        for rungs, here in zip(found, sets, strict=True)
        if not any(here < other for other in sets)
    ]


def _plan(step: Step) -> Plan:
    return Plan(step[0], (step[1],), 1, Files())


def _step(rung: Rung) -> Step:
    return rung.plan.recipe, rung.plan.losses[0]


def _in_words(results: Sequence[RungResult]) -> str:
    steps = (
        f"{each.rung.factor or 'start'} {100 * each.recall.mean:.1f}"
        for each in results
        if each.recall
    )
    return f"R@1 in percent after each change: {', '.join(steps)}"
