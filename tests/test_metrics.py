import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from mlbench.errors import MlbenchError
from mlbench.metrics import evaluate, evaluate_queries, nmi, nmi_restarts, summarize

pytestmark = pytest.mark.numeric


def oracle(queries, query_labels, gallery, gallery_labels, exclude_self, ks):
    """Musgrave et al. 2020 and the protocol, one query at a time in plain Python."""

    def unit(rows):
        rows = np.asarray(rows, dtype=np.float64)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    similarity = unit(queries).astype(np.float64) @ unit(gallery).astype(np.float64).T
    similarity = similarity.astype(np.float32)
    totals = {f"R@{k}": 0.0 for k in ks} | {"MAP@R": 0.0, "R-Precision": 0.0, "n_lone": 0}
    for i, row in enumerate(similarity):
        others = [j for j in range(len(row)) if not (exclude_self and i == j)]
        ranked = sorted(others, key=lambda j: (-row[j], j))
        right = [bool(gallery_labels[j] == query_labels[i]) for j in ranked]
        r = sum(right)
        for k in ks:
            totals[f"R@{k}"] += any(right[:k])
        totals["n_lone"] += r == 0
        for rank in range(1, r + 1):
            totals["R-Precision"] += right[rank - 1] / r
            totals["MAP@R"] += right[rank - 1] * sum(right[:rank]) / rank / r
    lone = totals.pop("n_lone")
    return {name: value / len(similarity) for name, value in totals.items()} | {"n_lone": lone}


@st.composite
def labelled(draw, dim=3):
    count = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.integers(-2, 3, (count, dim)).astype(draw(st.sampled_from(["f2", "f4", "f8"])))
    rows[~rows.any(axis=1)] = 1
    return rows, rng.integers(0, draw(st.integers(1, 12)), count)


def assert_agrees(results, expected):
    summary = summarize(results)
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=80, deadline=None)
@given(data=labelled(), ks=st.sampled_from([(1, 2, 4, 8), (3,), (100, 1)]))
def test_self_retrieval_against_oracle(data, ks):
    rows, labels = data
    results = evaluate_queries(rows, labels, ks=ks)
    assert_agrees(results, oracle(rows, labels, rows, labels, True, ks))


@settings(max_examples=60, deadline=None)
@given(query=labelled(), gallery=labelled())
def test_gallery_retrieval_against_oracle(query, gallery):
    results = evaluate_queries(*query, gallery=gallery[0], gallery_labels=gallery[1])
    expected = oracle(query[0], query[1], gallery[0], gallery[1], False, (1, 2, 4, 8))
    assert_agrees(results, expected)


def ranked_line(pattern):
    """One query, and a gallery whose ranking is right or wrong as ``pattern`` says."""
    angles = np.linspace(0.1, 1.5, len(pattern))
    gallery = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    return {"gallery": gallery, "gallery_labels": [7 if right else 1 for right in pattern]}


@pytest.mark.parametrize(
    ("pattern", "r_precision", "map_at_r"),
    [
        # The toy rankings of Musgrave et al. 2020, sec. 2.3: R = 10; all have R@1 = 1 but the last.
        ([1] + [0] * 9 + [1] * 9, 0.1, 0.1),
        ([1, 1] + [0] * 8 + [1] * 8, 0.2, 0.2),
        ([1] + [0] * 8 + [1] + [1] * 8, 0.2, 0.12),
        ([1] * 10, 1.0, 1.0),
        # R = 3: ranks 1 and 3 are right, so P(1) = 1 and P(3) = 2/3.
        ([1, 0, 1, 0, 1], 2 / 3, (1 + 2 / 3) / 3),
        ([0, 0, 0, 1, 1, 1], 0.0, 0.0),
    ],
)
def test_hand_computed(pattern, r_precision, map_at_r):
    summary = summarize(evaluate_queries([[1.0, 0.0]], [7], **ranked_line(pattern)))
    assert summary["R-Precision"] == pytest.approx(r_precision)
    assert summary["MAP@R"] == pytest.approx(map_at_r)
    assert summary["R@1"] == pattern[0]


