"""The picture sheet of a search: queries and what was found, as one HTML file without a script."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlbench.models.index import Index
from mlbench.models.model import image_set
from mlbench.models.search import Answer
from mlbench.report.templates import resource, template
from mlbench.report.thumbnails import encoded
from mlbench.system.files import atomic_file

QUERIES = 100
"""The most queries of a sheet."""


def write_sheet(answers: Sequence[Answer], index: Index, output: Path) -> None:
    """Write the answers to the first ``QUERIES`` queries as one HTML file with their pictures.

    Args:
        answers: of a search.
        index: that was searched.
        output: the file, replaced if it exists.

    Raises:
        MlbenchError: it cannot be written.
    """
    page = template("search.html.jinja", breakable=breakable).render(
        answers=[_shown(answer, index) for answer in answers[:QUERIES]],
        asked=len(answers),
        root=str(index.root),
        images=len(index.paths),
        run=index.run.name,
        css=Markup(resource("report.css")),
    )
    with atomic_file(output) as file:
        # A file name may hold bytes that are no text.
        file.write(page.encode("utf-8", "replace"))


def _shown(answer: Answer, index: Index) -> dict[str, Any]:
    return {
        "query": str(answer.query),
        "picture": _picture(answer.query),
        "hits": [
            {
                "path": hit.path,
                "similarity": f"{hit.similarity:.3f}",
                "state": "" if hit.state == "same" else hit.state,
                "picture": _picture(index.root / hit.path),
            }
            for hit in answer.hits
        ],
    }


@functools.lru_cache(maxsize=10_000)
def _picture(path: Path) -> str:
    return encoded(image_set([path]), 0)


def breakable(path: str) -> Markup:
    """Let long names break at their joints; what they hold is escaped."""
    return Markup("<wbr>").join(re.split(r"(?<=[/_.-])", path))
