"""Test embeddings laid out in the plane."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlbench.arrays import Indices, Labels
from mlbench.report.data import embeddings_of, scores_of
from mlbench.report.groups import RowRuns

POINTS = 1500
"""The most points of a map."""

SIZE = 1000
"""Width and height of a map in its own units."""

Embeddings = npt.NDArray[np.float32]


def method() -> str:
    """Return the name of the projection that is used here: UMAP if installed, else t-SNE."""
    return "UMAP" if importlib.util.find_spec("umap") else "t-SNE"


def sample(classes: Labels) -> Indices:
    """Return positions of at most ``POINTS`` images, as evenly over the classes as they allow.

    Args:
        classes: ``(N,)``.

    Returns:
        positions, class by class; the same for the same classes.
    """
    shuffled = np.random.default_rng(0).permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(classes[by_class], prepend=-1))
    turn = np.arange(len(by_class)) - np.repeat(starts, np.diff(starts, append=len(by_class)))
    kept = np.argsort(turn, kind="stable")[:POINTS]
    return by_class[np.sort(kept)]


def layout(embeddings: Embeddings) -> npt.NDArray[np.int64]:
    """Lay out ``(N, D)`` embeddings, compared by cosine, as ``(N, 2)`` integers in 0 .. SIZE.

    The seed is fixed, so that the same embeddings give the same map.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(norms, 1e-12)
    flat = _umap(unit) if method() == "UMAP" else _tsne(unit)
    flat = flat - (flat.min(axis=0) + flat.max(axis=0)) / 2
    half = max(float(np.abs(flat).max()), 1e-12)
    return (SIZE / 2 + flat / half * 0.48 * SIZE).round().astype(np.int64)


def _tsne(unit: Embeddings) -> Embeddings:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(unit) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)


def _umap(unit: Embeddings) -> Embeddings:
    umap = importlib.import_module("umap")
    return umap.UMAP(n_neighbors=min(15, len(unit) - 1), random_state=0).fit_transform(unit)


def maps(entries: Sequence[RowRuns], classes: Labels) -> tuple[Indices, list[dict[str, Any]]]:
    """Return the points, and for each row with kept embeddings its map, as the script reads it."""
    points = sample(classes)
    found = (_map(entry, points, len(classes)) for entry in entries)
    return points, [each for each in found if each is not None]


def _map(entry: RowRuns, points: Indices, count: int) -> dict[str, Any] | None:
    """Lay out the first run of a row whose embeddings were kept."""
    for path, record in entry.runs.items():
        embeddings, hits = embeddings_of(path, count), scores_of(path, record, "R@1", count)
        if embeddings is not None and hits is not None:
            return {
                "label": entry.label,
                "run": f"seed {record.seed}",
                "places": layout(embeddings[points]).tolist(),
                "right": hits[points].astype(int).tolist(),
            }
    return None
