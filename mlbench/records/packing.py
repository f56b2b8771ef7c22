"""The records of a results folder are put into a pack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlbench.errors import MlbenchError, printable
from mlbench.records.packs import SUFFIX, is_name, is_pack, write_pack
from mlbench.records.record import RunRecord
from mlbench.records.store import read_results


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        path: of the pack.
        records: number of those in it.
        without_totals: number of those among them that should hold totals by class, but do not.
        problems: one line for each file that was left out, as it is no readable record.
    """

    path: Path
    records: int
    without_totals: int
    problems: tuple[str, ...]


def pack_results(folder: Path, output: Path | None = None) -> Packed:
    """Write the records under ``folder`` as one file, in the form of the newest schema.

    Records of packs in the folder are taken as if they lay beside their pack.

    Args:
        folder: of results.
        output: the pack, replaced if it exists; None for ``FOLDER.mlpack``.

    Raises:
        MlbenchError: no readable record in the folder, two different ones of one name, or the pack
            cannot be written, or has not the name of one.
    """
    path = output or Path(f"{folder.absolute()}{SUFFIX}")
    if not is_pack(path):
        raise MlbenchError(f"{path}: the name of a pack of results must end with {SUFFIX}")
    results = read_results(folder)
    if not results.records:
        raise MlbenchError(f"no readable record in '{folder}'")
    named: dict[str, RunRecord] = {}
    for place, record in results.records.items():
        name = _name(folder, place)
        if named.setdefault(name, record) != record:
            raise MlbenchError(f"{folder}: two records that differ are called {printable(name)}")
    in_order = sorted(named, key=lambda name: name.split("/"))
    write_pack(path, {name: named[name].to_json().encode() for name in in_order})
    bare = sum(r.status == "ok" and r.class_totals is None for r in named.values())
    return Packed(path, len(named), bare, results.problems)


def _name(folder: Path, place: Path) -> str:
    """Return the path of a record below the folder, without the packs on its way."""
    parts = [part for part in place.relative_to(folder).parts if not part.endswith(SUFFIX)]
    name = "/".join(parts)
    if not is_name(name):
        raise MlbenchError(f"{place}: a pack cannot hold a record of this name; rename it")
    return name
