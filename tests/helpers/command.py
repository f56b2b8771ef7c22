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


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1


def run(photos: Path, out: Path, *arguments: object) -> Result:
    return mlbench("run", "--dataset", f"folder:{photos}", "--out", out, *SET, *arguments)
