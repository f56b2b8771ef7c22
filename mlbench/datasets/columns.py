"""Columns of a table in a file: comma- or tab-separated text, or Parquet."""

from __future__ import annotations

import csv
import difflib
import importlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlbench.errors import DataWarning, MlbenchError, first_few, not_installed, printable
from mlbench.system.machine import raise_lack
from mlbench.system.regular import open_regular, read_regular

_MOST_BYTES = 1 << 30
_MOST_ROWS = 50_000_000
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table that are read.

    Attributes:
        source: the file.
        cells: by column, the text of each row's cell; columns that the file has not are missing.
        places: the number of each row's line in the file; of its row in a Parquet file.
        unit: what ``places`` counts: ``line`` or ``row``.
    """

    source: Path
    cells: Mapping[str, list[str]]
    places: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.places)

    def place(self, row: int) -> str:
        """Return where a row stands, such as ``line 7``."""
        return f"{self.unit} {self.places[row]:,}"

    def error(self, row: int, column: str, problem: str) -> MlbenchError:
        """Return the error for what is wrong with a cell; ``problem`` also says how to mend it."""
        return MlbenchError(f"{self.source}, {self.place(row)}, column '{column}': {problem}")


def read_columns(source: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    """Read the columns of a ``.csv``, ``.tsv`` or ``.parquet`` file that go by these names.

    Text is UTF-8, with or without a byte-order mark, with any line ends, quoted as in RFC 4180. A
    warning names the columns that are not read.

    Args:
        source: the file.
        needed: columns that must be there.
        optional: columns that may be.

    Raises:
        MlbenchError: the file cannot be read, is damaged or has no rows, a column is missing, or
            another one is named nearly as one of those.
    """
    suffix = source.suffix.lower()
    try:
        if suffix in _DELIMITERS:
            return _read_text(source, _DELIMITERS[suffix], needed, optional)
        if suffix == ".parquet":
            return _read_parquet(source, needed, optional)
    except OSError as error:
        raise MlbenchError(f"cannot read {source}: {error.strerror or error}") from error
    raise MlbenchError(f"{source}: not a table; use a .csv, .tsv or .parquet file")


def _read_text(
    source: Path, delimiter: str, needed: Sequence[str], optional: Sequence[str]
) -> Columns:
    rows = _rows(source, _decoded(source), delimiter)
    try:
        _, first = next(rows)
    except StopIteration:
        header = delimiter.join(needed)
        raise MlbenchError(f"{source} is empty; add the header '{header}' and rows") from None
    header = [name.strip() for name in first]
    chosen = _chosen(source, header, needed, optional, delimiter)
    cells: dict[str, list[str]] = {name: [] for name in chosen}
    wanted = [(header.index(name), cells[name].append) for name in chosen]
    places: list[int] = []
    same: dict[str, str] = {}  # one object for each text: labels come many times
    for line, row in rows:
        if len(row) != len(header):
            raise MlbenchError(
                f"{source}, line {line:,}: {len(row)} cells, and the header has {len(header)}; "
                "every row needs as many; quote cells that contain the separator"
            )
        for column, append in wanted:
            append(same.setdefault(row[column], row[column]))
        places.append(line)
    return _filled(Columns(source, cells, places))


def _decoded(source: Path) -> str:
    content = read_regular(source, limit=_MOST_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MlbenchError(
            f"{source}, line {line:,}: byte 0x{content[error.start]:02x} is not UTF-8; save the "
            "table as UTF-8"
        ) from None


def _rows(source: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise MlbenchError(
            f"{source}, line {reader.line_num:,}: {error}; fix its quotes"
        ) from error


def _chosen(
    source: Path,
    header: Sequence[str],
    needed: Sequence[str],
    optional: Sequence[str],
    delimiter: str = "",
) -> list[str]:
    """Return the columns that are read, in the order of the file."""
    known = [*needed, *optional]
    others = [name for name in header if name not in known]
    if len(header) == 1 and others:
        used = [each for each in _NAMES if each != delimiter and each in header[0]]
        if used and delimiter:
            raise MlbenchError(
                f"{source}: its columns are separated by {_NAMES[used[0]]}; separate them by "
                f"{_NAMES[delimiter]}"
            )
    for name in others:
        near = difflib.get_close_matches(name.casefold().replace(" ", "_"), known, 1, 0.75)
        if near:
            raise MlbenchError(
                f"{source}: unknown column '{name}'; did you mean '{near[0]}'? Rename or remove it"
            )
    twice = sorted({name for name in header if header.count(name) > 1 and name in known})
    missing = [name for name in needed if name not in header]
    if twice or missing:
        problem = f"two columns '{twice[0]}'" if twice else f"no column '{missing[0]}'"
        found = first_few([*map(repr, header)])
        raise MlbenchError(f"{source}: {problem}; its header has {found}")
    if others:
        text = f"{source.name}: ignored columns: {first_few(others)}"
        warnings.warn(printable(text), DataWarning, stacklevel=6)
    return [name for name in header if name in known]


def _filled(columns: Columns) -> Columns:
    if not len(columns):
        raise MlbenchError(f"{columns.source} has a header and no rows; add one row per image")
    return columns


def _read_parquet(source: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise not_installed("reading a .parquet table needs pyarrow", "parquet") from error
    try:
        with open_regular(source, limit=_MOST_BYTES) as file:
            table = parquet.ParquetFile(file)
            rows, header = table.metadata.num_rows, list(table.schema_arrow.names)
            if rows > _MOST_ROWS:
                raise MlbenchError(
                    f"{source}: more than {_MOST_ROWS:,} rows, the most that are read"
                )
            chosen = _chosen(source, header, needed, optional)
            read = table.read(columns=chosen)
            cells = {name: [*map(_cell, read.column(name).to_pylist())] for name in chosen}
    except (MlbenchError, DataWarning):
        raise
    except Exception as error:  # what foreign bytes make pyarrow raise has no common type
        if isinstance(error, OSError) and error.strerror:
            raise
        raise_lack(error)
        reason = " ".join(str(error).split())[:200]
        raise MlbenchError(f"{source}: not a Parquet file that can be read ({reason})") from error
    return _filled(Columns(source, cells, range(1, rows + 1), "row"))


def _cell(value: object) -> str:
    """Return a value as text writes it; none and NaN, by which pandas marks a gap, are empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
