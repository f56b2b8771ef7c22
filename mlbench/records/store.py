"""Records on disk: one JSON a run, written whole or not at all."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError
from mlbench.recipes.spec import RunSpec
from mlbench.records.packs import RECORD_BYTES, SUFFIX, is_pack, read_member, read_pack
from mlbench.records.record import PROTOCOL_VERSION, RunRecord
from mlbench.records.scores import packed_scores
from mlbench.system.files import atomic_file, check_path
from mlbench.system.machine import MachineError, raise_lack
from mlbench.system.regular import read_regular

if TYPE_CHECKING:
    from mlbench.metrics.evaluation import QueryResults

# Of a data set's and a loss's name, so that with all that stands behind it, and before and behind
# that while a file is being written, a name has at most 255 bytes.
_FOLDER_BYTES, _FILE_BYTES = 240, 160


@dataclass(frozen=True)
class Results:
    """The records of a folder.

    Attributes:
        records: by path, in path order.
        problems: one line for each file that is no readable record.
    """

    records: dict[Path, RunRecord]
    problems: tuple[str, ...]


def record_path(out: Path, spec: RunSpec) -> Path:
    """Return the file of a run: ``OUT/DATASET-RECIPE_ID/LOSS-RUN_ID.json``."""
    folder = f"{_slug(spec.recipe.data.name, _FOLDER_BYTES)}-{spec.recipe.recipe_id}"
    fold = "" if spec.fold is None else f"-fold{spec.fold}"
    fold += "" if spec.split is None else f"-split{spec.split}"
    loss = _slug(spec.loss.name, _FILE_BYTES)
    return out / folder / f"{loss}-seed{spec.seed}{fold}-{spec.run_id}.json"


def load(path: Path) -> RunRecord:
    """Read one record, which may lie in a pack (``PACK/NAME``).

    Raises:
        MlbenchError: it names the file and what is wrong with it.
    """
    try:
        content = read_regular(path, limit=RECORD_BYTES)
    except NotADirectoryError as error:
        content = read_member(path)
        if content is None:
            raise MlbenchError(f"{path}: cannot be read ({error})") from error
    except OSError as error:
        raise_lack(error)
        raise MlbenchError(f"{path}: cannot be read ({error})") from error
    return RunRecord.from_json(content, str(path))


def check_writable(out: Path) -> None:
    """Raise MlbenchError if the results folder cannot be made or written; before any work."""
    check_path(out)
    try:
        # In the folder that it would be made in: other commands may be making it just now.
        there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise MlbenchError(
            f"cannot write to the results folder {out}: {error.strerror or error}; "
            "choose another one with --out"
        ) from error


def find(out: Path, spec: RunSpec, fingerprint: str, loss_source: str) -> RunRecord | None:
    """Return the record of a run if it is there and was made with this data and loss.

    One that is damaged, or of other data, another version of the loss or another protocol, is not
    taken; it stays until ``save`` has another to put in its place.

    Args:
        out: the results folder.
        spec: the run.
        fingerprint: of the data set that it would be made with.
        loss_source: of the loss that it would be made with.
    """
    try:
        record = load(record_path(out, spec))
    except MachineError:  # the record may be sound: not to be made again
        raise
    except MlbenchError:
        return None
    wanted = (spec, fingerprint, loss_source, PROTOCOL_VERSION)
    made = (record.spec, record.dataset.fingerprint, record.loss_source, record.protocol_version)
    return record if made == wanted else None


def set_aside(path: Path) -> None:
    """Rename the record at ``path`` to ``.outdated``, or ``.damaged`` if it cannot be read.

    Its per-query results become ``.npz.outdated`` or ``.npz.damaged``.
    """
    try:
        load(path)
        suffix = ".outdated"
    except MachineError:
        raise
    except MlbenchError:
        suffix = ".damaged"
    try:
        path.replace(path.with_suffix(suffix))
        with suppress(FileNotFoundError):
            path.with_suffix(".npz").replace(path.with_suffix(f".npz{suffix}"))
    except OSError as error:
        raise MlbenchError(f"cannot rename {path}: {error.strerror or error}") from error


def save(out: Path, record: RunRecord, queries: QueryResults | None) -> Path:
    """Write a record under ``out``, its per-query results beside it; whole or not at all.

    ``.npz`` holds hits, one bit per query and k, AP@R (float32) and the first neighbours. It is
    written before the record, which names the SHA-256 of its scores, so that none lacks them.
    A record that is there already, of other data or damaged, is set aside (``.outdated``,
    ``.damaged``), so that nothing is lost.
    """
    path = record_path(out, record.spec)
    if path.exists():
        set_aside(path)
    if queries is not None:
        content, sha256 = packed_scores(queries)
        record = replace(record, queries_sha256=sha256)
        with atomic_file(path.with_suffix(".npz"), own_folder=True) as file:
            file.write(content)
    with atomic_file(path, own_folder=True) as file:
        file.write(record.to_json().encode())
    return path


def load_results(path: str | os.PathLike[str]) -> list[RunRecord]:
    """Return every record under the folder ``path``; warn of files that cannot be read.

    Raises:
        MlbenchError: there is no such folder, or no file in it that could be a record.
    """
    results = read_results(Path(path))
    for problem in results.problems:
        warnings.warn(problem, stacklevel=2)
    return list(results.records.values())


def read_results(folder: Path) -> Results:
    """Read every record under ``folder``, the damaged ones named.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could hold records.
    """
    return read_records(Path(file.path) for file in record_files(folder))


def read_records(files: Iterable[Path]) -> Results:
    """Read records and packs of records, the damaged ones named.

    A record of a pack goes by the path ``PACK/NAME``. None is taken of a pack that is damaged.
    """
    records, problems = {}, []
    with no_collection():
        for file in files:
            try:
                found, damaged = _read_file(file)
            except MlbenchError as error:
                problems.append(str(error))
            else:
                records |= found
                problems += damaged
    return Results(records, tuple(problems))


def _read_file(file: Path) -> tuple[dict[Path, RunRecord], list[str]]:
    """Return the records of a file, and a line for each record in a pack that is damaged."""
    if not is_pack(file):
        return {file: load(file)}, []
    records, problems = {}, []
    for name, content in read_pack(file):
        path = file / name
        try:
            records[path] = RunRecord.from_json(content, str(path))
        except MlbenchError as error:
            problems.append(str(error))
    return records, problems


def other_records(out: Path, specs: Iterable[RunSpec]) -> list[Path]:
    """Return the files of records under ``out``, in path order, that are not of these runs."""
    own = {str(record_path(out, spec)) for spec in specs}
    return [Path(file.path) for file in _files(out, ".json") if file.path not in own]


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file that holds records by its name: one (``.json``), or a pack of them."""

    path: str

    def stat(self) -> os.stat_result:
        """Return its state; OSError if it has none, as a link to nothing."""
        return Path(self.path).stat()


