"""The options that say where runs are executed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import click

from mlbench.errors import MlbenchError
from mlbench.runs.executors.options import ExecutorOptions

EXECUTOR_OPTIONS = (
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Execute the runs on this machine, or on a Ray cluster (docs/cluster.md).",
    ),
    click.option(
        "--jobs", type=click.IntRange(1), help="local: number of parallel runs. [default: 1]"
    ),
    click.option("--address", help="ray: address of the cluster. [default: auto]"),
    click.option(
        "--gpus-per-run",
        type=click.FloatRange(0),
        help="ray: GPUs per run, may be fractional. [default: 1 if there are any]",
    ),
    click.option(
        "--cpus-per-run",
        type=click.FloatRange(0, min_open=True),
        help="ray: CPU cores per run. [default: 1]",
    ),
)
_GIVEN_TO = {"local": ("jobs",), "ray": ("address", "gpus_per_run", "cpus_per_run")}


def gathering_executor(command: Callable[..., None]) -> Callable[..., None]:
    """Hand the executor's options to a command as one argument, ``executor``."""

    @functools.wraps(command)
    def gathered(executor: Literal["local", "ray"], **rest: Any) -> None:
        given = {name: rest.pop(name) for names in _GIVEN_TO.values() for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in _GIVEN_TO[executor]:
                owner = "ray" if executor == "local" else "local"
                flag = "--" + name.replace("_", "-")
                raise MlbenchError(f"{flag} requires --executor {owner}")
        command(executor=ExecutorOptions(executor, **given), **rest)

    return gathered
