"""What the runs of some rows say of their differences, metric by metric."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from mlbench.comparison.best import Behind, Standing, against_best, compare_with_best
from mlbench.comparison.chances import (
    Better,
    better_than_next,
    mean_half_widths,
    share_of_classes,
)
from mlbench.comparison.crossed import (
    ClassTotals,
    Components,
    components,
    components_of_scores,
    for_these_classes,
)
from mlbench.comparison.estimates import estimate
from mlbench.comparison.planning import Sources, sources
from mlbench.comparison.splits import Split, over_splits
from mlbench.errors import MlbenchError
from mlbench.records.record import RunRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.comparison.pairs import Pairs

    Figures = npt.NDArray[np.float64]

Statement = Literal["other-classes", "these-classes"]
"""What a table is to speak of: other test classes and other seeds, or these classes alone."""

Runs = Mapping[str, Sequence[RunRecord]]
"""The finished runs of each row, at least one."""

_OF_CHANCE = "NMI"
"""The metric that differs between copies of one network, by the start of k-means."""

_WITHOUT_SEED = ("features", "pca")
"""Baselines into which no seed enters, but by the start of k-means."""


class Scope(StrEnum):
    """What the statement on a metric holds for."""

    CLASSES_AND_SEEDS = "other classes and seeds"
    TEST_CLASSES = "other test classes"
    SEEDS = "other seeds on these test classes"
    SPLITS = "other splits of these classes"
    CLASSES = "other classes with these seeds"
    NOTHING = "nothing else"

    @property
    def judged(self) -> bool:
        """Whether rows may be marked: the noise between seeds, or between splits, is known."""
        return self not in (Scope.CLASSES, Scope.NOTHING)


@dataclass(frozen=True)
class Differences:
    """The differences of all pairs of rows in one metric, as fractions.

    Attributes:
        names: of the rows; the pairs are (0, 1), (0, 2), ..., (1, 2), ...
        difference: mean of the first minus that of the second.
        half_width: of its own 95 % interval.
        p: two-sided, of that pair alone.
    """

    names: tuple[str, ...]
    difference: tuple[float, ...]
    half_width: tuple[float, ...]
    p: tuple[float, ...]


@dataclass(frozen=True)
class Judgement:
    """What is said of the rows in one metric.

    Attributes:
        scope: what it holds for.
        half_widths: by row, of the 95 % interval of its mean over seeds (over splits if there are
            several); None where it is not known or there is no such noise.
        behind: by row, how far it is behind the best; empty with one row, or if nothing is known.
        marked: rows that are not told apart from the best.
        differences: of all pairs; None where ``behind`` is empty.
        noisy: rows that are noisier from seed to seed than the rest.
        better: by row, the chance that a run of it beats one of the next, on other classes.
        leads: by row, the share of the test classes on which its mean is the highest.
        sources: of the variance, for plans; None if they are not known.
    """

    scope: Scope
    half_widths: Mapping[str, float | None]
    behind: Mapping[str, Behind] = field(default_factory=dict)
    marked: frozenset[str] = frozenset()
    differences: Differences | None = None
    noisy: tuple[str, ...] = ()
    better: Mapping[str, Better] = field(default_factory=dict)
    leads: Mapping[str, float] = field(default_factory=dict)
    sources: Sources | None = None


def judge(
    runs: Runs, metrics: Iterable[str], statement: Statement = "other-classes"
) -> dict[str, Judgement]:
    """Judge rows in each metric.

    A metric without totals by class (NMI, or all metrics of records that were made before totals
    were kept) is judged over seeds alone. Over several folds or splits of the classes, what is
    compared is the difference in each of those that all rows have.

    Args:
        runs: of the rows; those that were tested on the same split have the same queries.
        metrics: names.
        statement: what is to be said.

    Raises:
        MlbenchError: rows of one split were tested on different queries.
    """
    evidence = _Evidence(runs)
    judge_one = _over_splits if len(evidence.splits) > 1 else _over_seeds
    return {metric: judge_one(evidence, metric, statement) for metric in metrics}


def split_of(record: RunRecord) -> Hashable:
    """Return the split and fold of a run; runs of the same classes differ by seed."""
    return record.split, record.fold


def means_by_split(runs: Iterable[RunRecord], metric: str) -> list[float]:
    """Return the mean of the runs on each split and fold."""
    figures: dict[Hashable, list[float]] = {}
    for run in runs:
        figures.setdefault(split_of(run), []).append(float(run.metrics[metric]))
    return [estimate(each).mean for each in figures.values()]


def is_copied(runs: Sequence[RunRecord]) -> bool:
    """Tell whether runs are one result copied, as those of ``features`` are whatever the seed.

    One run is, if no seed enters it: untrained features of weights that were there before. What was
    tested on several splits of the classes is not, however alike it is. Nor are trained runs, which
    may agree on a test set that is too easy.
    """
    if runs[0].loss not in _WITHOUT_SEED or len(set(map(split_of, runs))) > 1:
        return False
    if len(runs) == 1:
        return runs[0].weights_id != "none"
    first, *others = [{**run.metrics, _OF_CHANCE: 0} for run in runs]
    packed = {None if run.class_totals is None else run.class_totals.packed for run in runs}
    return all(each == first for each in others) and len(packed) == 1


class _Evidence:
    """The runs of rows, as the statistics take them.

    Args:
        runs: by row.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        every = [run for each in runs.values() for run in each]
        self.copied = frozenset(name for name, each in runs.items() if is_copied(each))
        self.splits = list(dict.fromkeys(map(split_of, every)))
        totals = [run.totals for run in every]
        known = [frozenset(each.sums) for each in totals if each is not None]
        complete = known and len(known) == len(totals)
        self.by_class = frozenset.intersection(*known) if complete else frozenset[str]()

    @functools.cached_property
    def queries(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """``(G,)`` numbers of the test classes and their queries, the same for all runs.

        Raises:
            MlbenchError: they are not the same.
        """
        every = [run for each in self.runs.values() for run in each]
        tested = {
            (totals.classes.tobytes(), totals.queries.tobytes()): totals
            for totals in (run.totals for run in every)
            if totals is not None
        }
        if len(tested) > 1:
            raise MlbenchError("runs were tested on different queries; they cannot be compared")
        (totals,) = tested.values()
        return totals.classes, totals.queries

    def scores(self, metric: str) -> dict[str, Figures]:
        """Return ``(S,)`` figures of the runs, by row."""
        import numpy as np

        return {
            name: np.array([run.metrics[metric] for run in each], dtype=np.float64)
            for name, each in self.runs.items()
        }

    def totals(self, metric: str) -> dict[str, ClassTotals]:
        """Return totals by class and row, of a metric that is in ``by_class``."""
        import numpy as np

        _, queries = self.queries
        return {
            name: ClassTotals(
                np.array([run.totals.sums[metric] for run in each if run.totals]), queries
            )
            for name, each in self.runs.items()
        }

    def of(self, split: Hashable) -> _Evidence:
        """Return the runs on one split, of the rows that have some."""
        chosen = {
            name: [run for run in each if split_of(run) == split]
            for name, each in self.runs.items()
        }
        return _Evidence({name: each for name, each in chosen.items() if each})


def _over_seeds(evidence: _Evidence, metric: str, statement: Statement) -> Judgement:
    """Judge rows that were made on one split of the classes."""
    copied, leads = evidence.copied, {}
    if metric in evidence.by_class:
        rows = evidence.totals(metric)
        parts, leads = components(rows, copied), share_of_classes(rows)
    else:
        parts = components_of_scores(evidence.scores(metric), copied)
    if statement == "these-classes":
        parts = for_these_classes(parts)
    scope, standing = _scope(parts), compare_with_best(parts)
    known = scope is not Scope.NOTHING
    return Judgement(
        scope,
        mean_half_widths(parts),
        standing.behind if known else {},
        standing.marked,
        _differences(parts.names, standing.pairs) if known and standing.behind else None,
        parts.noisy,
        better_than_next(parts, standing.pairs),
        leads,
        _sources(parts),
    )


def _scope(parts: Components) -> Scope:
    if parts.for_other_classes:
        return Scope.CLASSES_AND_SEEDS if parts.for_other_seeds else Scope.CLASSES
    return Scope.SEEDS if parts.for_other_seeds else Scope.NOTHING


def _sources(parts: Components) -> Sources | None:
    try:
        return sources(parts)
    except MlbenchError:  # too few rows or runs
        return None


def _differences(names: Sequence[str], found: Pairs) -> Differences:
    columns = (found.difference, found.half_widths(), found.p_values())
    return Differences(tuple(names), *(tuple(column.tolist()) for column in columns))


def _over_splits(evidence: _Evidence, metric: str, statement: Statement) -> Judgement:
    """Judge rows that were made on several splits, over those that all of them have."""
    parts = {split: evidence.of(split) for split in evidence.splits}
    shared = [each for each in parts.values() if len(each.runs) == len(evidence.runs)]
    half_widths = {
        name: estimate(means_by_split(runs, metric)).half_width
        for name, runs in evidence.runs.items()
    }
    if len(shared) < 2:
        return Judgement(Scope.NOTHING, half_widths)
    by_class = metric in evidence.by_class and statement == "other-classes"
    names, standing = _standing_over_splits(shared, metric, by_class=by_class)
    return Judgement(
        Scope.TEST_CLASSES if by_class else Scope.SPLITS,
        half_widths,
        standing.behind,
        standing.marked,
        _differences(names, standing.pairs) if standing.behind else None,
    )


def _standing_over_splits(
    shared: Sequence[_Evidence], metric: str, *, by_class: bool
) -> tuple[tuple[str, ...], Standing]:
    splits = [_split(each, metric, by_class=by_class) for each in shared]
    found = over_splits(splits)
    pairs = found.other_test_classes
    # Bonferroni: no covariance of means over splits is estimated to draw from.
    tail = 0.025 / max(len(pairs.difference), 1)
    return found.names, against_best(found.names, found.means, pairs, tail, judged=True)


def _split(evidence: _Evidence, metric: str, *, by_class: bool) -> Split:
    first = next(run for each in evidence.runs.values() for run in each)
    trained = max(first.dataset.train_classes, 1)
    if by_class:
        return Split(evidence.queries[0].tolist(), evidence.totals(metric), trained)
    scores = evidence.scores(metric)
    rows = {name: ClassTotals(each[:, None], [1]) for name, each in scores.items()}
    return Split([""], rows, trained)
