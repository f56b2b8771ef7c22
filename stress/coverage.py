"""Do the intervals cover, and do the tests cry wolf as rarely as they say? By simulation.

    python stress/coverage.py [--trials N] [--json PATH]

Hits of several losses are drawn on shared queries: a query has a difficulty, a loss finds some
queries hard for itself, a seed shifts a loss, and the rest is chance. Printed are how often the
95 % interval of a difference holds the true one, how often two equal losses are called different
at 5 %, and how often a table of equal losses leaves any of them out of the bold (5 % at most).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from mlbench.comparison.statistics import compare_all, paired_difference, pooled_noise

Hits = npt.NDArray[np.float64]
QUERIES = 400


@dataclass(frozen=True)
class Case:
    """What is drawn.

    Attributes:
        seeds: of each loss.
        noise: between the seeds of each loss, in units of the queries' spread.
        last: seeds of the last loss, if it has fewer.
    """

    seeds: int
    noise: tuple[float, ...]
    last: int | None = None


@dataclass(frozen=True)
class Rates:
    """What came out of a case, as fractions of the trials."""

    case: Case
    coverage: float
    false_positive: float
    table_error: float


CASES = (
    Case(2, (0.05,) * 4),
    Case(3, (0.02,) * 4),
    Case(3, (0.1,) * 4),
    Case(3, (0.1,) * 10),
    Case(5, (0.05,) * 4),
    Case(10, (0.05,) * 4),
    Case(3, (0.02, 0.02, 0.02, 0.15)),
    Case(5, (0.02, 0.1, 0.02, 0.1)),
    Case(10, (0.05,) * 2, 2),
    Case(10, (0.05,) * 4, 3),
)


def draw(
    rng: np.random.Generator, case: Case, shifts: Sequence[float], queries: int = QUERIES
) -> list[Hits]:
    """Return ``(S, Q)`` hits of each loss, the seeds of the last one the first of the others'."""
    difficulty = rng.normal(0.2, 1, queries)
    drawn = []
    for shift, noise in zip(shifts, case.noise, strict=True):
        own = rng.normal(0, 0.3, queries)
        of_seed = rng.normal(0, noise, (case.seeds, 1))
        chance = rng.normal(0, 0.7, (case.seeds, queries))
        drawn.append((difficulty + own + shift + of_seed + chance > 0).astype(float))
    return [*drawn[:-1], drawn[-1][: case.last]]


def pairs(hits: Sequence[Hits]) -> list[tuple[Hits, Hits]]:
    """Return all pairs of losses over the seeds that both have."""
    return [(a[: len(b)], b[: len(a)]) for a, b in combinations(hits, 2)]


def rates(case: Case, trials: int) -> Rates:
    """Simulate one case."""
    rng = np.random.default_rng(0)
    losses = len(case.noise)
    shifts = [0.1] + [0.0] * (losses - 1)
    large = [draw(rng, case, shifts, 20_000) for _ in range(20)]
    true = float(np.mean([hits[0].mean() - hits[-1].mean() for hits in large]))
    covered, false, wrong = [], [], []
    for _ in range(trials):
        hits = draw(rng, case, shifts)
        noise = pooled_noise([a - b for a, b in pairs(hits)], losses)
        ((first, last),) = pairs((hits[0], hits[-1]))
        difference = paired_difference(first, last, noise=noise)
        covered.append(abs(difference.mean - true) <= difference.half_width)
        equal = draw(rng, case, [0.0] * losses)
        noise = pooled_noise([a - b for a, b in pairs(equal)], losses)
        false += [paired_difference(a, b, noise=noise).p < 0.05 for a, b in pairs(equal)]
        by_run: dict[str, dict[Hashable, Hits]] = {
            str(number): dict(enumerate(runs)) for number, runs in enumerate(equal)
        }
        wrong.append(len(compare_all(by_run)[2]) < losses)
    return Rates(case, float(np.mean(covered)), float(np.mean(false)), float(np.mean(wrong)))


def main() -> None:
    """Run all cases, print a table, write JSON if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = [rates(case, arguments.trials) for case in CASES]
    table = Table(title=f"{arguments.trials} trials a case, {QUERIES} queries")
    for name in ("seeds", "noise between seeds", "coverage", "pair error", "table error"):
        table.add_column(name, justify="right")
    for each in found:
        losses, different = len(each.case.noise), sorted(set(each.case.noise))
        noise = f"{' or '.join(map(str, different))}, {losses} losses"
        figures = (each.coverage, each.false_positive, each.table_error)
        fewer = "" if each.case.last is None else f", one {each.case.last}"
        table.add_row(f"{each.case.seeds}{fewer}", noise, *(f"{value:.3f}" for value in figures))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
