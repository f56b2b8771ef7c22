"""Published results, each with how far it was checked (``published.csv``).

``confirmed``: stated by a first-hand source that was read; ``secondary``: quoted by another public
table that was read; ``recalled``: from memory of the paper, not yet checked against it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

MARKS = {"confirmed": "", "secondary": "†", "recalled": "?"}
"""What is printed behind a figure, by its status."""

LOSS_OF = {
    "SemiHard": "triplet",
    "LiftedStruct": "lifted_structure",
    "Npairs": "npairs",
    "ProxyNCA": "proxy_nca",
    "SoftMax_norm": "softmax_norm",
    "SoftTriple": "softtriple",
    "SoftTriple (nkennek reproduction)": "softtriple",
    "Margin": "margin",
    "Multi-Similarity": "multi_similarity",
    "Proxy-Anchor": "proxy_anchor",
    "Proxy-Anchor (authors' rerun; best test epoch)": "proxy_anchor",
}
"""Our loss behind a published method's name, where we have one."""

_KS = {"sop": (1, 10, 100, 1000)}


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        dataset: our name of the data set.
        method: as its authors call it.
        dim: embedding dimensions.
        backbone: as published.
        values: by metric (``R@1``, ..., ``NMI``), percent; absent where none was published.
        marks: by metric, what to print behind the value.
        source: the paper or repository.
    """

    dataset: str
    method: str
    dim: int
    backbone: str
    values: dict[str, float]
    marks: dict[str, str]
    source: str


def published(dataset: str) -> list[PublishedRow]:
    """Return the published rows of a data set, by dimension and then R@1."""
    with (resources.files("mlbench.comparison") / "published.csv").open(encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith("#")]
    rows = [_row(entry) for entry in csv.DictReader(lines) if entry["dataset"] == dataset]
    return sorted(rows, key=lambda row: (row.dim, row.values["R@1"]))


def _row(entry: dict[str, str]) -> PublishedRow:
    ks = _KS.get(entry["dataset"], (1, 2, 4, 8))
    columns = {f"R@{k}": f"r{place}" for k, place in zip(ks, (1, 2, 4, 8), strict=True)}
    columns["NMI"] = "nmi"
    given = {metric: column for metric, column in columns.items() if entry[column]}
    return PublishedRow(
        dataset=entry["dataset"],
        method=entry["method"],
        dim=int(entry["dim"]),
        backbone=entry["backbone"],
        values={metric: float(entry[column]) for metric, column in given.items()},
        marks={metric: _mark(entry, metric) for metric in given},
        source=entry["paper"],
    )


def _mark(entry: dict[str, str], metric: str) -> str:
    return MARKS[entry["status_nmi" if metric == "NMI" else "status_recall"]]
