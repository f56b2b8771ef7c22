"""Damage input of every kind and see that it ends in a valid result or one line.

    python stress/fuzz [--count 10000] [--seconds 600] [--seed N] [--replay KIND NUMBER]

Inputs are made from a seed, a new one each time unless it is given: valid ones, damaged; links and
special files; arguments of no sense. Each goes to its reader in this process, with ten seconds of
computing. Counted are those taken (what was read is checked to be right), those refused with one
line, and failures; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on a busy machine threads only wait

from fuzz.driver import Tally, run_one
from fuzz.kinds import KINDS


def fuzz(count: int, seconds: float, seed: int) -> dict[str, Tally]:
    """Give ``count`` inputs to their readers, or as many as time allows; a kind at a time."""
    shares = sum(share for _, share in KINDS.values())
    until, tallies = time.perf_counter() + seconds, {}
    for kind, (trial, share) in KINDS.items():
        tallies[kind] = Tally()
        for number in range(round(count * share / shares)):
            if time.perf_counter() > until:
                break
            with tempfile.TemporaryDirectory() as folder:
                run_one(seed, kind, trial, number, Path(folder), tallies[kind])
    return tallies


def show(tallies: dict[str, Tally]) -> None:
    """Print the counts, and every failure with what makes it again."""
    table = Table("input", "inputs", "taken", "refused", "failed", "slowest, s")
    for kind, tally in tallies.items():
        counts = [tally.counts[name] for name in ("accepted", "refused", "failed")]
        table.add_row(kind, *map(str, (sum(counts), *counts)), f"{tally.slowest:.2f}")
    totals = [sum(t.counts[n] for t in tallies.values()) for n in ("accepted", "refused", "failed")]
    table.add_row("all", *map(str, (sum(totals), *totals)), "")
    Console().print(table)
    for tally in tallies.values():
        for failure in tally.failures[:5]:
            print(f"\n--replay '{failure.kind}' {failure.number}\n{failure.what}")


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seconds", type=float, default=600.0, help="time limit in all")
    parser.add_argument("--seed", type=int, help="to repeat an earlier call; else a new one")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "NUMBER"), help="one input alone")
    given = parser.parse_args()
    seed = secrets.randbits(32) if given.seed is None else given.seed
    print(f"--seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MLBENCH_CACHE"] = cache
        if given.replay:
            kind, number = given.replay
            tallies = {kind: Tally()}
            trial = KINDS[kind][0]
            run_one(seed, kind, trial, int(number), Path(cache), tallies[kind])
        else:
            tallies = fuzz(given.count, given.seconds, seed)
    show(tallies)
    sys.exit(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    main()
