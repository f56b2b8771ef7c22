"""The command line, as tests call it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from helpers.settings import QUICK
from mlbench.cli import main

SET = [f"--set={key}={value}" for key, value in QUICK.items()]


def mlbench(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(result: Result) -> list[str]:
    """Return the lines on standard error that are not of progress."""
    return [line for line in result.stderr.strip().splitlines() if not line.endswith(" ...")]


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = said(result)
    assert line.startswith("Error: ")
    assert message in line
    assert "Traceback" not in result.output


def run(photos: Path, out: Path, *arguments: object) -> Result:
    return mlbench("run", "--dataset", f"folder:{photos}", "--out", out, *SET, *arguments)
