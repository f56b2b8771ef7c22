"""Records on disk: one JSON a run, written whole or not at all."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError
from mlbench.paths import atomic_file
from mlbench.record import RunRecord
from mlbench.spec import RunSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.metrics import QueryResults


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


def find(out: Path, spec: RunSpec) -> RunRecord | None:
    """Return the record of a run if there is one; a damaged one is set aside to be made anew."""
    path = record_path(out, spec)
    if not path.exists():
        return None
    try:
        return load(path)
    except MlbenchError:
        path.replace(path.with_suffix(".damaged"))
        return None


def save(out: Path, record: RunRecord, queries: QueryResults | None) -> Path:
    """Write a record under ``out``, its per-query results beside it; whole or not at all.

    The hits, one bit per query and k, and AP@R (float32) go to ``.npz``, before the record, so
    that a record never lacks them.
    """
    import numpy as np

    path = record_path(out, record.spec)
    if queries is not None:
        hits = np.packbits(queries.hits, axis=0)
        with atomic_file(path.with_suffix(".npz")) as file:
            ap_at_r = queries.ap_at_r.astype(np.float32)
            np.savez_compressed(file, ks=queries.ks, hits=hits, ap_at_r=ap_at_r)
    with atomic_file(path) as file:
        file.write(record.to_json().encode())
    return path


def query_scores(path: Path, metric: str) -> npt.NDArray[np.float64] | None:
    """Return the per-query scores behind a record's metric: ``(Q,)`` hits (0 or 1) or AP@R.

    Args:
        path: of the record.
        metric: such as ``R@1`` or ``MAP@R``.

    Returns:
        None if the metric has none, or they do not lie beside the record.
    """
    import numpy as np

    beside = path.with_suffix(".npz")
    if not beside.is_file():
        return None
    try:
        with np.load(beside, allow_pickle=False) as arrays:
            if metric == "MAP@R":
                return arrays["ap_at_r"].astype(np.float64)
            ks = [f"R@{k}" for k in arrays["ks"]]
            if metric not in ks:
                return None
            hits = np.unpackbits(arrays["hits"], axis=0, count=len(arrays["ap_at_r"]))
            return hits[:, ks.index(metric)].astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


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
