"""Standard output and error: characters that they cannot show, and warnings as one line."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import click

from mlbench.errors import MlbenchWarning, printable

_HANDLER = "mlbench.plain"
_PLAIN = {"±": "+-", "†": "+", "…": "...", "—": "-", "–": "-"}


@contextmanager
def plain_streams() -> Iterator[None]:
    """Within the block, what the encoding of a stream lacks is spelled in ASCII, never an error.

    Warnings of mlbench are printed to standard error, one line each.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, MlbenchWarning):
                click.echo(f"Warning: {printable(str(message))}", err=True)
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def write(text: str) -> None:
    """Print to standard output, in its own encoding.

    Where that is ASCII, ``click.echo`` alone would send UTF-8 all the same.
    """
    click.echo(text, file=sys.stdout, nl=False)


def shows_styles() -> bool:
    """Return whether standard output is a terminal that knows bold; it may be closed."""
    open_ = sys.__stdout__ is not None and sys.stdout.isatty()
    return open_ and os.environ.get("TERM") != "dumb"


def drop_output() -> None:
    """Send to nowhere what standard output would not take, lest Python tries again at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    lines = unicodedata.name(character, "").partition("BOX DRAWINGS ")[2]
    if lines:
        return {"HORIZONTAL": "-", "VERTICAL": "|"}.get(lines.partition(" ")[2], "+")
    escaped = character.encode("ascii", "backslashreplace").decode()
    return _PLAIN.get(character, escaped)


codecs.register_error(_HANDLER, _spell)
