"""Tables on terminals of any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlbench.errors import printable

if TYPE_CHECKING:
    from mlbench.table import Line, Sheet

_TEXT = 8
"""Columns of a terminal in which a text can still be read."""


def print_sheet(console: Console, given: Sheet) -> None:
    """Print a table to a terminal; names are printed as they are, not as markup.

    Where it would not fit, each line of the table becomes a paragraph.
    """
    title = Text(printable(given.title), style="italic")
    if console.width < _least_width(given):
        _print_paragraphs(console, given, title)
    else:
        _print_grid(console, given, title)
    for note in given.notes:
        console.print(Text(printable(note), style="dim"))
    if given.advice:
        console.print(Text(printable(given.advice)))


def _least_width(given: Sheet) -> int:
    """Return the columns that a terminal must have for no figure to be cut; texts may be."""
    columns = zip(*(line.cells for line in given.lines), strict=True)
    words = [
        max((len(w) for cell in column for w in cell.split()), default=0) for column in columns
    ]
    return sum(min(longest, _TEXT) for longest in words) + 3 * len(given.header) + 1


def _print_grid(console: Console, given: Sheet, title: Text) -> None:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(given.header):
        justify = "left" if number == 0 else "right"
        table.add_column(Text(name), justify=justify, overflow="fold")
    for line in given.lines:
        table.add_row(*_texts(line), end_section=line.ends_section)
    console.print(table)


def _print_paragraphs(console: Console, given: Sheet, title: Text) -> None:
    console.print(title)
    for line in given.lines:
        first, *rest = _texts(line)
        console.print(first)
        for name, text in zip(given.header[1:], rest, strict=True):
            console.print(Text(f"  {name} ").append_text(text))


def _texts(line: Line) -> list[Text]:
    return [
        Text(printable(cell), style="bold" if bold else "")
        for cell, bold in zip(line.cells, line.bold, strict=True)
    ]
