"""What a benchmark of N images costs: a model of time, memory and money on points measured here.

    python benchmarks/speed/scale.py [--write docs/scale.md] [--json PATH] [--quick]

Everything is measured on one core, in under four minutes where nothing else runs; start it with
``OMP_NUM_THREADS=1``. With ``--write`` the printed block replaces the one between the markers of a
document.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import arguments, finish
from _points import DIM, PER_CLASS, Points, measure

from mlbench.recipes.reading import load_recipe
from mlbench.records import provenance
from mlbench.system.files import atomic_file

BEGIN, END = "<!-- scale.py: begin -->", "<!-- scale.py: end -->"
RESTARTS, MEASURED_GALLERY = 10, 200_000
EPOCHS = load_recipe("cpu").schedule.epochs
DAY = 86400.0


@dataclass(frozen=True)
class Size:
    """A data set: one part is trained on, the other embedded, searched and clustered."""

    name: str
    images: int
    test: int
    classes: int

    @classmethod
    def like_sop(cls, images: int, name: str = "") -> Size:
        """Return a set of which half is for the test, with as many images a class as SOP."""
        return cls(name, images, images // 2, max(1, round(images / 2 / PER_CLASS)))


SIZES = (
    Size("CUB", 11_788, 5924, 100),
    Size("SOP", 120_053, 60_502, 11_316),
    Size.like_sop(10**6, "1 M"),
    Size.like_sop(10**8, "100 M"),
)


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        name: what is done.
        seconds: it takes, from the points and a size.
        source: the points it comes from.
        instead: what takes over where it no longer fits.
    """

    name: str
    seconds: Callable[[Points, Size], float]
    source: str
    instead: str = ""


def _train(p: Points, size: Size) -> float:
    return EPOCHS * (size.images - size.test) / p["train"].value


def _search(p: Points, size: Size) -> float:
    # The more images a class has, the more neighbours MAP@R asks for.
    name = "exact search, few classes" if size.classes <= 100 else "exact search, many"
    return size.test**2 / p[name].value


def _nmi(p: Points, size: Size) -> float:
    name = "k-means, few" if size.classes <= 100 else "k-means, many"
    passes = p[f"{name}: passes"].value
    return RESTARTS * size.test * size.classes * passes / p[name].value


def _ivf(p: Points, size: Size) -> float:
    # Lists are four times the root: so are those compared, and the vectors in those looked into.
    grown = math.sqrt(size.test / MEASURED_GALLERY)
    return size.test * grown * _both(p, "IVF")


def _hnsw(p: Points, size: Size) -> float:
    return size.test * math.log(size.test) / math.log(MEASURED_GALLERY) * _both(p, "HNSW")


def _both(p: Points, index: str) -> float:
    """Return the seconds to put one vector into an index and search for it."""
    return p[f"{index} build"].value / 1e6 + p[f"{index} search"].value / 1e3


STAGES = (
    Stage(
        "decode",
        lambda p, s: s.images * p["decode"].value / 1e3,
        "decode",
        "more cores: each image by itself",
    ),
    Stage(
        f"train, {EPOCHS} epochs",
        _train,
        "train",
        "a GPU (not measured); Ray for many runs, each on one machine",
    ),
    Stage(
        "embed the test half",
        lambda p, s: s.test / p["embed"].value,
        "embed",
        "a GPU; Ray Data over shards of images",
    ),
    Stage(
        "exact search",
        _search,
        "exact search, few classes (CUB); exact search, many (others)",
        "faiss IVF or HNSW",
    ),
    Stage(
        f"NMI, {RESTARTS} restarts",
        _nmi,
        "k-means, few (CUB); k-means, many (others)",
        "k-means of faiss on a sample, or NMI left out",
    ),
)
INDEXES = (
    Stage("faiss IVF: build, search all", _ivf, "IVF build, IVF search"),
    Stage("faiss HNSW: build, search all", _hnsw, "HNSW build, HNSW search"),
)


@dataclass(frozen=True)
class Store:
    """Something that is kept: its bytes for a size, where they come from, what takes over."""

    name: str
    bytes: Callable[[Points, Size], float]
    source: str
    instead: str = ""


STORES = (
    Store(
        "pixel cache, 256 px",
        lambda p, s: s.images * p["pixel bytes"].value,
        "pixel bytes",
        "still runs, from the disk: the cache is a mapped file",
    ),
    Store(
        f"embeddings of the test half, {DIM} x fp32",
        lambda _, s: 4.0 * DIM * s.test,
        "counted: 256 bytes an image",
        "sharded faiss: an index a machine, results merged",
    ),
)


