"""What the page shows of one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlbench.comparison.comparison import METRIC
from mlbench.errors import MlbenchError
from mlbench.interfaces import ImageSet
from mlbench.report import gallery, maps, plots, sheets
from mlbench.report.classes import QueryFigures, query_figures
from mlbench.report.groups import Group, RowRuns
from mlbench.report.style import Style
from mlbench.report.svg import Picture
from mlbench.report.thumbnails import Album
from mlbench.tables.layout import percent, reference_sheet, sheet
from mlbench.tables.sheet import Sheet

SHOWN_CLASSES = 10
"""Best and worst classes in the figures."""

_OTHER_IMAGES = "Not shown for random splits, because each split has its own test images."
_NO_QUERIES = "No run has its per-query results (.npz) next to its record; restore these files."
_NO_NEIGHBORS = (
    "The records contain no neighbours: an earlier version of mlbench made them. Repeat the runs "
    "in another folder (mlbench run --out FOLDER) and make the report of that folder."
)
_NO_EMBEDDINGS = (
    "There are no test embeddings next to the records. Save them with mlbench run --keep-model."
)


@dataclass(frozen=True)
class Classes:
    """Figures and table by class; or ``note``, why there are none."""

    pictures: tuple[Picture, ...] = ()
    sheet: Sheet | None = None
    note: str = ""


@dataclass(frozen=True)
class Interactive:
    """A part that the page's script fills: the data it reads, or ``note``, why there are none.

    Attributes:
        labels: of the rows that it shows.
        data: as JSON can hold it.
        note: "" if there are data.
    """

    labels: tuple[str, ...] = ()
    data: dict[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One comparison on the page."""

    id: str
    group: Group
    headline: str
    styles: Mapping[str, Style]
    sheet: Sheet
    reference: Sheet | None
    accuracy: tuple[Picture, ...]
    training: tuple[Picture, ...]
    score: Picture | None
    cost: tuple[Picture, ...]
    reports: tuple[Picture, ...]
    classes: Classes
    gallery: Interactive
    map: Interactive
    recipe: sheets.Facts
    provenance: list[tuple[str, sheets.Facts]]
    runs: Sheet


def section(
    number: int,
    group: Group,
    folder: Path,
    styles: Mapping[str, Style],
    album: Album | MlbenchError,
) -> Section:
    """Draw and lay out all that the page shows of one comparison.

    Args:
        number: of the comparison, from 1.
        group: its rows and records.
        folder: that the records were read from.
        styles: of all rows of the report.
        album: its test images and their pictures, or why they are not there.
    """
    name, table = f"comparison-{number}", sheet(group.comparison)
    score = plots.score_plot(group, styles, f"{name}-score")
    classes, gallery_part, map_part = _of_images(group, styles, album, name)
    return Section(
        id=name,
        group=group,
        headline=table.advice or highest(group),
        styles={entry.label: styles[entry.label] for entry in group.entries},
        sheet=table,
        reference=reference_sheet(group.comparison),
        accuracy=_accuracy(group, styles, name),
        training=tuple(plots.loss_plots(group, styles, f"{name}-loss")),
        score=score,
        cost=tuple(plots.cost_plots(group, styles, f"{name}-cost")),
        reports=_reports(group, styles, f"{name}-report"),
        classes=classes,
        gallery=gallery_part,
        map=map_part,
        recipe=sheets.recipe_facts(group),
        provenance=sheets.provenance_facts(group.records),
        runs=sheets.run_sheet(group, folder),
    )


def highest(group: Group) -> str:
    """Say which loss has the highest R@1, where the statistics support no advice."""
    entries = [entry for entry in group.trained if METRIC in entry.row.estimates]
    if not entries:
        return ""
    best = entries[0].row
    return f"Highest {METRIC}: {best.label}, {percent(best.estimates[METRIC])} percent."


