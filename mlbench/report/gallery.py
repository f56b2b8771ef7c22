"""Which queries the gallery shows, and what each loss found for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlbench.arrays import Indices, Labels
from mlbench.report.classes import QueryFigures
from mlbench.report.data import neighbors_of
from mlbench.report.groups import RowRuns
from mlbench.report.thumbnails import Album

NEAREST = 5
HARDEST = 6
"""Queries in the list of the hardest of all classes."""

_MOST_QUERIES = 300


@dataclass(frozen=True)
class Choice:
    """A query of the gallery: its position, and why it was chosen."""

    query: int
    reason: str


@dataclass(frozen=True, eq=False)
class Found:
    """What one run of a row found: ``(Q, n)`` positions in the album, -1 where none is left."""

    label: str
    run: str
    neighbors: Indices


def found_by(entries: Sequence[RowRuns], album: Album) -> list[Found]:
    """Return the neighbours of each row's first run that kept them."""
    found = []
    for entry in entries:
        for path, record in entry.runs.items():
            neighbors = neighbors_of(path, record, len(album.queries), album.searched)
            if neighbors is not None:
                fold = "" if record.fold is None else f", fold {record.fold}"
                places = np.where(neighbors < 0, -1, neighbors + album.offset)
                found.append(Found(entry.label, f"seed {record.seed}{fold}", places))
                break
    return found


def choose(figures: QueryFigures, classes: Labels, count: int) -> list[Choice]:
    """Choose queries of every class, the most telling ones of all classes first.

    Of each class: the hardest (found by the fewest runs, then of least AP@R), the one that the
    losses disagree on most, and the one in the middle. With more than 300 classes, 300 that lie
    evenly between the hardest and the easiest.

    Args:
        figures: of the queries.
        classes: ``(Q,)`` of the queries.
        count: number of classes.
    """
    found, ap = figures.found.mean(axis=0), figures.ap_at_r.mean(axis=0).round(9)
    spread = figures.found.max(axis=0) - figures.found.min(axis=0)
    by_difficulty = np.lexsort((ap, found))
    members = [by_difficulty[classes[by_difficulty] == c] for c in _spread(figures, classes, count)]
    hardest = [Choice(int(m[0]), "hardest of its class") for m in members]
    hardest.sort(key=lambda choice: (found[choice.query], ap[choice.query], choice.query))
    disputed = [
        Choice(int(m[np.argmax(spread[m])]), "losses disagree most")
        for m in members
        if spread[m].max() > 0
    ]
    middle = [Choice(int(m[len(m) // 2]), "middle of its class") for m in members]
    return list(_once([*hardest, *disputed, *middle]))


def _spread(figures: QueryFigures, classes: Labels, count: int) -> Indices:
    order = np.argsort(figures.by_class(classes, count).mean(axis=0).round(9), kind="stable")
    chosen = np.linspace(0, count - 1, min(count, _MOST_QUERIES)).round().astype(np.int64)
    return order[chosen]


def _once(choices: Sequence[Choice]) -> Iterator[Choice]:
    seen: set[int] = set()
    for choice in choices:
        if choice.query not in seen:
            seen.add(choice.query)
            yield choice


def gallery(
    choices: Sequence[Choice],
    found: Sequence[Found],
    figures: QueryFigures,
    album: Album,
) -> dict[str, Any]:
    """Return the gallery as the page's script reads it, as far as there is room for its pictures.

    Args:
        choices: queries, the most telling first.
        found: what each row found.
        figures: of the queries, with the rows of ``found`` among its labels.
        album: of the test images; takes the pictures.
    """
    rows = [figures.labels.index(each.label) for each in found]
    queries = []
    for choice in choices:
        nearest = [[int(i) for i in each.neighbors[choice.query, :NEAREST] if i >= 0]
                   for each in found]  # fmt: skip
        if album.take([choice.query, *(i for each in nearest for i in each)]):
            queries.append(
                {
                    "image": choice.query,
                    "reason": choice.reason,
                    "nearest": nearest,
                    "found": [round(float(figures.found[row, choice.query]), 3) for row in rows],
                }
            )
    return {
        "hardest": min(HARDEST, len(queries)),
        "queries": queries,
        "classes": sorted({int(album.queries.labels[query["image"]]) for query in queries}),
    }
