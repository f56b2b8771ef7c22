"""Do the intervals of a factorial's effects cover, and do its tests err as they should? Simulated.

    python stress/effects.py [--trials N] [--json PATH]

Totals by class are drawn for the runs of the recipe-factorial study: a 2^(7-3) design and two more
runs at each end, on 100 classes. A run differs from another of the same recipe by its seed, and by
class and seed together; a factor's effect differs from class to class. The sizes are those of
``stress/intervals.py``, which are of heads on frozen features; in the study the trunk is trained,
so larger noise between seeds is drawn as well. Printed are, as fractions of the trials:

- effect, gap, sum less gap, middle: 95 % intervals that hold the true value
- error: studies in which Holm's procedure finds any of the factors that do nothing, 0.05 at most
- power: factors of 1 and of 2 points that it finds
- adds up: studies in which neither check of the main effects fails
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from mlbench.comparison.crossed import ClassTotals
from mlbench.comparison.effects import LEVEL, Effects, Levels, effects

Figures = npt.NDArray[np.float64]

DESIGN: list[Levels] = [
    (a, b, c, d, a * b * c, b * c * d, a * c * d) for a, b, c, d in product((-1, 1), repeat=4)
]
TRUE = np.array([0.02, 0.01, 0.0, 0.0, 0.02, 0.0, 0.01])
"""Effects of the factors, as fractions."""

OF_CLASS, OF_BOTH, OF_SEED = 0.024, 0.052, 0.0039
SIZES = 41, 61


@dataclass(frozen=True)
class Case:
    """What is drawn.

    Attributes:
        name: of the case.
        classes: of the test.
        seed_noise: factor of the noise between seeds.
        interactions: standard deviation of the two-factor interactions, as fractions.
        extra: further runs at each end.
    """

    name: str
    classes: int = 100
    seed_noise: float = 1.0
    interactions: float = 0.0
    extra: int = 2


CASES = (
    Case("as frozen features"),
    Case("twice the seed noise", seed_noise=2.0),
    Case("4 times the seed noise", seed_noise=4.0),
    Case("12 classes", classes=12),
    Case("1,000 classes", classes=1000),
    Case("no run repeated", extra=0),
    Case("interactions of 0.3 points", interactions=0.003),
    Case("interactions of 1 point", interactions=0.01),
)


@dataclass(frozen=True)
class Rates:
    """What came out of a case, as fractions of the trials or of the effects in them."""

    case: Case
    trials: int
    effect: float
    gap: float
    misfit: float
    middle: float
    error: float
    power_1: float
    power_2: float
    adds_up: float


def draw(rng: np.random.Generator, case: Case) -> tuple[dict[Levels, ClassTotals], float]:
    """Draw a study; return it with the true middle of its ends less the mean of all."""
    queries = rng.integers(*SIZES, case.classes)
    own = rng.normal(0.3, 0.15, case.classes)
    # Two recipes that differ in all factors differ by class as two losses do.
    shifts = rng.normal(0, OF_CLASS * np.sqrt(2 / 7), (7, case.classes))
    crossed = {
        pair: rng.normal(0, case.interactions) if case.interactions else 0.0
        for pair in combinations(range(7), 2)
    }
    runs = {}
    for setting in DESIGN:
        signs = np.array(setting) / 2
        both = sum(size * setting[i] * setting[j] / 2 for (i, j), size in crossed.items())
        mean = own + signs @ (TRUE[:, None] + shifts) + both
        count = 1 + case.extra * (len({*setting}) == 1)
        seeds = rng.normal(0, case.seed_noise * OF_SEED, (count, 1))
        noise = rng.normal(0, case.seed_noise**0.5 * OF_BOTH, (count, case.classes))
        runs[setting] = ClassTotals(queries * (mean + seeds + noise), queries)
    return runs, sum(crossed.values()) / 2


def rates(case: Case, trials: int, seed: int = 0) -> Rates:
    """Draw a case many times and judge what is found."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    judged = [_judge(*_found(rng, case)) for _ in range(trials)]
    return Rates(case, trials, *map(float, np.mean(judged, axis=0)))


def _found(rng: np.random.Generator, case: Case) -> tuple[Effects, float]:
    runs, middle = draw(rng, case)
    return effects(DESIGN, runs), middle


def _judge(found: Effects, middle: float) -> list[float]:
    holds = [
        abs(each.value - true) <= each.half_width
        for each, true in zip(found.factors, TRUE, strict=True)
    ]
    named = np.array(found.adjusted) <= LEVEL
    return [
        float(np.mean(holds)),
        float(abs(found.gap.value - TRUE.sum()) <= found.gap.half_width),
        float(found.misfit.is_zero),
        float(abs(found.middle.value - middle) <= found.middle.half_width),
        float(named[TRUE == 0].any()),
        float(named[TRUE == 0.01].mean()),
        float(named[TRUE == 0.02].mean()),
        float(found.adds_up),
    ]


def main() -> None:
    """Draw all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = [rates(case, given.trials) for case in CASES]
    table = Table("case", "effect", "gap", "sum less gap", "middle", "error", "power, 1 point",
                  "2 points", "adds up", title=f"{given.trials} trials a case")  # fmt: skip
    for each in found:
        values = list(asdict(each).values())[2:]
        table.add_row(each.case.name, *(f"{value:.3f}" for value in values))
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
