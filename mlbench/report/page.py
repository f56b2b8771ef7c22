"""The page: all sections put into the template."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlbench.errors import MlbenchError
from mlbench.progress import PhaseProgress
from mlbench.records.record import PROTOCOL_VERSION
from mlbench.records.store import Results
from mlbench.report import maps
from mlbench.report.data import ImageFinder
from mlbench.report.effects import shown_effects
from mlbench.report.groups import Group, groups
from mlbench.report.ladders import ladders
from mlbench.report.sections import Section, section
from mlbench.report.style import styles
from mlbench.report.templates import resource, template
from mlbench.report.thumbnails import Album
from mlbench.tables.sheet import Sheet

PICTURE_BUDGET = 12_000_000
"""Characters of base64 for all pictures of a page, shared evenly by its comparisons."""


def render(results: Results, folder: Path, data_root: Path | None, progress: PhaseProgress) -> str:
    """Return the report as one HTML document.

    Args:
        results: at least one record.
        folder: that they were read from.
        data_root: folder that holds their data sets, or None.
        progress: told of each comparison that is drawn.
    """
    progress("comparing losses", 0, 0)
    given = groups(results.records)
    rows = [entry.row for group in given for entry in group.entries]
    looks = styles(
        (row.label for row in rows if not row.baseline), (r.label for r in rows if r.baseline)
    )
    albums = Albums(data_root, PICTURE_BUDGET // len(given))
    sections = []
    for number, group in enumerate(given, 1):
        progress("drawing comparisons", number - 1, len(given))
        sections.append(section(number, group, folder, looks, albums.of(group)))
    script = resource("report.js")
    page = template("report.html.jinja", sort_key=sort_key, word_columns=word_columns)
    return page.render(
        title=sections[0].sheet.title if len(sections) == 1 else f"{len(sections)} comparisons",
        summary=_summary(sections),
        sections=sections,
        ladders=ladders(results.records),
        effects=shown_effects(results.records),
        problems=[_relative(problem, folder) for problem in results.problems],
        protocol=PROTOCOL_VERSION,
        method=maps.method(),
        data={**albums.data(), **{f"{s.id}-data": _data(s, albums) for s in sections}},
        css=Markup(resource("report.css")),
        js=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


class Albums:
    """The pictures of every data set of a report, one album each.

    Args:
        data_root: folder that holds the data sets.
        share: characters that each comparison may add to the album of its data set.
    """

    def __init__(self, data_root: Path | None, share: int) -> None:
        self.share, self._finder = share, ImageFinder(data_root)
        self._albums: dict[str, Album] = {}

    def of(self, group: Group) -> Album | MlbenchError:
        """Return the album of a comparison, with its share of room; or why there is none."""
        try:
            dataset = self._finder.of(group.first)
        except MlbenchError as error:
            return error
        album = self._albums.setdefault(self.name(group), Album(dataset))
        album.grant(self.share)
        return album

    def name(self, group: Group) -> str:
        """Return the name under which the script finds the album of a comparison."""
        return f"images-{group.first.dataset.fingerprint[:12]}"

    def data(self) -> dict[str, Any]:
        """Return every album as the script reads it."""
        return {
            name: {
                "classes": album.class_names,
                "labels": album.labels.tolist(),
                "names": album.names,
                "pictures": album.taken,
            }
            for name, album in self._albums.items()
        }


def _data(given: Section, albums: Albums) -> dict[str, Any]:
    return {
        "images": albums.name(given.group),
        "gallery": given.gallery.data,
        "map": given.map.data,
    }


def _summary(sections: Sequence[Section]) -> str:
    runs = sum(len(each.group.records) for each in sections)
    losses = {entry.row.loss for each in sections for entry in each.group.trained}
    counted = f"{_count(runs, 'run')} of {_count(len(losses), 'loss', 'losses')}"
    if len(sections) > 1:
        return f"{counted} and baselines, in {len(sections)} comparisons."
    return f"{counted} and baselines."


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _relative(problem: str, folder: Path) -> str:
    """Name a damaged file relative to the folder, as the rest of the page does."""
    return problem.removeprefix(f"{folder}/")


def sort_key(cell: str) -> str:
    """Return the number that a cell sorts by: the one it begins with; 0 for the best; else ""."""
    number = re.match(r"[-+]?\d+(\.\d+)?", cell)
    return "0" if cell == "best" else number[0] if number else ""


def word_columns(given: Sheet) -> set[int]:
    """Return the columns, but the first, that hold words and no figure."""
    columns = enumerate(zip(*(line.cells for line in given.lines), strict=True))
    return {
        number
        for number, cells in columns
        if number and set(cells) - {"-"} and not any(map(sort_key, cells))
    }
