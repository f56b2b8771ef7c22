"""Who is searched, and in what: the arrays of callers, checked together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mlbench.arrays import Labels
from mlbench.errors import MlbenchError
from mlbench.metrics.vectors import LabelsLike, Vectors, as_labels, as_vectors


@dataclass(frozen=True)
class Side:
    """The queries, or what they are searched in.

    Attributes:
        rows: ``(N, D)``.
        labels: ``(N,)`` classes.
        groups: ``(N,)``; images of one group are not compared. None without groups.
    """

    rows: Tensor
    labels: Labels
    groups: Labels | None


def as_sides(
    embeddings: Vectors,
    labels: LabelsLike,
    *,
    gallery: Vectors | None = None,
    gallery_labels: LabelsLike | None = None,
    groups: LabelsLike | None = None,
    gallery_groups: LabelsLike | None = None,
) -> tuple[Side, Side | None]:
    """Return the queries, and the gallery if there is one.

    Arguments and errors are those of ``evaluate``.
    """
    rows = as_vectors(embeddings, "embeddings")
    classes = as_labels(labels, len(rows), "labels")
    if (gallery is None) != (gallery_labels is None):
        raise MlbenchError("gallery and gallery_labels belong together; pass both or neither")
    if (gallery_groups is not None) != (groups is not None and gallery is not None):
        raise MlbenchError(
            "groups and gallery_groups belong together with a gallery, and gallery_groups nowhere "
            "else; pass both or neither"
        )
    queries = Side(rows, classes, _as_groups(groups, len(rows), "groups"))
    if gallery is None or gallery_labels is None:
        return queries, None
    rows = as_vectors(gallery, "gallery")
    classes = as_labels(gallery_labels, len(rows), "gallery_labels")
    return queries, Side(rows, classes, _as_groups(gallery_groups, len(rows), "gallery_groups"))


def _as_groups(groups: LabelsLike | None, count: int, what: str) -> Labels | None:
    return None if groups is None else as_labels(groups, count, what)