def clusters(seed, classes=12, each=9, dim=8, noise=0.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = rng.normal(size=(classes, dim))[labels] + noise * rng.normal(size=(len(labels), dim))
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_pytorch_metric_learning(seed):
    rows, labels = clusters(seed, noise=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("pytorch_metric_learning.utils.accuracy_calculator")
    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = module.AccuracyCalculator(
        include=include, k="max_bin_count", device=torch.device("cpu")
    )
    unit = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)
    expected = calculator.get_accuracy(unit, torch.from_numpy(labels))
    ours = summarize(evaluate_queries(rows, labels))
    for name, theirs in zip(("R@1", "R-Precision", "MAP@R"), include, strict=True):
        assert ours[name] == pytest.approx(expected[theirs], abs=1e-9)


def test_permuting_the_rows_permutes_the_results():
    rows, labels = clusters(3)
    order = np.random.default_rng(4).permutation(len(labels))
    plain, mixed = evaluate_queries(rows, labels), evaluate_queries(rows[order], labels[order])
    np.testing.assert_array_equal(mixed.hits, plain.hits[order])
    np.testing.assert_array_equal(mixed.ap_at_r, plain.ap_at_r[order])
    np.testing.assert_array_equal(order[mixed.neighbors], plain.neighbors[order])


def test_results_are_per_query_and_bounded_memory_changes_nothing():
    rows, labels = clusters(5, classes=3, each=500)
    wide, narrow = (evaluate_queries(rows, labels, memory_mb=mb) for mb in (256, 1))
    assert wide.neighbors.shape == (1500, 8)
    assert wide.hits.shape == (1500, 4)
    assert set(wide.relevant) == {499}
    for name in ("neighbors", "hits", "ap_at_r", "r_precision"):
        np.testing.assert_array_equal(getattr(wide, name), getattr(narrow, name))


def test_evaluate_has_exactly_the_documented_keys():
    rows, labels = clusters(6)
    summary = evaluate(torch.from_numpy(rows), labels.tolist(), ks=(1, 10))
    names = ["R@1", "R@10", "MAP@R", "R-Precision", "NMI", "n_query", "n_gallery", "n_lone"]
    assert list(summary) == names
    assert all(0 <= summary[name] <= 1 for name in names[:5])
    assert (summary["n_query"], summary["n_gallery"], summary["n_lone"]) == (108, 108, 0)


def test_one_class_and_one_image():
    one_class = evaluate(clusters(7)[0], np.zeros(108, dtype=int))
    assert {one_class[name] for name in ("R@1", "MAP@R", "R-Precision", "NMI")} == {1.0}
    alone = evaluate([[1.0, 2.0]], [0])
    assert (alone["R@1"], alone["MAP@R"], alone["n_lone"]) == (0.0, 0.0, 1)


def test_nmi_of_separate_clusters_is_one_and_of_noise_is_low():
    rows, labels = clusters(8, noise=0.01)
    assert nmi(rows, labels, seed=1) == pytest.approx(1.0)
    assert nmi(rows, np.random.default_rng(9).permutation(labels), seed=1) < 0.6


def test_nmi_is_of_the_restart_with_the_lowest_inertia():
    rows, labels = clusters(10, noise=0.9)
    runs = nmi_restarts(rows, labels, restarts=6, seed=2)
    assert len({run.inertia for run in runs}) > 1
    lowest = min(runs, key=lambda run: run.inertia)
    assert nmi(rows, labels, restarts=6, seed=2) == lowest.nmi
    assert nmi_restarts(rows, labels, restarts=2, seed=2) == runs[:2]


def test_nmi_uses_directions_and_arithmetic_normalisation():
    angles = np.array([0.0, 0.1, 0.2, 3.0, 3.1, 3.2])
    rows = np.stack((np.cos(angles), np.sin(angles)), axis=1) * [[1], [50], [900], [1], [50], [900]]
    labels = [0, 0, 1, 1, 1, 1]
    expected = normalized_mutual_info_score(labels, [0, 0, 0, 1, 1, 1])
    assert nmi(rows, labels) == pytest.approx(expected)


ROWS = np.eye(3)
GALLERY = {"gallery": ROWS}


@pytest.mark.parametrize(
    ("rows", "labels", "options", "message"),
    [
        (ROWS, [0, 1], {}, r"labels: expected shape \(3,\), one a row, got \(2,\)"),
        (ROWS, [[0], [1], [2]], {}, "labels: expected shape"),
        (ROWS, [0.0, 1.0, 2.0], {}, "labels: expected integers, got float64"),
        (ROWS, ["a", "b", "c"], {}, "labels: expected integers"),
        (ROWS, [[0], [1, 2], 3], {}, "labels: not an array"),
        (ROWS, [True, False, True], {}, "labels: expected integers, got bool"),
        (np.empty((0, 2)), [], {}, "embeddings: expected a non-empty"),
        (np.diag([1, np.nan, 1]), [0, 1, 2], {}, "row 1 is not finite"),
        (ROWS, [0, 1, 2], GALLERY, "gallery and gallery_labels belong together"),
        (ROWS, [0, 1, 2], {"gallery_labels": [0]}, "gallery and gallery_labels belong together"),
        (ROWS, [0, 1, 2], {**GALLERY, "gallery_labels": [0]}, "gallery_labels: expected shape"),
        (ROWS, [0, 1, 2], {"ks": ()}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (0, 1)}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (1, 1)}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (1.5,)}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"nmi_restarts": 0}, "nmi_restarts: 0 must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named_in_one_line(rows, labels, options, message):
    with pytest.raises(MlbenchError, match=message) as caught:
        evaluate(rows, labels, **options)
    assert "\n" not in str(caught.value)
