"""The picture sheet of suspects: likely mislabels and near-duplicates, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlbench.interfaces import ImageSet
from mlbench.models.suspects import Suspects
from mlbench.report.search import breakable
from mlbench.report.templates import resource, template
from mlbench.report.thumbnails import encoded
from mlbench.system.files import atomic_file

SHOWN = 200
"""The most mislabels, and the most pairs, of a sheet."""


def write_suspects(found: Suspects, images: ImageSet, run: str, source: str, output: Path) -> None:
    """Write the first ``SHOWN`` of each kind as one HTML file with their pictures.

    Args:
        found: what to show.
        images: in which it was found.
        run: name of the record whose network looked at them.
        source: the folder or data set.
        output: the file, replaced if it exists.

    Raises:
        MlbenchError: it cannot be written.
    """
    number = {name: i for i, name in enumerate(images.names)}

    def picture(name: str) -> dict[str, Any]:
        return {"path": name, "picture": encoded(images, number[name])}

    page = template("suspects.html.jinja", breakable=breakable).render(
        mislabels=[
            {"suspect": picture(m.path), "like": picture(m.like), "found": m}
            for m in found.mislabels[:SHOWN]
        ],
        copies=[
            {"suspect": picture(c.path), "like": picture(c.original), "found": c}
            for c in found.copies[:SHOWN]
        ],
        counts=(len(found.mislabels), len(found.copies)),
        unreadable=found.unreadable,
        images=found.images,
        source=source,
        run=run,
        css=Markup(resource("report.css")),
    )
    with atomic_file(output) as file:
        # A file name may hold bytes that are no text.
        file.write(page.encode("utf-8", "replace"))
