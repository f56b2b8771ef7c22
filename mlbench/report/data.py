"""The test images behind records, and what lies beside a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlbench.arrays import Indices
from mlbench.datasets.checks import without_bad_images
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset
from mlbench.records.record import RunRecord
from mlbench.records.scores import query_neighbors, query_scores
from mlbench.registry import DATASETS
from mlbench.system import npz
from mlbench.system.machine import raise_lack

Floats = npt.NDArray[np.float64]


class ImageFinder:
    """Loads the data sets of records, each once.

    Args:
        data_root: folder that holds the data sets.
    """

    def __init__(self, data_root: Path | None) -> None:
        self.data_root = data_root
        self._loaded: dict[tuple[str, int], Dataset | MlbenchError] = {}

    def of(self, record: RunRecord) -> Dataset:
        """Return the data set that a record was evaluated on.

        Raises:
            MlbenchError: they are not here, or not those of the record.
        """
        name, inputs = record.recipe.data.name, record.recipe.input
        # Bad images are left out as the run did, which screens at the size that it decoded to.
        side = max(inputs.train_resize, inputs.test_resize) if record.dataset.skipped else 0
        if (name, side) not in self._loaded:
            self._loaded[name, side] = self._load(name, side)
        dataset = self._loaded[name, side]
        if isinstance(dataset, MlbenchError):
            raise dataset
        if dataset.fingerprint != record.dataset.fingerprint:
            raise MlbenchError(
                f"the local images of '{name}' differ from those used in the records (fingerprint "
                f"{dataset.fingerprint[:12]}, not {record.dataset.fingerprint[:12]}); pass the "
                "folder of those with --data-root"
            )
        return dataset

    def _load(self, name: str, side: int) -> Dataset | MlbenchError:
        try:
            dataset: Dataset = DATASETS.get(name).load()(self.data_root)
            return without_bad_images(dataset, side, _silent) if side else dataset
        except MlbenchError as error:
            return error


def _silent(_phase: str, _done: int, _total: int) -> None:
    pass


def scores_of(path: Path, record: RunRecord, metric: str, count: int) -> Floats | None:
    """Return the ``(count,)`` scores of a run's queries; None if there are none of that number."""
    scores = query_scores(path, metric, record.queries_sha256)
    return scores if scores is not None and len(scores) == count else None


def neighbors_of(path: Path, record: RunRecord, count: int, searched: int) -> Indices | None:
    """Return the first neighbours of a run's queries.

    Args:
        path: of the record.
        record: the run.
        count: number of queries.
        searched: number of images that they were searched among.

    Returns:
        ``(count, n)``, -1 where none is left; None if they were not kept or are of other images.
    """
    found = query_neighbors(path, record.queries_sha256)
    if found is None or len(found) != count or not found.size:
        return None
    return found if found.min() >= -1 and found.max() < searched else None


def embeddings_of(path: Path, count: int) -> npt.NDArray[np.float32] | None:
    """Return the test embeddings ``(count, D)`` that lie beside a record.

    Args:
        path: of the record; the file is ``<record>.embeddings.npy``, float16 ``(count, D)``.
        count: number of test images.

    Returns:
        None if there is no such file, or it is damaged or of other images.
    """
    try:
        found = npz.read_array(path.with_suffix(".embeddings.npy"))
        embeddings = np.asarray(found, dtype=np.float32)
    except Exception as error:  # what a damaged file makes numpy raise has no common type
        raise_lack(error)
        return None
    whole = embeddings.ndim == 2 and len(embeddings) == count and np.isfinite(embeddings).all()
    return embeddings if whole else None
