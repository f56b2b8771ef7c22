"""Which record is meant: by its file, by a folder with one, or by ``FOLDER:LOSS``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlbench.errors import MlbenchError
from mlbench.records.packs import is_pack, read_pack
from mlbench.records.store import record_files
from mlbench.system.files import check_path

_MOST_LISTED = 20
_MODEL = ".safetensors"


def choose_record(given: Path, *, kept: bool = False) -> Path:
    """Return the path of the record that is meant.

    Args:
        given: a record, a results folder or pack with one record, or ``FOLDER:NAME``, where
            ``NAME`` is a loss or the beginning of a file's name, as far as only one has it.
        kept: whether only runs whose trained network was kept are meant.

    Raises:
        MlbenchError: none or several are meant; it lists what is there.
    """
    check_path(given)
    if given.is_dir() or (given.exists() and is_pack(given)):
        return _only_one(given, "", kept=kept)
    if given.exists() or any(map(is_pack, given.parents)):
        return given
    folder, _, name = str(given).rpartition(":")
    if folder and name and Path(folder).exists():
        return _only_one(Path(folder), name, kept=kept)
    return _missing(given, kept=kept)


def _missing(given: Path, *, kept: bool) -> Path:
    """Refuse a path that leads to nothing; name what lies in the folder that is there."""
    there = given.parent
    if given.suffix != ".json" or not there.is_dir():
        raise MlbenchError(f"no record or results folder '{given}'")
    names = _names(_records(there, kept=kept), there)
    raise MlbenchError(f"no record '{given}'; in {there}: {names}")


def _only_one(folder: Path, name: str, *, kept: bool) -> Path:
    every = _records(folder, kept=kept)
    found = [path for path in every if _is_named(path, name)] if name else every
    exact = [path for path in found if name and path.stem.partition("-seed")[0] == _slug(name)]
    found = exact or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise MlbenchError(f"{folder}: no record of '{name}'; there are: {_names(every, folder)}")
    which = f"of '{name}' " if name else ""
    raise MlbenchError(
        f"{folder}: {len(found)} records {which}are there; name one, such as "
        f"'{folder}:{_short(found[0], found)}'. There are: {_names(found, folder)}"
    )


def _records(folder: Path, *, kept: bool) -> list[Path]:
    """Return the paths of all records under a folder or in a pack, in their order.

    Raises:
        MlbenchError: there are none, or none whose network was kept.
    """
    every: list[Path] = []
    for file in map(Path, (each.path for each in record_files(folder))):
        every += [file / name for name, _ in read_pack(file)] if is_pack(file) else [file]
    if not kept:
        return every
    found = [path for path in every if path.with_suffix(_MODEL).is_file()]
    if not found:
        raise MlbenchError(
            f"{folder}: no trained network was kept beside its {len(every)} record(s); repeat the "
            "command of the run with --keep-model"
        )
    return found


def _is_named(path: Path, name: str) -> bool:
    return path.stem.startswith(_slug(name))


def _slug(name: str) -> str:
    return name.replace(":", "-")


def _short(path: Path, among: Sequence[Path]) -> str:
    """Return the loss and seed of a record's file, with the id of its run where that is needed."""
    short = path.stem.rpartition("-")[0] or path.stem
    return path.stem if sum(_is_named(each, short) for each in among) > 1 else short


def _names(paths: Sequence[Path], folder: Path) -> str:
    """List records by name: the folder of each where there are several."""
    several = len({path.parent for path in paths}) > 1
    names = [
        f"{path.parent.relative_to(folder)}: {path.stem}" if several else _short(path, paths)
        for path in paths
    ]
    rest = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
