"""Seconds of the commands that must answer at once: --help, list losses, table.

    python benchmarks/speed/startup.py [--quick] [--json PATH]

The table is of the records that records.py draws: 10,000, or 1,000 with --quick. Exits with 1 if a
target is missed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from _measure import Spread, arguments, finish, show, take_turns

TARGETS = {"--help": 0.3, "list losses": 0.3, "table": 2.0}
RECIPES = 20  # of 500 records each


def python(*arguments: str) -> None:
    """Run Python in a process of its own; what it prints is thrown away."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def mlbench(*arguments: str) -> None:
    """Run the command line in a process of its own."""
    python("-m", "mlbench", *arguments)


def main() -> None:
    """Parse the command line, measure, print."""
    options = arguments(__doc__).parse_args()
    recipes = RECIPES // 10 if options.quick else RECIPES
    with tempfile.TemporaryDirectory() as folder:
        python(str(Path(__file__).with_name("records.py")), folder, "--recipes", str(recipes))
        count = sum(1 for _ in Path(folder).rglob("*.json"))
        tools = {
            "--help": partial(mlbench, "--help"),
            "list losses": partial(mlbench, "list", "losses"),
            "table": partial(mlbench, "table", folder),
        }
        seconds = take_turns(tools, 2 if options.quick else 10)
    found = {name: Spread.of(values) for name, values in seconds.items()}
    rows = [(f"mlbench {name}", str(each), f"{TARGETS[name]:g}") for name, each in found.items()]
    title = f"seconds, median (range); table of {count:,} records"
    show(title, ("command", "s", "target"), rows)
    finish({"records": count, "seconds": found}, options.json)
    missed = [name for name, each in found.items() if each.median > TARGETS[name]]
    print(f"missed: {', '.join(missed)}" if missed else "all targets met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
