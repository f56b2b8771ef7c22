"""Do the intervals for other classes and seeds cover, and do the marks hold? By simulation.

    python stress/intervals.py [--quick] [--trials N] [--records DIR ...] [--json PATH]

Totals by class are drawn of losses with effects of class and loss, of class, seed and loss, and of
seed and loss, of the sizes that the records of ``results/study`` show. With ``--records``, classes
and runs of the records in a folder are drawn with replacement, a draw of runs for each loss, its
mean moved to where it should be.

Printed are, as fractions of the trials:

- pair: 95 % intervals of a difference of two losses that hold the true one
- behind: tables whose 95 % intervals of the distance to the best all hold the true ones
- mean: 95 % intervals of a mean over seeds that hold the mean of these classes
- error: tables that leave out any loss that is truly best, 0.05 at most
- power: losses truly behind that are not marked
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from mlbench.comparison.best import Standing, compare_with_best
from mlbench.comparison.chances import mean_half_widths
from mlbench.comparison.crossed import ClassTotals, components
from mlbench.comparison.pairs import all_pairs
from mlbench.errors import MlbenchError
from mlbench.records.record import RunRecord
from mlbench.records.store import read_results
from mlbench.records.totals import RunTotals

Figures = npt.NDArray[np.float64]
METRIC = "R@1"
STATISTICS = ("pair", "behind", "mean", "error", "power")
"""What is counted, by the names above."""

# Standard deviations, as fractions: of class and loss (with a factor between losses), of class,
# seed and loss with the noise of queries, of seed and loss.
OF_CLASS, FACTOR, OF_BOTH, OF_SEED = 0.024, 0.35, 0.052, 0.0039
SIZES = 41, 61


@dataclass(frozen=True)
class Drawn:
    """One trial.

    Attributes:
        rows: the totals of each loss.
        true: ``(L,)`` means over all classes and seeds.
        here: ``(L,)`` means over all seeds, on the classes that were drawn.
    """

    rows: dict[str, ClassTotals]
    true: Figures
    here: Figures


@dataclass(frozen=True)
class Case:
    """What is drawn.

    Attributes:
        classes: number of test classes.
        seeds: of each loss.
        gap: by which the first loss is ahead of the others, which are equal.
        source: of what; a folder of records.
    """

    classes: int
    seeds: tuple[int, ...]
    gap: float = 0.0
    source: str = "drawn"


@dataclass(frozen=True)
class Rates:
    """What came out of a case, as fractions of the trials; None where there is nothing to count."""

    case: Case
    trials: int
    pair: float
    behind: float
    mean: float | None
    error: float | None
    power: float | None


def draw(rng: np.random.Generator, case: Case) -> Drawn:
    """Draw totals of losses on classes of 41 to 60 queries."""
    queries = rng.integers(*SIZES, case.classes)
    true = np.array([0.5 + case.gap, *[0.5] * (len(case.seeds) - 1)])
    rows, here = {}, []
    for number, (mean, seeds) in enumerate(zip(true, case.seeds, strict=True)):
        spread = OF_CLASS * np.exp(rng.normal(0, FACTOR))
        of_class = mean + rng.normal(0, spread, case.classes)
        noise = rng.normal(0, OF_BOTH, (seeds, case.classes)) + rng.normal(0, OF_SEED, (seeds, 1))
        rows[str(number)] = ClassTotals(queries * (of_class + noise), queries)
        here.append(np.average(of_class, weights=queries))
    return Drawn(rows, true, np.array(here))


@dataclass(frozen=True)
class World:
    """Records to draw from: of each loss, ``(S, G)`` totals of its runs; ``(G,)`` queries."""

    totals: tuple[Figures, ...]
    queries: Figures

    @classmethod
    def read(cls, folder: Path, losses: int) -> World:
        """Read the losses of the highest means, each with the same parameters in all its runs."""
        runs: dict[tuple[str, str], list[RunTotals]] = {}
        for record in read_results(folder).records.values():
            if record.totals is not None and not _is_baseline(record):
                runs.setdefault((record.loss, str(record.params)), []).append(record.totals)
        several = [each for each in runs.values() if len(each) > 1]
        totals = [np.array([run.sums[METRIC] for run in each]) for each in several]
        best = sorted(totals, key=lambda each: -each.mean())[:losses]
        if not best:
            raise MlbenchError(f"{folder}: no loss with two runs and totals by class")
        return cls(tuple(best), several[0][0].queries.astype(np.float64))

    def draw(self, rng: np.random.Generator, case: Case) -> Drawn:
        """Draw classes, and runs of each loss, with replacement; move the means."""
        classes = rng.integers(len(self.queries), size=case.classes)
        queries = self.queries[classes]
        true = np.array([case.gap, *[0.0] * (len(case.seeds) - 1)])
        rows, here = {}, []
        for number, (whole, seeds) in enumerate(zip(self.totals, case.seeds, strict=True)):
            mean = whole.mean(axis=0).sum() / self.queries.sum()
            moved = whole + (true[number] - mean) * self.queries
            chosen = rng.integers(len(whole), size=seeds)
            rows[str(number)] = ClassTotals(moved[chosen][:, classes], queries)
            here.append(moved.mean(axis=0)[classes].sum() / queries.sum())
        return Drawn(rows, true, np.array(here))


def _is_baseline(record: RunRecord) -> bool:
    return record.status != "ok" or record.loss in ("features", "pca", "untrained")


@cache
def world(folder: str, losses: int) -> World:
    """Read records once."""
    return World.read(Path(folder), losses)


@dataclass(frozen=True)
class Outcome:
    """What came out of a trial, as in ``Rates``."""

    pair: float
    behind: float
    mean: float
    error: float
    power: float


def judge(drawn: Drawn) -> Outcome:
    """Compare the losses of a trial."""
    parts = components(drawn.rows, deterministic=())
    found, standing = all_pairs(parts), compare_with_best(parts)
    wanted = drawn.true[found.first] - drawn.true[found.second]
    distance = drawn.true.max() - drawn.true
    holds = [
        each.low <= far + 1e-12 and far <= each.high + 1e-12
        for each, far in zip(standing.behind.values(), distance, strict=True)
    ]
    widths = mean_half_widths(parts).values()
    means = [
        abs(mean - true) <= width
        for mean, true, width in zip(parts.means, drawn.here, widths, strict=True)
        if width is not None
    ]
    return Outcome(
        float(np.mean(np.abs(found.difference - wanted) <= found.half_widths())),
        float(all(holds)),
        float(np.mean(means)) if means else np.nan,
        *_marks(standing, distance),
    )


def _marks(standing: Standing, distance: Figures) -> tuple[float, float]:
    """Return error and power."""
    if not standing.judged:
        return np.nan, np.nan
    best = {str(n) for n in np.flatnonzero(distance == 0)}
    worse = {str(n) for n in np.flatnonzero(distance > 0)}
    power = len(worse - standing.marked) / len(worse) if worse else np.nan
    return float(not best <= standing.marked), power


def rates(case: Case, trials: int) -> Rates:
    """Simulate one case; its random numbers hang on nothing else."""
    rng = np.random.default_rng([case.classes, len(case.seeds), *case.seeds])
    trial: Callable[[np.random.Generator, Case], Drawn] = draw
    if case.source != "drawn":
        trial = world(case.source, len(case.seeds)).draw
    outcomes = [list(asdict(judge(trial(rng, case))).values()) for _ in range(trials)]
    figures = [None if np.isnan(value) else float(value) for value in np.mean(outcomes, axis=0)]
    return Rates(case, trials, *figures)  # pyright: ignore[reportArgumentType]


def grid(trials: int) -> list[tuple[Case, int]]:
    """Return the cases, with the number of trials of each."""
    several = {2: 2 * trials, 4: trials, 10: trials, 30: trials // 2}
    equal = [
        (Case(classes, (seeds,) * losses), count)
        for losses, count in several.items()
        for classes in (12, 60, 100, 1000)
        for seeds in (1, 2, 3, 5, 10)
    ]
    unequal = ((10, 10, 10, 1), (5, 5, 5, 1), (3, 3, 1, 1), (2, 1), (3,) * 9 + (1,))
    apart = [
        (Case(100, (seeds,) * losses, gap), several[losses])
        for losses in (2, 4, 10, 30)
        for gap in (0.005, 0.01, 0.02)
        for seeds in (3, 10)
    ]
    return [*equal, *((Case(100, seeds), trials) for seeds in unequal), *apart]


def of_records(folders: Sequence[str], trials: int, losses: int) -> list[tuple[Case, int]]:
    """Return cases of equal losses, and of one that is ahead, drawn from records."""
    cases = []
    for folder in folders:
        count = len(world(folder, losses).totals)
        cases += [
            (Case(100, (seeds,) * count, gap, folder), trials)
            for gap in (0.0, 0.02)
            for seeds in (2, 3, 10)
        ]
    return cases


QUICK = [(Case(12, (2, 2)), 40), (Case(60, (3,) * 4), 40), (Case(60, (3,) * 4, 0.02), 40)]


def report(found: Iterable[Rates]) -> str:
    """Return a table: cases that differ in the number of seeds alone share a line."""
    header = ("source", "losses", "classes", "gap", "trials", "seeds", *STATISTICS)
    body = [_line(list(group)) for _, group in groupby(found, _setting)]
    return tabulate(body, header, "simple", disable_numparse=True, stralign="right")


def _setting(each: Rates) -> Hashable:
    """Return all of a case but the number of seeds, unless losses differ in it."""
    case = each.case
    seeds = len(case.seeds) if len(set(case.seeds)) == 1 else case.seeds
    return case.source, seeds, case.classes, case.gap, each.trials


def _line(found: Sequence[Rates]) -> list[str]:
    case, seeds = found[0].case, found[0].case.seeds
    several = [f"{seeds.count(n)} x {n}" for n in sorted(set(seeds), reverse=True)]
    alike = " ".join(str(each.case.seeds[0]) for each in found)
    counts = ", ".join(several) if len(several) > 1 else alike
    statistics = (" ".join(_figure(getattr(each, name)) for each in found) for name in STATISTICS)
    setting = (len(seeds), case.classes, f"{100 * case.gap:g}", found[0].trials, counts)
    return [Path(case.source).name, *map(str, setting), *statistics]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")[:4]


def main() -> None:
    """Run all cases, print a table, write JSON if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three small cases alone")
    parser.add_argument("--trials", type=int, default=400, help="of 4 or 10 losses")
    parser.add_argument(
        "--records", nargs="+", default=[], metavar="DIR", help="folders of records"
    )
    parser.add_argument("--losses", type=int, default=8, help="the best so many of the records")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    cases = QUICK if arguments.quick else grid(arguments.trials)
    if arguments.records:
        cases = of_records(arguments.records, arguments.trials, arguments.losses)
    found = [rates(case, trials) for case, trials in cases]
    print(report(found))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
