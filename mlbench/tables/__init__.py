"""Comparisons in print."""

from mlbench.tables.formats import render
from mlbench.tables.layout import sheets
from mlbench.tables.sheet import Line, Sheet
from mlbench.tables.text import to_list

__all__ = [
    "Line",
    "Sheet",
    "render",
    "sheets",
    "to_list",
]