def record_files(folder: Path) -> list[RecordFile]:
    """Return the files with records under ``folder``, in path order; ``folder`` may be a pack.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could hold records.
    """
    check_path(folder)
    if is_pack(folder) and folder.is_file():
        return [RecordFile(str(folder))]
    if not folder.is_dir():
        raise MlbenchError(
            f"no results folder '{folder}'; make one with: mlbench run --out {folder}"
        )
    found = [RecordFile(file.path) for file in _files(folder, ".json", SUFFIX)]
    if not found:
        raise MlbenchError(f"no records in '{folder}'; make some with: mlbench run --out {folder}")
    return found


def _files(folder: str | os.PathLike[str], *endings: str) -> Iterator[os.DirEntry[str]]:
    """Yield what lies under ``folder`` and ends so, in path order; folder links are passed over.

    Folders may lie in each other to any depth, of which no more than one is open at a time.
    """
    waiting = _entries(folder)
    while waiting:
        entry = waiting.pop()
        if entry.is_dir(follow_symlinks=False):
            waiting += _entries(entry.path)
        elif entry.name.endswith(endings):
            yield entry


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, the last first."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=_name, reverse=True)
    except OSError as error:
        raise_lack(error)
        return []


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the collector from going through all records again and again while they are in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _slug(name: str, limit: int) -> str:
    """Return what a file name says of a name: ASCII, cut off; the ids behind it tell them apart."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.")[:limit] or "unnamed"
