"""The inverted file of large galleries."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlbench.errors import MlbenchError
from mlbench.metrics.neighbors import nearest
from mlbench.models import index as indices
from mlbench.models.approximate import Cells, assign, find, make_cells, recall
from mlbench.models.folders import EmbeddedFolder
from mlbench.models.index import Index, Kind, make_index, open_index, save_index


def unit_rows(count, dim=8, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_with_all_cells_probed_the_search_is_exact():
    gallery, queries = unit_rows(300), unit_rows(20, seed=1)
    cells = make_cells(gallery)
    whole = Cells(cells.centroids, cells.of, len(cells.centroids))
    np.testing.assert_array_equal(find(whole, gallery, queries, 7), nearest(queries, gallery, 7))
    assert recall(whole, gallery) == 1


def test_as_many_cells_are_probed_as_the_recall_needs():
    gallery = unit_rows(2000)
    cells = make_cells(gallery)
    assert 1 < cells.probes < len(cells.centroids)
    assert recall(cells, gallery) >= 0.99
    assert not cells.pays  # directions at random have no cells
    less = Cells(cells.centroids, cells.of, cells.probes // 2)
    assert recall(less, gallery) < 0.99


def test_recall_is_of_the_others_by_hand():
    """Two cells of two images each; one probe finds the other of its cell, of three others."""
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    cells = Cells(gallery[[0, 2]], assign(gallery[[0, 2]], gallery), 1)
    assert cells.of.tolist() == [0, 0, 1, 1]
    assert find(cells, gallery, gallery[:1], 3).tolist() == [[0, 1, -1]]
    assert recall(cells, gallery) == pytest.approx(1 / 3)


def test_torch_and_faiss_work_in_threads_beside_each_other():
    """Each brings an OpenMP runtime."""
    gallery = unit_rows(3000, 32)
    cells = make_cells(gallery)
    expected = find(cells, gallery, gallery[:50], 5)
    products = torch.from_numpy(gallery) @ torch.from_numpy(gallery).T

    def both(_):
        found = find(cells, gallery, gallery[:50], 5)
        again = torch.from_numpy(gallery) @ torch.from_numpy(gallery).T
        return np.array_equal(found, expected) and torch.equal(again, products)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(12)))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(indices, "file_sha256", lambda path: "0" * 64)
    (tmp_path / "run.safetensors").touch()
    gallery = unit_rows(50)
    paths = tuple(f"{i:02}.png" for i in range(50))
    stamps = np.zeros((50, 2), np.int64)
    made = Index(tmp_path / "run.json", "0" * 64, tmp_path, paths, gallery, stamps)
    save_index(replace(made, cells=make_cells(gallery)), tmp_path / "it.npz")
    return tmp_path / "it.npz"


def test_cells_are_kept_as_plain_arrays(written: Path):
    found = open_index(written)
    again = make_cells(found.embeddings)
    assert found.cells is not None
    assert found.cells.probes == again.probes
    np.testing.assert_array_equal(found.cells.of, again.of)
    np.testing.assert_array_equal(found.cells.centroids, again.centroids)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cells", lambda of: of + 1000),
        ("cells", lambda of: of - 1000),
        ("cells", lambda of: of[1:]),
        ("cells", lambda of: of.astype(np.int64)),
        ("centroids", lambda c: c[:, 1:]),
        ("centroids", lambda c: c * np.float32("nan")),
        ("centroids", lambda c: c[:0]),
        ("probes", lambda _: 10**9),
        ("probes", lambda _: 0),
        ("probes", lambda _: "all"),
    ],
)
def test_cells_of_a_stranger_are_checked(written: Path, name, change):
    with np.load(written) as file:
        arrays = dict(file)
    if name == "probes":
        about = json.loads(arrays["index"].item())
        arrays["index"] = np.array(json.dumps({**about, "probes": change(None)}))
    else:
        arrays[name] = change(arrays[name])
    np.savez(written, **arrays)
    with pytest.raises(MlbenchError, match="damaged, or not an index"):
        open_index(written)


@pytest.mark.parametrize("pays", [False, True])
def test_large_galleries_are_approximate_if_it_pays(tmp_path: Path, monkeypatch, pays):
    monkeypatch.setattr(Cells, "pays", pays)
    monkeypatch.setattr(indices, "LARGE", 50)
    monkeypatch.setattr(indices, "file_sha256", lambda path: "0" * 64)
    cases: list[tuple[int, Kind, bool]] = [
        (49, "auto", False),
        (50, "auto", pays),
        (50, "exact", False),
        (9, "ivf", True),
    ]
    for count, kind, approximate in cases:
        paths = tuple(f"{i:02}.png" for i in range(count))
        embedded = EmbeddedFolder(tmp_path, paths, unit_rows(count), ())
        made = make_index(embedded, tmp_path / "run.json", kind)
        assert (made.cells is not None) == approximate
