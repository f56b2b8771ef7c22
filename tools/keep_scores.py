"""Copy a results folder as it goes into the repository: records, trials, per-query scores.

    python tools/keep_scores.py FROM TO

The neighbours in the ``.npz``, of use for a gallery alone, would make it five times as large. They
are left out; tables and intervals come out the same, and records stay valid, as their checksum is
of the scores.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np


def copy(source: Path, target: Path) -> None:
    """Copy every file under ``source`` that is finished, the ``.npz`` without their neighbours."""
    for suffix in (".json", ".npz", ".sqlite3"):
        for file in sorted(source.rglob(f"*{suffix}")):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npz":
                with np.load(file, allow_pickle=False) as arrays:
                    kept = {name: arrays[name] for name in arrays if name != "neighbors"}
                np.savez_compressed(place, **kept)
            else:
                shutil.copyfile(file, place)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO")
    copy(**vars(parser.parse_args()))
