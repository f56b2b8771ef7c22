"""How many seeds and classes a gap takes, from the variances of runs that were made."""

from __future__ import annotations

import bisect
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from mlbench.comparison.crossed import Components
from mlbench.comparison.pairs import both_ways
from mlbench.errors import MlbenchError

POWER = 0.8

NEEDED = (
    "planning needs records of at least two losses and two seeds, with totals by class; make "
    "some with: mlbench run --seeds 3"
)
"""What records must hold for their variances to be known."""
_MOST_SEEDS, _MOST_CLASSES = 10_000, 10_000_000


@dataclass(frozen=True)
class Sources:
    """Variance of the difference of two rows, by where it comes from.

    Attributes:
        classes: of one class, apart from seeds; the median over pairs, which may differ widely.
        both: of one class in one run, noise of queries with it.
        seeds: of one run, alike for all classes.
    """

    classes: float
    both: float
    seeds: float


def sources(parts: Components) -> Sources:
    """Return the sources of variance in runs that were made.

    Raises:
        MlbenchError: fewer than two rows, no totals by class, or no row with two runs.
    """
    import numpy as np

    noise, known = parts.noise, ~parts.deterministic & (parts.noise.freedom > 0)
    if len(parts.names) < 2 or not parts.for_other_classes or not known.any():
        raise MlbenchError(NEEDED)
    first, second = np.triu_indices(len(parts.names), 1)
    of_both = noise.both * parts.share_of_run
    pure = np.maximum(parts.class_variance - of_both[first] - of_both[second], 0)
    both, seeds = (float(np.median(each[known])) for each in (noise.both, noise.seeds))
    return Sources(
        classes=parts.classes * float(np.median(pure)),
        both=parts.classes * 2 * both,
        seeds=2 * max(seeds - both, 0.0),
    )


@dataclass(frozen=True)
class Shipped:
    """Variances that come with mlbench.

    Attributes:
        what: they are of, and in which study.
        classes: number of test classes there.
        sources: of the variance of R@1.
    """

    what: str
    classes: int
    sources: Sources


def shipped() -> Shipped:
    """Return the variances of the shipped study of frozen features on CUB-200-2011."""
    file = resources.files("mlbench") / "comparison" / "variances.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))["cub200"]
    found = Sources(table["classes"], table["both"], table["seeds"])
    what = f"{table['what']} ({table['rows']} rows of {table['study']})"
    return Shipped(what, table["test_classes"], found)


@dataclass(frozen=True)
class Design:
    """What is to be run.

    Attributes:
        rows: losses that are compared.
        seeds: of each; infinite for the limit of many.
        classes: to test on.
    """

    rows: int
    seeds: float
    classes: int

    def __post_init__(self) -> None:
        if self.rows < 2 or self.seeds < 2 or self.classes < 2:
            raise MlbenchError("a plan needs at least two losses, two seeds and two classes")

    @property
    def tail(self) -> float:
        """Of a pair's interval, on either side, by Bonferroni over all pairs."""
        return 0.025 / (self.rows * (self.rows - 1) / 2)


def half_width(found: Sources, design: Design) -> float:
    """Return the half-width of the interval of a difference that is to be expected."""
    return _multiple(found, design, power=0.5)


def detectable_gap(found: Sources, design: Design, power: float = POWER) -> float | None:
    """Return the gap that is told apart with a chance of ``power``.

    None if it is unknown: for any number of seeds, where the rows at hand show no variance between
    classes beyond that of seeds, as variants of one loss may.
    """
    if math.isinf(design.seeds) and found.classes == 0:
        return None
    return _multiple(found, design, power)


def _multiple(found: Sources, design: Design, power: float) -> float:
    from scipy.special import stdtrit

    variance, freedom = _variance(found, design)
    quantiles = stdtrit(freedom, 1 - design.tail) + stdtrit(freedom, power)
    return float(quantiles) * math.sqrt(variance)


def _variance(found: Sources, design: Design) -> tuple[float, float]:
    import numpy as np

    classes, seeds = design.classes - 1, design.rows * (design.seeds - 1)
    if math.isinf(design.seeds):
        return found.classes / design.classes, classes
    of_both = found.both / design.seeds / design.classes
    of_classes = found.classes / design.classes + of_both
    of_seeds = found.seeds / design.seeds + of_both
    variance, freedom = both_ways(
        (np.array(of_classes), np.array(classes)),
        (np.array(of_seeds), np.array(seeds)),
        (np.array(of_both), np.array(classes * seeds)),
    )
    return float(variance), float(freedom)


def seeds_needed(found: Sources, gap: float, rows: int, classes: int) -> int | None:
    """Return how many seeds tell a gap apart with 80 % power on so many classes.

    None if no number of seeds does, or none below 10,000.
    """
    return _fewest(lambda n: detectable_gap(found, Design(rows, n, classes)), gap, _MOST_SEEDS)


def classes_needed(found: Sources, gap: float, rows: int, seeds: int) -> int | None:
    """Return how many test classes tell a gap apart with 80 % power with so many seeds.

    None if no number of classes does, or none below 10 million: noise of seeds is left.
    """
    return _fewest(lambda n: detectable_gap(found, Design(rows, seeds, n)), gap, _MOST_CLASSES)


def _fewest(detectable: Callable[[int], float | None], gap: float, most: int) -> int | None:
    """Return the least number, 2 or more, at which a gap is found; what is found only shrinks."""

    def enough(number: int) -> bool:
        least = detectable(number)
        return least is not None and least <= gap

    if not gap > 0 or not enough(most):
        return None
    return 2 + bisect.bisect_left(range(2, most), True, key=enough)
