"""Tables as plain text, for terminals of any width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import click
from wcwidth import ljust, rjust, width, wrap

from mlbench.errors import printable

if TYPE_CHECKING:
    from mlbench.tables.sheet import Line, Sheet

_GAP = "  "
_TOGETHER = "\N{NO-BREAK SPACE}"
_INTERVAL = re.compile(r"\(([\d.]+) to ([\d.]+)\)")
_TEXT = 8
"""Columns of a terminal in which a text can still be read."""


def to_text(given: Sheet, columns: int, *, styled: bool) -> str:
    """Lay out a table for a terminal; where it would not fit, each line is a paragraph.

    Names come through as they are, but for control characters.

    Args:
        given: the table.
        columns: width of the terminal.
        styled: whether bold is bold, by the codes of terminals; else it is a star.
    """
    starred = [f"*: {given.legend}"] if given.legend else []
    notes = given.lines_below if styled else [*starred, *given.notes]
    marked = [any(column) for column in zip(*(line.bold for line in given.lines), strict=True)]
    rows = [_cells(line, marked, styled) for line in given.lines]
    ruled = [number for number, line in enumerate(given.lines) if line.ends_section]
    header = list(map(printable, given.header))
    lines = [
        *_folded([given.title], columns, italic=styled),
        *_grid(header, rows, columns, given.texts, ruled),
        *_folded([given.advice] if given.advice else [], columns),
        *_folded(notes, columns, dim=styled),
        *_settings(given.settings, columns, dim=styled),
    ]
    return _joined(lines)


def _settings(settings: Sequence[tuple[str, str]], columns: int, **styles: bool) -> Iterator[str]:
    """Yield the settings of losses, each in a paragraph of its own, names and texts aligned."""
    room = min(max((width(name) for name, _ in settings), default=0), columns // 3)
    hanging = " " * min(room + 4, columns // 2)
    if settings:
        yield from _folded(["settings per loss"], columns, **styles)
    for name, text in settings:
        line = f"  {ljust(printable(name), room)}  {printable(text)}"
        for part in wrap(line, columns, break_on_hyphens=False, subsequent_indent=hanging):
            yield click.style(part, **styles) if any(styles.values()) else part


def to_list(header: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> str:
    """Lay out rows of texts in the same way; the first column, of names, is never cut."""
    plain, *cells = [[printable(text) for text in row] for row in (header, *rows)]
    return _joined(_grid(plain, cells, columns, range(len(header)), names=(0,)))


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line.rstrip()}\n" for line in lines).replace(_TOGETHER, " ")


def _folded(texts: Iterable[str], columns: int, **styles: bool) -> list[str]:
    """Return texts in lines that fit, in the styles that are true."""
    lines = [line for text in texts for line in _wrapped(printable(text), columns)]
    return [click.style(line, **styles) for line in lines] if any(styles.values()) else lines


def _wrapped(text: str, columns: int) -> list[str]:
    return wrap(text, columns, break_on_hyphens=False)


def _grid(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: int,
    texts: Sequence[int],
    ruled: Sequence[int] = (),
    names: Sequence[int] = (),
) -> Iterator[str]:
    """Yield the lines of a table, with a rule below its header and the rows ``ruled``.

    Words of the columns ``names`` are never cut.
    """
    room = columns - len(_GAP) * (len(header) - 1)
    widths = _widths(header, rows, room, [n for n in texts if n not in names])
    if widths is None:
        for first, *rest in rows:
            yield first
            yield from (f"  {name} {text}" for name, text in zip(header[1:], rest, strict=True))
        return
    rule = _GAP.join("─" * room for room in widths)
    yield from _row_lines(header, widths, texts, low=True)
    yield rule
    for number, row in enumerate(rows):
        yield from _row_lines(row, widths, texts)
        if number in ruled:
            yield rule


def _cells(line: Line, marked: Sequence[bool], styled: bool) -> list[str]:
    """Return the cells of a line, the bold ones marked; in their columns the rest makes room."""
    texts = (_kept_together(printable(text)) for text in line.cells)
    cells = zip(texts, line.bold, marked, strict=True)
    if styled:
        return [click.style(text, bold=True) if bold else text for text, bold, _ in cells]
    return [text + ("*" if bold else " " * room) for text, bold, room in cells]


def _kept_together(text: str) -> str:
    """Let no line end within an interval."""
    text = text.replace("± ", f"±{_TOGETHER}")
    return _INTERVAL.sub(rf"(\1{_TOGETHER}to{_TOGETHER}\2)", text)


def _widths(
    header: Sequence[str], rows: Sequence[Sequence[str]], room: int, texts: Sequence[int]
) -> list[int] | None:
    """Return the widths of columns: the widest ones give way; None if figures would be cut."""
    columns = list(zip(header, *rows, strict=True))
    whole = [max(map(width, column)) for column in columns]
    if sum(whole) <= room:
        return whole
    words = [_longest_word(column) for column in columns]
    for most in range(max(_TEXT, *words), _TEXT - 1, -1):  # names are cut as little as possible
        least = [min(long, most) if n in texts else long for n, long in enumerate(words)]
        if sum(least) <= room:
            break
    else:
        return None
    # The words of a header stand below each other before any cell is folded.
    wanted = [max(_longest_word([name]), 0, *map(width, cells)) for name, *cells in columns]
    for cap in range(max(wanted), 0, -1):
        widths = [max(low, min(want, cap)) for low, want in zip(least, wanted, strict=True)]
        if sum(widths) <= room:
            return widths
    return least


def _longest_word(texts: Iterable[str]) -> int:
    return max((width(word) for text in texts for word in text.split(" ")), default=1)


def _row_lines(
    cells: Sequence[str], widths: Sequence[int], texts: Sequence[int], *, low: bool = False
) -> Iterator[str]:
    """Yield the lines of a row, as many as its highest cell has; figures stand to the right.

    Args:
        cells: of the row.
        widths: of the columns.
        texts: columns that begin at the left.
        low: whether shorter cells stand at the last line, not at the first.
    """
    folded = [
        [cell] if width(cell) <= room else _wrapped(cell, room)
        for cell, room in zip(cells, widths, strict=True)
    ]
    if low:
        height = max(map(len, folded))
        folded = [[""] * (height - len(cell)) + cell for cell in folded]
    for parts in zip_longest(*folded, fillvalue=""):
        yield _GAP.join(
            ljust(part, room) if number in texts else rjust(part, room)
            for number, (part, room) in enumerate(zip(parts, widths, strict=True))
        )
