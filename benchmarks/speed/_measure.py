"""What the speed benchmarks share: tools that take turns, ratios with their spread, the report."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mlbench.records import provenance
from mlbench.system.files import atomic_file
from mlbench.tables.text import to_list

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def scaled(self, factor: float) -> Spread:
        """Return the spread in another unit."""
        return Spread(factor * self.median, factor * self.min, factor * self.max)

    def __str__(self) -> str:
        """Return e.g. ``1.32 (1.21-1.4)``."""
        median, low, high = (
            f"{value:.0f}" if value >= 100 else f"{value:.3g}"
            for value in (self.median, self.min, self.max)
        )
        return f"{median} ({low}-{high})"


def take_turns(
    tools: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[str], object] = lambda _: None,
) -> Seconds:
    """Time each tool once a round, so that whatever else the machine does falls on all of them.

    Args:
        tools: what to time; on a GPU each must wait for the device itself.
        rounds: measured rounds.
        warmup: rounds before them that are not measured.
        clock: ``time.perf_counter`` for wall time, ``time.process_time`` for CPU time of all
            threads.
        before: called with a tool's name before it is timed.

    Returns:
        seconds by tool, round by round.
    """
    seconds: Seconds = {name: [] for name in tools}
    for number in range(warmup + rounds):
        for name, tool in tools.items():
            before(name)
            started = clock()
            tool()
            if number >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: Seconds, other: str, own: str) -> Spread:
    """Return the spread of a tool's time over another's, each ratio within one round."""
    return Spread.of(a / b for a, b in zip(seconds[other], seconds[own], strict=True))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser described by the first line of ``doc``, with ``--quick`` and ``--json``."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    return parser


def product_limit() -> float:
    """Return the floating-point operations per CPU second of a large product, at its best."""
    a, b = torch.randn(2, 2048, 2048)
    out = torch.empty(2048, 2048)
    product = partial(torch.mm, a, b, out=out)
    return 2 * 2048.0**3 / min(take_turns({"": product}, 10, clock=time.process_time)[""])


def copy_limit() -> float:
    """Return the bytes per CPU second that a large copy reads and writes, at its best."""
    source = torch.ones(2**28, dtype=torch.uint8)
    copy = partial(torch.empty_like(source).copy_, source)
    return 2.0 * source.numel() / min(take_turns({"": copy}, 10, clock=time.process_time)[""])


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    print(title)
    print(to_list(header, list(rows), 120))


def finish(figures: Mapping[str, Any], path: Path | None, device: str = "cpu") -> None:
    """Print the hardware and versions the figures hold for; write all to ``path`` if given.

    Args:
        figures: plain values, and dataclasses such as ``Spread``.
        path: of the JSON file.
        device: ``cpu`` or ``cuda``.
    """
    made = provenance.collect(device)
    versions = ", ".join(f"{name} {version}" for name, version in made.packages.items())
    print(f"{made.hardware}, {made.threads} threads; mlbench source {made.source}; {versions}")
    if path is not None:
        text = json.dumps({**figures, "provenance": made}, indent=1, default=asdict)
        with atomic_file(path) as file:
            file.write(text.encode() + b"\n")
