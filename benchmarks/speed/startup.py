"""Seconds of the commands that must answer at once: --help, list losses, table.

    python benchmarks/speed/startup.py [--quick] [--json PATH]

The table is of the records that records.py draws: 10,000, or 1,000 with --quick; in a folder, then
in a pack. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _measure import Seconds, Spread, arguments, finish, show, take_turns

SOON, TABLE = 0.3, 2.0  # targets
RECIPES = 20  # of 500 records each
FIRST, CHANGED, SAME = "first time", "one record changed", "nothing changed"


def python(*arguments: str) -> None:
    """Run Python in a process of its own; what it prints is thrown away."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def mlbench(*arguments: str) -> None:
    """Run the command line in a process of its own."""
    python("-m", "mlbench", *arguments)


def time_tables(folder: Path, rounds: int) -> Seconds:
    """Return the seconds of the table of a folder or pack, by what had happened since the last."""
    record = next(folder.rglob("*.json"), folder)

    def before(name: str) -> None:
        if name == FIRST:
            shutil.rmtree(os.environ["MLBENCH_CACHE"], ignore_errors=True)
        if name == CHANGED:
            seconds = record.stat().st_mtime - 1
            os.utime(record, (seconds, seconds))

    show_table: Callable[[], None] = partial(mlbench, "table", str(folder))
    return take_turns(dict.fromkeys((FIRST, CHANGED, SAME), show_table), rounds, before=before)


def main() -> None:
    """Parse the command line, measure, print."""
    options = arguments(__doc__).parse_args()
    recipes = RECIPES // 10 if options.quick else RECIPES
    rounds = 2 if options.quick else 10
    commands = (("--help",), ("list", "losses"))
    seconds = take_turns({" ".join(each): partial(mlbench, *each) for each in commands}, rounds)
    with tempfile.TemporaryDirectory() as place:
        os.environ["MLBENCH_CACHE"] = str(Path(place, "cache"))
        folder = Path(place, "results")
        python(str(Path(__file__).with_name("records.py")), str(folder), "--recipes", str(recipes))
        count = sum(1 for _ in folder.rglob("*.json"))
        mlbench("pack", str(folder))
        for what, path in (("folder", folder), ("pack", Path(place, "results.mlpack"))):
            taken = time_tables(path, rounds)
            seconds |= {f"table, {what}, {name}": values for name, values in taken.items()}
    found = {name: Spread.of(values) for name, values in seconds.items()}
    targets = {name: TABLE if name.startswith("table") else SOON for name in found}
    rows = [(f"mlbench {name}", str(each), f"{targets[name]:g}") for name, each in found.items()]
    title = f"seconds, median (range); tables of {count:,} records"
    show(title, ("command", "s", "target"), rows)
    finish({"records": count, "seconds": found}, options.json)
    missed = [name for name, each in found.items() if each.median > targets[name]]
    print(f"missed: {'; '.join(missed)}" if missed else "all targets met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
