"""Records on disk: one JSON a run, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbench.errors import MlbenchError
from mlbench.paths import atomic_file
from mlbench.record import PROTOCOL_VERSION, RunRecord
from mlbench.spec import RunSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.metrics import QueryResults

NEIGHBORS_KEPT = 10


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
    folder = f"{_slug(spec.recipe.data.name)}-{spec.recipe.recipe_id}"
    fold = "" if spec.fold is None else f"-fold{spec.fold}"
    return out / folder / f"{_slug(spec.loss.name)}-seed{spec.seed}{fold}-{spec.run_id}.json"


def load(path: Path) -> RunRecord:
    """Read one record; MlbenchError names the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MlbenchError(f"{path}: cannot be read ({error})") from error
    return RunRecord.from_json(text, str(path))


def check_writable(out: Path) -> None:
    """Raise MlbenchError if the results folder cannot be made or written; before any work."""
    there = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        if not there:
            out.rmdir()
    except OSError as error:
        raise MlbenchError(
            f"cannot write to the results folder {out}: {error.strerror or error}; "
            "give another one with --out"
        ) from error


def find(out: Path, spec: RunSpec, fingerprint: str, loss_source: str) -> RunRecord | None:
    """Return the record of a run if it is there and was made with this data and loss.

    One that is damaged, or of other data, another version of the loss or another protocol, is set
    aside (``.damaged``, ``.outdated``), so that the run is made anew and nothing is lost.

    Args:
        out: the results folder.
        spec: the run.
        fingerprint: of the data set that it would be made with.
        loss_source: of the loss that it would be made with.

    Raises:
        MlbenchError: the old record cannot be set aside.
    """
    path = record_path(out, spec)
    if not path.exists():
        return None
    try:
        record = load(path)
    except MlbenchError:
        _set_aside(path, ".damaged")
        return None
    wanted = (spec, fingerprint, loss_source, PROTOCOL_VERSION)
    made = (record.spec, record.dataset.fingerprint, record.loss_source, record.protocol_version)
    if made != wanted:
        _set_aside(path, ".outdated")
        return None
    return record


def _set_aside(path: Path, suffix: str) -> None:
    try:
        path.replace(path.with_suffix(suffix))
    except OSError as error:
        raise MlbenchError(f"cannot rename {path}: {error.strerror or error}") from error


def save(out: Path, record: RunRecord, queries: QueryResults | None) -> Path:
    """Write a record under ``out``, its per-query results beside it; whole or not at all.

    ``.npz`` holds hits, one bit per query and k, AP@R (float32) and the first neighbours (int32).
    It is written before the record, which names its SHA-256, so that a record never lacks it.
    """
    path = record_path(out, record.spec)
    if queries is not None:
        content = _packed(queries)
        record = replace(record, queries_sha256=hashlib.sha256(content).hexdigest())
        with atomic_file(path.with_suffix(".npz")) as file:
            file.write(content)
    with atomic_file(path) as file:
        file.write(record.to_json().encode())
    return path


def _packed(queries: QueryResults) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ks=queries.ks,
        hits=np.packbits(queries.hits, axis=0),
        ap_at_r=queries.ap_at_r.astype(np.float32),
        neighbors=queries.neighbors[:, :NEIGHBORS_KEPT].astype(np.int32),
    )
    return buffer.getvalue()


def query_scores(
    path: Path, metric: str, sha256: str | None = None
) -> npt.NDArray[np.float64] | None:
    """Return the per-query scores behind a record's metric: ``(Q,)`` hits (0 or 1) or AP@R.

    Args:
        path: of the record.
        metric: such as ``R@1`` or ``MAP@R``.
        sha256: the record's ``queries_sha256``; None leaves the file unchecked.

    Returns:
        None if the metric has none, or they do not lie beside the record whole.
    """
    import numpy as np

    arrays = _arrays(path, sha256)
    try:
        ap_at_r = np.asarray(arrays["ap_at_r"], dtype=np.float64)
        if metric == "MAP@R":
            scores = ap_at_r
        else:
            column = [f"R@{k}" for k in arrays["ks"].tolist()].index(metric)
            hits = np.unpackbits(arrays["hits"], axis=0, count=len(ap_at_r))
            scores = hits[:, column].astype(np.float64)
    except (KeyError, ValueError, TypeError, IndexError):
        return None
    return scores if scores.ndim == 1 and np.isfinite(scores).all() else None


def query_neighbors(path: Path, sha256: str | None = None) -> npt.NDArray[np.int64] | None:
    """Return the first neighbours of each query: ``(Q, n)`` gallery indices, -1 where none is left.

    ``n`` is at most ``NEIGHBORS_KEPT``. Arguments are those of ``query_scores``.

    Returns:
        None if they were not kept (records of schema 1), or do not lie beside the record whole.
    """
    import numpy as np

    neighbors = _arrays(path, sha256).get("neighbors")
    if neighbors is None or neighbors.ndim != 2 or not np.issubdtype(neighbors.dtype, np.integer):
        return None
    return neighbors.astype(np.int64)


def _arrays(path: Path, sha256: str | None) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays beside a record; none if they are missing, damaged or not its own."""
    import numpy as np

    try:
        content = path.with_suffix(".npz").read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            return {}
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # what a damaged archive makes numpy and zipfile raise has no common type
        return {}


def load_results(path: str | os.PathLike[str]) -> list[RunRecord]:
    """Return every record under the folder ``path``; warn of files that cannot be read.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could be a record.
    """
    results = read_results(Path(path))
    for problem in results.problems:
        warnings.warn(problem, stacklevel=2)
    return list(results.records.values())


def read_results(folder: Path) -> Results:
    """Read every record (``*.json``) under ``folder``, the damaged ones named.

    Raises:
        MlbenchError: there is no such folder, or not one file in it that could be a record.
    """
    if not folder.is_dir():
        raise MlbenchError(
            f"no results folder '{folder}'; make one with: mlbench run --out {folder}"
        )
    records, problems = {}, []
    for file in sorted(folder.rglob("*.json")):
        try:
            records[file] = load(file)
        except MlbenchError as error:
            problems.append(str(error))
    if not records and not problems:
        raise MlbenchError(f"no records in '{folder}'; make some with: mlbench run --out {folder}")
    return Results(records, tuple(problems))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.") or "unnamed"
