"""Totals by class for records of older schemas, from the per-query scores beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError
from mlbench.records.packs import is_pack
from mlbench.records.record import RunRecord
from mlbench.records.scores import read_scores
from mlbench.records.store import load, record_files
from mlbench.records.totals import totals_by_class
from mlbench.registry import DATASETS
from mlbench.system.files import atomic_file
from mlbench.system.machine import MachineError

if TYPE_CHECKING:
    from mlbench.interfaces import Dataset


@dataclass(frozen=True)
class Upgraded:
    """What became of the records of a folder.

    Attributes:
        added: number of records that were given totals by class.
        complete: number of those that had them, or that have none as their run diverged.
        left: one line for each record that was left as it is, with the reason.
    """

    added: int
    complete: int
    left: tuple[str, ...]

    @property
    def records(self) -> int:
        """The number of records."""
        return self.added + self.complete + len(self.left)


def upgrade(
    folder: Path,
    data_root: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Upgraded:
    """Add totals by class to every record under ``folder`` that lacks them.

    They are made from the per-query scores beside a record and the labels of its data set, and
    must add up to its metrics. Each record is rewritten whole or not at all.

    Args:
        folder: of results.
        data_root: folder that holds the data sets.
        progress: called with the number of records done and their total.

    Raises:
        MlbenchError: no records in the folder; a data set that cannot be loaded; a record that
            cannot be written.
    """
    paths = [path for file in record_files(folder) if not is_pack(path := Path(file.path))]
    datasets = cache(lambda name: _dataset(name, data_root))
    added = complete = 0
    left = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        try:
            record = load(path)
            if record.class_totals is not None or record.status != "ok":
                complete += 1
                continue
            dataset = datasets(record.dataset.name)
            content = _with_totals(path, record, dataset).to_json()
        except (MachineError, _NoDatasetError):
            raise
        except MlbenchError as error:
            left.append(str(error))
            continue
        with atomic_file(path) as file:
            file.write(content.encode())
        added += 1
    return Upgraded(added, complete, tuple(left))


class _NoDatasetError(MlbenchError):
    """A data set that cannot be loaded, of which the other records need the labels too."""


def _dataset(name: str, data_root: Path | None) -> Dataset:
    from mlbench.datasets.checks import check_dataset

    try:
        dataset = DATASETS.get(name).load()(data_root)
        check_dataset(dataset)
    except MlbenchError as error:
        raise _NoDatasetError(f"the labels of data set '{name}' are needed: {error}") from error
    return dataset


def _with_totals(path: Path, record: RunRecord, dataset: Dataset) -> RunRecord:
    """Return the record with totals; MlbenchError if they cannot be had."""
    from mlbench.datasets.checks import leave_out

    if record.dataset.skipped:
        dataset = leave_out(dataset, frozenset(record.dataset.skipped))
    if dataset.fingerprint != record.dataset.fingerprint:
        raise MlbenchError(
            f"{path}: data set '{dataset.name}' here differs from that of the record"
        )
    labels, scores = dataset.test.labels, read_scores(path, record.queries_sha256)
    if scores is None or len(scores.ap_at_r) != len(labels):
        raise MlbenchError(f"{path}: the per-query scores of its run are not next to it")
    by_metric = {**scores.hits, "MAP@R": scores.ap_at_r}
    totals = totals_by_class(by_metric, labels, dataset.test_numbers)
    made = replace(record, class_totals=totals.pack())
    return RunRecord.from_json(made.to_json(), str(path))  # the totals are checked
