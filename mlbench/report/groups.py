"""Records sorted into comparisons, each row with the runs behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlbench.comparison import Comparison, Row, compare, place
from mlbench.record import RunRecord

Runs = dict[Path, RunRecord]
Cell = tuple[int, int]
"""Seed and fold of a run; -1 for none."""


@dataclass(frozen=True)
class Entry:
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
    entries: tuple[Entry, ...]
    records: Runs

    @property
    def trained(self) -> tuple[Entry, ...]:
        """The rows that are no baseline and have a finished run."""
        return tuple(entry for entry in self.entries if entry.runs and not entry.row.baseline)

    @property
    def first(self) -> RunRecord:
        """Any record: data set, recipe and protocol are the same in all."""
        return next(iter(self.records.values()))


def groups(records: Mapping[Path, RunRecord]) -> list[Group]:
    """Sort records into the comparisons that ``mlbench table`` prints, in its order.

    Args:
        records: by the path of their file.
    """
    parts: dict[tuple[str, str, int, str], Runs] = {}
    for path, r in records.items():
        key = (r.recipe_id, r.dataset.fingerprint, r.protocol_version, r.weights_id)
        parts.setdefault(key, {})[path] = r
    ordered = [part for _, part in sorted(parts.items())]
    return [_group(c, part) for c, part in zip(compare(records), ordered, strict=True)]


def _group(comparison: Comparison, records: Runs) -> Group:
    rows = {row.label: row for row in comparison.rows}
    cells: dict[str, dict[Cell, Path]] = {label: {} for label in rows}
    for path, record in records.items():
        # Of repeated runs the first counts, as in the table.
        cells[_label(record, rows)].setdefault(_cell(record), path)
    entries = tuple(Entry(row, _finished(cells[label], records)) for label, row in rows.items())
    return Group(comparison, entries, records)


def _finished(cells: Mapping[Cell, Path], records: Runs) -> Runs:
    ordered = (path for _, path in sorted(cells.items()))
    return {path: records[path] for path in ordered if records[path].status == "ok"}


def _cell(record: RunRecord) -> Cell:
    return record.seed, -1 if record.fold is None else record.fold


def _label(record: RunRecord, rows: Mapping[str, Row]) -> str:
    """Return the label of a record's row; the table's own rule is asked, with the record alone."""
    (alone,) = compare({Path("alone.json"): record})
    label = alone.rows[0].label
    return label if label in rows else f"{label} [{place(record)}]"
