"""Tables and lists of facts that only the report shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from mlbench.arrays import Labels
from mlbench.records.provenance import Provenance
from mlbench.records.record import RunRecord
from mlbench.report.classes import QueryFigures
from mlbench.report.groups import Group
from mlbench.tables.sheet import Line, Sheet

MOST_CLASSES = 200
"""Classes in the table by class: with more, the worst and the best half as many each."""

Facts = list[tuple[str, str]]


def class_sheet(figures: QueryFigures, classes: Labels, names: Sequence[str]) -> Sheet:
    """Lay out R@1 by class, the worst first.

    Args:
        figures: of the queries.
        classes: ``(Q,)`` of the queries.
        names: of the classes.
    """
    recalls = 100 * figures.by_class(classes, len(names))
    sizes = np.bincount(classes, minlength=len(names))
    order = np.argsort(recalls.mean(axis=0).round(9), kind="stable")
    note = "R@1 of the class's images as queries, percent, mean over runs"
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        note += f"; the worst and the best {half} of {len(order)} classes"
        order = np.concatenate([order[:half], order[-half:]])
    rows = [
        (names[int(c)], str(sizes[c]), *(f"{value:.1f}" for value in recalls[:, c])) for c in order
    ]
    return Sheet("R@1 by class", ("class", "images", *figures.labels), _lines(rows), (note,))


def run_sheet(group: Group, folder: Path) -> Sheet:
    """Lay out the records of a comparison, with their files relative to ``folder``."""
    rows = [
        (
            record.loss,
            str(record.seed),
            *("-" if part is None else str(part) for part in (record.fold, record.split)),
            record.status,
            f"{100 * record.metrics['R@1']:.2f}" if record.metrics else "-",
            f"{sum(record.cost.seconds.values()):.1f}",
            os.path.relpath(path, folder),
        )
        for path, record in sorted(group.records.items())
    ]
    header = ("loss", "seed", "fold", "split", "status", "R@1", "seconds in all", "file")
    return Sheet("Records", header, _lines(rows), ())


def _lines(rows: Sequence[tuple[str, ...]]) -> tuple[Line, ...]:
    return tuple(Line(row, (False,) * len(row)) for row in rows)


def recipe_facts(group: Group) -> Facts:
    """Return every field of the recipe and what else makes a comparison, as text."""
    first = group.first
    return [
        *((key, _text(value)) for key, value in first.recipe.flat().items()),
        ("data fingerprint", first.dataset.fingerprint),
        ("weights", first.weights_id),
        ("protocol version", str(first.protocol_version)),
    ]


def provenance_facts(records: Mapping[Path, RunRecord]) -> list[tuple[str, Facts]]:
    """Return each software and hardware that made some of the records, with their number."""
    groups: dict[str, list[Provenance]] = {}
    for record in records.values():
        groups.setdefault(str(record.provenance), []).append(record.provenance)
    return [
        (f"{len(each)} {'run' if len(each) == 1 else 'runs'}", _provenance(each[0]))
        for each in groups.values()
    ]


def _provenance(provenance: Provenance) -> Facts:
    values = [(f.name, getattr(provenance, f.name)) for f in fields(provenance)]
    return [(name, _text(value)) for name, value in values if value not in ("", {})]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
