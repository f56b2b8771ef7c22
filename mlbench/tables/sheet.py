"""A table that is laid out, before it has a format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A line of a printed table: cells as plain text, and which of them are bold."""

    cells: tuple[str, ...]
    bold: tuple[bool, ...]
    ends_section: bool = False


@dataclass(frozen=True)
class Sheet:
    """A printed table: what every format but CSV and JSON shows.

    Attributes:
        title: of the table.
        header: of its columns, the first one the loss.
        lines: of its body.
        notes: footnotes, then the provenance.
        settings: of each loss: its name, and what it chose itself.
        legend: what bold, or a star where there is no bold, means; "" if there is none.
        advice: what to make of it, in a sentence, for the formats read on the spot; may be "".
        texts: numbers of the columns that hold text, which begin at the left.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    legend: str = ""
    advice: str = ""
    texts: tuple[int, ...] = (0,)
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def lines_below(self) -> tuple[str, ...]:
        """What is printed below the table where bold is bold."""
        return (*((f"bold: {self.legend}",) if self.legend else ()), *self.notes)
