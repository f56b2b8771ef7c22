"""How many seeds and classes a gap takes, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlbench.comparison.planning import (
    POWER,
    Design,
    Sources,
    classes_needed,
    detectable_gap,
    half_width,
    seeds_needed,
)
from mlbench.tables.sheet import Line, Sheet

_SEEDS = (2, 3, 5, 10, 20, math.inf)
_FEW_SEEDS = (3, 10)


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        what: the records are of that the variances come from.
        found: the variances.
        gap: in R@1 that is to be detected, as a fraction.
        rows: losses that will be compared.
        classes: to test on.
    """

    what: str
    found: Sources
    gap: float
    rows: int
    classes: int

    @property
    def seeds(self) -> int | None:
        """How many seeds of each loss it takes; None if no number of seeds will do."""
        return seeds_needed(self.found, self.gap, self.rows, self.classes)

    def classes_with(self, seeds: int) -> int | None:
        """How many test classes it takes with so many seeds; None if no number will do."""
        return classes_needed(self.found, self.gap, self.rows, seeds)


def planning_sheet(asked: Question) -> Sheet:
    """Lay out which gaps are detected with how many seeds; the answer is below the table."""
    pairs = asked.rows * (asked.rows - 1) // 2
    correction = f", with Bonferroni's correction for {pairs} pairs" if pairs > 1 else ""
    return Sheet(
        title=f"{asked.rows} losses on {asked.classes} test classes",
        header=("seeds per loss", "detectable gap, R@1", "half-width of its interval"),
        lines=tuple(_line(asked, seeds) for seeds in _SEEDS),
        notes=(
            f"percentage points; a detectable gap is significant in {100 * POWER:.0f} % of "
            f"studies, for other classes and seeds{correction}",
            f"variances of {asked.what}: the median over all pairs of losses; similar losses "
            "differ less, others more",
        ),
        advice=answer(asked),
    )


def _line(asked: Question, seeds: float) -> Line:
    design = Design(asked.rows, seeds, asked.classes)
    gap = detectable_gap(asked.found, design)
    if gap is None:
        cells = ("any number", "not known", "not known")
    else:
        number = "any number" if math.isinf(seeds) else f"{seeds:g}"
        cells = (number, f"{100 * gap:.2f}", f"{100 * half_width(asked.found, design):.2f}")
    return Line(cells, (False,) * len(cells))


def answer(asked: Question) -> str:
    """Say in a sentence how many seeds, or else classes, detect the gap."""
    size = f"{100 * asked.gap:g}"
    points = f"{size} percentage point{'' if size == '1' else 's'}"
    if asked.seeds is not None:
        return (
            f"Detecting a gap of {points} on {asked.classes} test classes takes {asked.seeds} "
            "seeds per loss."
        )
    limit = detectable_gap(asked.found, Design(asked.rows, math.inf, asked.classes))
    least = "" if limit is None else f"; the smallest detectable gap is {100 * limit:.2f}"
    return (
        f"No number of seeds detects a gap of {points} on {asked.classes} test "
        f"classes{least}. It takes more test classes{_other_classes(asked)}."
    )


def _other_classes(asked: Question) -> str:
    numbers = {seeds: asked.classes_with(seeds) for seeds in _FEW_SEEDS}
    enough = [f"{n:,} with {seeds} seeds" for seeds, n in numbers.items() if n is not None]
    return f": {' or '.join(enough)}" if enough else ", and more than 10 seeds"
