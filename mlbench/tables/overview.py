"""The comparisons of a folder, a line each, and which of them a name means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.comparison.comparison import METRIC, Comparison
from mlbench.errors import MlbenchError, first_few
from mlbench.recipes.reading import shipped_name
from mlbench.tables.layout import percent
from mlbench.tables.sheet import Line, Sheet

if TYPE_CHECKING:
    from mlbench.comparison.rows import Row

_MOST_NAMED = 3


def overview_sheet(comparisons: Sequence[Comparison], folder: Path) -> Sheet:
    """Lay out one line for each comparison: where, recipe, losses, runs, highest R@1.

    Args:
        comparisons: of the folder.
        folder: of the results, or a pack.
    """
    header = ("comparison", "recipe", "losses", "n", METRIC)
    lines = []
    for each in comparisons:
        rows = _trained(each)
        losses = list(dict.fromkeys(row.loss for row in rows))
        named = ", ".join(losses) if len(losses) <= _MOST_NAMED else f"{len(losses)} losses"
        cells = (_place(each, folder), _recipe(each), named, _runs(rows), _highest(rows))
        lines.append(Line(cells, (False,) * len(cells)))
    notes = ("n: runs of each loss; R@1 in percent: of several losses the highest, with its loss",)
    title = f"{len(comparisons)} comparisons in {folder}, the newest first"
    return Sheet(title, header, tuple(lines), notes, texts=(0, 1, 2, 4))


def chosen(comparisons: Sequence[Comparison], folder: Path, name: str) -> list[Comparison]:
    """Return the comparisons of a name: a folder in ``folder``, a recipe's id, or its name.

    Raises:
        MlbenchError: there is none; it lists what is there.
    """
    found = [c for c in comparisons if shipped_name(c.recipe) == name]
    found = found or [
        c for c in comparisons if _place(c, folder) == name or c.recipe_id.startswith(name)
    ]
    if not found:
        names = first_few([f"{_place(each, folder)} ({_recipe(each)})" for each in comparisons])
        raise MlbenchError(f"{folder}: no comparison '{name}'; there are: {names}")
    return found


def _trained(comparison: Comparison) -> list[Row]:
    trained = [row for row in comparison.rows if not row.baseline]
    return trained or list(comparison.rows)


def _place(comparison: Comparison, folder: Path) -> str:
    """Return the folder of its first record, relative to that of the results."""
    parent = Path(comparison.files[0]).parent
    return parent.relative_to(folder).as_posix() if parent.is_relative_to(folder) else str(parent)


def _recipe(comparison: Comparison) -> str:
    name = shipped_name(comparison.recipe)
    return f"{name} {comparison.recipe_id}" if name else comparison.recipe_id


def _runs(rows: Sequence[Row]) -> str:
    numbers = sorted({row.runs for row in rows})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _highest(rows: Sequence[Row]) -> str:
    """Return the highest R@1, with its loss where there are several."""
    known = [row for row in rows if METRIC in row.estimates]
    if not known:
        return "diverged"
    first = max(known, key=lambda row: row.estimates[METRIC].mean)
    figure = percent(first.estimates[METRIC])
    return figure if len({row.loss for row in rows}) == 1 else f"{figure} {first.loss}"