def _accuracy(group: Group, styles: Mapping[str, Style], name: str) -> tuple[Picture, ...]:
    if not any(entry.runs for entry in group.entries):
        return ()
    pictures = (
        plots.recall_plot(group, styles, f"{name}-recall"),
        plots.distance_plot(group, styles, f"{name}-distance"),
        plots.recall_at_k_plot(group, styles, f"{name}-at-k"),
        plots.roc_plot(group, styles, f"{name}-roc"),
    )
    return tuple(picture for picture in pictures if picture)


def _reports(group: Group, styles: Mapping[str, Style], name: str) -> tuple[Picture, ...]:
    """Draw each figure that all runs of a row report."""
    rows: dict[str, list[RowRuns]] = {}
    for entry in group.trained:
        keys = [set(record.loss_report) for record in entry.runs.values()]
        for key in sorted(set.intersection(*keys)):
            rows.setdefault(key, []).append(entry)
    return tuple(
        plots.report_plot(entries, styles, key, f"{name}-{number}")
        for number, (key, entries) in enumerate(rows.items())
    )


def _of_images(
    group: Group, styles: Mapping[str, Style], album: Album | MlbenchError, name: str
) -> tuple[Classes, Interactive, Interactive]:
    """Return classes, gallery and map, or in each of them what is missing."""
    if group.comparison.identity.random_splits:
        note = _OTHER_IMAGES
        return Classes(note=note), Interactive(note=note), Interactive(note=note)
    if isinstance(album, MlbenchError):
        note = _no_images(album)
        return Classes(note=note), Interactive(note=note), Interactive(note=note)
    figures = query_figures(group.trained, len(album.queries))
    if figures is None:
        note = _NO_QUERIES if group.trained else "No loss was trained to the end."
        return Classes(note=note), Interactive(note=note), Interactive(note=note)
    return (
        _classes(figures, album.queries, styles, name),
        _gallery(group.trained, figures, album),
        _map(group.trained, album),
    )


def _no_images(error: MlbenchError) -> str:
    return (
        f"Not shown, because the test images and their classes were not found: {error} (for this "
        "page: mlbench report --data-root DIR, the folder that contains the data set)."
    )


def _classes(
    figures: QueryFigures, images: ImageSet, styles: Mapping[str, Style], name: str
) -> Classes:
    recalls = figures.by_class(images.labels, len(images.class_names))
    order = np.argsort(recalls.mean(axis=0).round(9), kind="stable")
    parts = {"All classes, lowest R@1 first": order}
    if len(order) > 2 * SHOWN_CLASSES:
        parts = {
            f"The {SHOWN_CLASSES} worst classes": order[:SHOWN_CLASSES],
            f"The {SHOWN_CLASSES} best classes": order[: -SHOWN_CLASSES - 1 : -1],
        }
    pictures = tuple(
        plots.class_plot(
            [images.class_names[c] for c in part],
            recalls[:, part],
            figures.labels,
            styles,
            (f"{name}-classes-{number}", title),
        )
        for number, (title, part) in enumerate(parts.items())
    )
    return Classes(pictures, sheets.class_sheet(figures, images.labels, images.class_names))


def _gallery(entries: Sequence[RowRuns], figures: QueryFigures, album: Album) -> Interactive:
    found = [f for f in gallery.found_by(entries, album) if f.label in figures.labels]
    if not found:
        return Interactive(note=_NO_NEIGHBORS)
    images = album.queries
    choices = gallery.choose(figures, images.labels, len(images.class_names))
    data = gallery.gallery(choices, found, figures, album)
    rows = [{"label": each.label, "run": each.run} for each in found]
    return Interactive(tuple(each.label for each in found), {**data, "rows": rows})


def _map(entries: Sequence[RowRuns], album: Album) -> Interactive:
    points, found = maps.maps(entries, album.queries.labels)
    if not found:
        return Interactive(note=_NO_EMBEDDINGS)
    for point in points.tolist():
        album.take([point])
    labels = tuple(each["label"] for each in found)
    return Interactive(labels, {"points": points.tolist(), "maps": found})