def duration(seconds: float) -> str:
    """Return seconds in the unit that suits, two digits."""
    units = (("years", 365.25 * DAY), ("days", DAY), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    name, unit = next((u for u in units if seconds >= u[1]), ("s", 1.0))
    return f"{two_digits(seconds / unit)} {name}"


def amount(size: float) -> str:
    """Return bytes in the unit that suits, two digits."""
    name, unit = next(
        (u for u in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if size >= u[1]), ("kB", 1e3)
    )
    return f"{two_digits(size / unit)} {name}"


def two_digits(value: float) -> str:
    """Return a number with two digits that count, without an exponent."""
    if value == 0:
        return "0"
    places = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def largest(fits: Callable[[Size], bool]) -> int:
    """Return the most images (two digits) of sets like SOP that fit, at most 10 ** 12."""
    low, high = 2.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(Size.like_sop(int(10**middle))) else (low, middle)
    power = 10 ** (math.floor(low) - 1)
    return math.floor(10**low / power) * power


def block(points: Points, options: argparse.Namespace) -> str:
    """Return all tables."""
    made = provenance.collect("cpu")
    price, memory = options.dollars_per_hour, options.memory_gb
    return "\n\n".join(
        (
            f"Measured on one core of: {made.hardware}; torch {made.packages['torch']}. Assumed: "
            f"${price:g} an hour for a machine that gives such a core, {memory:g} GB of memory.",
            _measured(points),
            f"Time and money of one run, extrapolated; sets beyond SOP have {PER_CLASS:.2f} images "
            "a class, as its test set.",
            _times(points, price),
            "Memory, extrapolated:",
            _memory(points),
            "Where it stops: a day for a stage, or the memory, in images of a set like SOP.",
            _stops(points, memory),
        )
    )


def _measured(points: Points) -> str:
    rows = [
        (name, f"{_figure(point.value)} {point.unit}", point.how) for name, point in points.items()
    ]
    return markdown(("point", "measured", "how"), rows)


def _figure(value: float) -> str:
    return f"{value:.2g}" if value >= 1e6 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(points: Points, price: float) -> str:
    def cells(values: Iterable[float]) -> list[str]:
        return [f"{duration(v)}, ${two_digits(v / 3600 * price)}" for v in values]

    rows = [
        (s.name, *cells(s.seconds(points, size) for size in SIZES), s.source)
        for s in (*STAGES, *INDEXES)
    ]
    sums = (sum(s.seconds(points, size) for s in STAGES) for size in SIZES)
    rows.insert(len(STAGES), ("sum of these", *cells(sums), ""))
    return markdown(("stage", *(size.name for size in SIZES), "from"), rows)


def _memory(points: Points) -> str:
    rows = [(s.name, *(amount(s.bytes(points, z)) for z in SIZES), s.source) for s in STORES]
    return markdown(("what", *(size.name for size in SIZES), "from"), rows)


def _stops(points: Points, memory: float) -> str:
    slow = [
        (s.name, "a day", largest(lambda z, s=s: s.seconds(points, z) <= DAY), s.instead, s.source)
        for s in STAGES
    ]
    full = [
        (
            s.name,
            f"{memory:g} GB",
            largest(lambda z, s=s: s.bytes(points, z) <= 1e9 * memory),
            s.instead,
            s.source,
        )
        for s in STORES
    ]
    rows = [
        (name, limit, f"{n:,}", instead, source) for name, limit, n, instead, source in slow + full
    ]
    return markdown(("what", "limit", "images", "then", "from"), rows)


def around(path: Path) -> tuple[str, str]:
    """Return what stands before and after a document's block, with the markers."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path}: no block between '{BEGIN}' and '{END}'; add both lines")
    return before + begin, end + after


def write(path: Path, text: str) -> None:
    """Replace what stands between the markers of a document."""
    before, after = around(path)
    with atomic_file(path) as file:
        file.write(f"{before}\n\n{text}\n\n{after}".encode())


def main() -> None:
    """Parse the command line, measure, print and, if asked, write."""
    parser = arguments(__doc__)
    parser.add_argument("--dollars-per-hour", type=float, default=0.05, help="of one such core")
    parser.add_argument("--memory-gb", type=float, default=64.0, help="of one machine")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="whose block to replace")
    options = parser.parse_args()
    if options.write:
        around(options.write)  # whoever names a wrong page should hear of it first
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # decoding would take all cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    points = measure(quick=options.quick)
    text = block(points, options)
    print(text)
    if options.write:
        write(options.write, text)
    finish({"points": points}, options.json)


if __name__ == "__main__":
    main()
