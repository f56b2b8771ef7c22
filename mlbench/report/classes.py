"""R@1 by class and by query, over the runs of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlbench.arrays import Labels
from mlbench.report.data import Floats, scores_of
from mlbench.report.groups import RowRuns


@dataclass(frozen=True, eq=False)
class QueryFigures:
    """How often each query was answered.

    Attributes:
        labels: the rows, ``L`` of them.
        found: ``(L, Q)`` share of the row's runs whose nearest neighbour was right.
        ap_at_r: ``(L, Q)`` mean AP@R over the row's runs.
    """

    labels: tuple[str, ...]
    found: Floats
    ap_at_r: Floats

    def by_class(self, classes: Labels, count: int) -> Floats:
        """Return ``(L, count)`` R@1 by class, from the ``(Q,)`` classes of the queries."""
        sizes = np.bincount(classes, minlength=count)
        sums = [np.bincount(classes, weights=row, minlength=count) for row in self.found]
        return np.stack(sums) / sizes


def query_figures(entries: Sequence[RowRuns], count: int) -> QueryFigures | None:
    """Average the per-query results of rows over their runs.

    Args:
        entries: rows; those without per-query results of ``count`` queries are left out.
        count: number of queries.

    Returns:
        None if no row has any.
    """
    found = {entry.label: _mean(entry, "R@1", count) for entry in entries}
    ap_at_r = {entry.label: _mean(entry, "MAP@R", count) for entry in entries}
    rows = {
        label: (hits, ap)
        for label, hits in found.items()
        if hits is not None and (ap := ap_at_r[label]) is not None
    }
    if not rows:
        return None
    hits, aps = (np.stack(part) for part in zip(*rows.values(), strict=True))
    return QueryFigures(tuple(rows), hits, aps)


def _mean(entry: RowRuns, metric: str, count: int) -> Floats | None:
    runs = [scores_of(path, record, metric, count) for path, record in entry.runs.items()]
    kept = [scores for scores in runs if scores is not None]
    return np.mean(kept, axis=0) if kept else None
