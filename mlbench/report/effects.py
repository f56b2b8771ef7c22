"""Factorial studies among records: their effects as a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlbench.comparison.factorial import factorials
from mlbench.errors import MlbenchError
from mlbench.records.record import RunRecord
from mlbench.report.drawings import effects_picture, in_words
from mlbench.report.svg import Picture, figure_picture
from mlbench.tables.effects import Study, effects_sheet
from mlbench.tables.sheet import Sheet


@dataclass(frozen=True)
class ShownEffects:
    """A factorial's table and picture."""

    sheet: Sheet
    picture: Picture


def shown_effects(records: Mapping[Path, RunRecord]) -> list[ShownEffects]:
    """Find the factorial studies whose runs are all among the records, and draw each.

    Studies whose records have no totals by class are left out.

    Args:
        records: by path.
    """
    shown = []
    for factorial in factorials(records.values()):
        try:
            study = Study.of(factorial)
        except MlbenchError:
            continue
        name = f"effects-{len(shown) + 1}-picture"
        picture = figure_picture(
            lambda s=study: effects_picture(s), name, study.title, in_words(study)
        )
        shown.append(ShownEffects(effects_sheet(study), picture))
    return shown
