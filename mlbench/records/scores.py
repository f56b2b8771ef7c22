"""The per-query scores behind a record's metrics, in an ``.npz`` beside it."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.system import npz
from mlbench.system.machine import raise_lack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.metrics.evaluation import QueryResults

    Scores = npt.NDArray[np.float64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]


NEIGHBORS_KEPT = 10


def packed_scores(queries: QueryResults) -> tuple[bytes, str]:
    """Return the content of the ``.npz`` and the SHA-256 of its arrays behind the metrics."""
    import numpy as np

    neighbors = queries.neighbors[:, :NEIGHBORS_KEPT]
    arrays = {
        "ks": np.asarray(queries.ks),
        "hits": np.packbits(queries.hits, axis=0),
        "ap_at_r": queries.ap_at_r.astype(np.float32),
        "neighbors": neighbors.astype(np.min_scalar_type(-max(queries.n_gallery, 1))),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # compressing would save a seventh, and take as long as the rest
    with zipfile.ZipFile(buffer) as archive:
        return buffer.getvalue(), _digest([archive.read(f"{name}.npy") for name in _SCORES])


_SCORES = ("ks", "hits", "ap_at_r")
"""The first arrays, behind the metrics, which ``queries_sha256`` is of, in this order."""


def _digest(members: Sequence[bytes]) -> str:
    found = hashlib.sha256()
    for member in members:
        found.update(member)
    return found.hexdigest()


@dataclass(frozen=True)
class QueryScores:
    """The per-query scores behind a record's metrics.

    Attributes:
        hits: ``(Q,)`` bool by the name of the metric, such as ``R@1``.
        ap_at_r: ``(Q,)`` float32, the query's term of MAP@R.
        means: by the name of the metric.
    """

    hits: Mapping[str, npt.NDArray[np.bool_]]
    ap_at_r: npt.NDArray[np.float32]
    means: Mapping[str, float]

    def of(self, metric: str) -> npt.NDArray[np.bool_] | npt.NDArray[np.float32] | None:
        """Return ``(Q,)`` scores; None for a metric that has none."""
        return self.ap_at_r if metric == "MAP@R" else self.hits.get(metric)


def read_scores(path: Path, sha256: str | None = None) -> QueryScores | None:
    """Read the per-query scores beside a record.

    Args:
        path: of the record.
        sha256: the record's ``queries_sha256``; None leaves them unchecked.

    Returns:
        None if they do not lie beside the record whole, or are another record's.
    """
    import numpy as np

    try:
        members = npz.read_members(path.with_suffix(".npz"), _SCORES, check=sha256 is None)
        if sha256 is not None and _digest(members) != sha256:
            return None
        ks, packed, ap_at_r = map(npz.array, members)
        ap_at_r = ap_at_r.astype(np.float32, casting="same_kind", copy=False)
        hits = np.unpackbits(packed.T.copy(), axis=1, count=len(ap_at_r)).view(np.bool_)
        by_name = dict(zip((f"R@{k}" for k in ks.tolist()), hits, strict=True))
        means = _means({**by_name, "MAP@R": ap_at_r})
    except Exception as error:  # what a damaged file makes numpy and zlib raise has no common type
        raise_lack(error)
        return None
    return QueryScores(by_name, ap_at_r, means)


def _means(
    scores: Mapping[str, npt.NDArray[np.bool_] | npt.NDArray[np.float32]],
) -> dict[str, float]:
    """Return the mean of each; ValueError if one of them is not finite."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        means = {name: mean_score(values) for name, values in scores.items()}
    if not all(map(math.isfinite, means.values())):
        raise ValueError("scores that are not finite")
    return means


def query_scores(
    path: Path, metric: str, sha256: str | None = None
) -> npt.NDArray[np.float64] | None:
    """Return the scores behind one metric: ``(Q,)`` hits (0 or 1) or AP@R.

    Arguments are those of ``read_scores``, and the metric's name.

    Returns:
        None if the metric has none, or they do not lie beside the record whole.
    """
    import numpy as np

    scores = read_scores(path, sha256)
    found = None if scores is None else scores.of(metric)
    return None if found is None else found.astype(np.float64)


def query_neighbors(path: Path, sha256: str | None = None) -> npt.NDArray[np.int64] | None:
    """Return the first neighbours of each query: ``(Q, n)`` gallery indices, -1 where none is left.

    ``n`` is at most ``NEIGHBORS_KEPT``. Arguments are those of ``read_scores``.

    Returns:
        None if they were not kept (records of schema 1), or do not lie beside the record whole.
    """
    import numpy as np

    scores = read_scores(path, sha256)
    try:
        members = npz.read_members(path.with_suffix(".npz"), (*_SCORES, "neighbors"))
        neighbors = npz.array(members[-1])
    except Exception as error:  # as in read_scores
        raise_lack(error)
        return None
    whole = neighbors.ndim == 2 and np.issubdtype(neighbors.dtype, np.integer)
    if scores is None or not whole or len(neighbors) != len(scores.ap_at_r):
        return None
    return neighbors.astype(np.int64)


def mean_score(scores: Scores) -> float:
    """Return the mean of ``(Q,)`` scores; that of hits without turning them into numbers."""
    import numpy as np

    if len(scores) == 1:
        return float(scores[0])
    if scores.dtype == np.bool_:
        return np.count_nonzero(scores) / len(scores)
    return float(scores.mean(dtype=np.float64))
