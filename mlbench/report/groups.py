"""Records sorted into comparisons, each row with the runs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlbench.comparison.comparison import METRIC, Comparison, compare
from mlbench.comparison.rows import Row
from mlbench.records.record import RunRecord

Runs = dict[Path, RunRecord]


@dataclass(frozen=True)
class RowRuns:
    """A row of a comparison with its finished runs, by path, in the order of seed and fold."""

    row: Row
    runs: Runs

    @property
    def label(self) -> str:
        """The row's label."""
        return self.row.label


@dataclass(frozen=True)
class Group:
    """A comparison, its rows with their runs, and all its records, whatever came of them."""

    comparison: Comparison
    entries: tuple[RowRuns, ...]
    records: Runs

    @property
    def trained(self) -> tuple[RowRuns, ...]:
        """The rows that are no baseline and have a finished run."""
        return tuple(entry for entry in self.entries if entry.runs and not entry.row.baseline)

    @property
    def first(self) -> RunRecord:
        """Any record: data set, recipe and protocol are the same in all."""
        return next(iter(self.records.values()))


def groups(records: Mapping[Path, RunRecord]) -> list[Group]:
    """Sort records into the comparisons that ``mlbench table`` prints, in its order.

    Their rows are in the order of R@1, the best loss first, unless they differ in a recipe field.

    Args:
        records: by the path of their file.
    """
    return [
        Group(
            comparison,
            tuple(RowRuns(row, _chosen(records, row.files)) for row in comparison.rows),
            _chosen(records, comparison.files),
        )
        for comparison in map(_best_first, compare(records))
    ]


def _best_first(comparison: Comparison) -> Comparison:
    """Return a comparison with its baselines first, then its losses by falling R@1."""
    if comparison.varied:
        return comparison

    def place(row: Row) -> tuple[bool, float]:
        known = row.estimates.get(METRIC)
        return not row.baseline, 1.0 if known is None else -round(known.mean, 9)

    return replace(comparison, rows=tuple(sorted(comparison.rows, key=place)))


def _chosen(records: Mapping[Path, RunRecord], files: Sequence[str]) -> Runs:
    return {path: records[path] for path in map(Path, files)}
