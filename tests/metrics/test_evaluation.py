import importlib
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from torch._subclasses.fake_tensor import FakeTensorMode

from mlbench.errors import MlbenchError
from mlbench.metrics.evaluation import evaluate, evaluate_queries, nmi, nmi_restarts, summarize
from mlbench.metrics.vectors import as_vectors

pytestmark = pytest.mark.numeric


def oracle(queries, query_labels, gallery, gallery_labels, exclude_self, ks, groups=None):
    """Musgrave et al. 2020 and the protocol, one query at a time in plain Python."""

    def unit(rows):
        rows = np.asarray(rows, dtype=np.float64)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    similarity = unit(queries).astype(np.float64) @ unit(gallery).astype(np.float64).T
    similarity = similarity.astype(np.float32)
    totals = {f"R@{k}": 0.0 for k in ks} | {"MAP@R": 0.0, "R-Precision": 0.0, "n_lone": 0}
    for i, row in enumerate(similarity):
        others = [j for j in range(len(row)) if not (exclude_self and i == j)]
        if groups is not None:
            others = [j for j in others if groups[0][i] != groups[1][j]]
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


@settings(max_examples=60, deadline=None)
@given(query=labelled(), gallery=st.none() | labelled(), kinds=st.integers(1, 30))
def test_groups_against_oracle(query, gallery, kinds):
    rows, labels = query if gallery is None else gallery
    rng = np.random.default_rng(kinds)
    groups = [rng.integers(0, kinds, len(each)) for each in (query[0], rows)]
    groups = [groups[0]] * 2 if gallery is None else groups
    given = {"groups": groups[0]}
    if gallery is not None:
        given |= {"gallery": rows, "gallery_labels": labels, "gallery_groups": groups[1]}
    expected = oracle(query[0], query[1], rows, labels, gallery is None, (1, 2, 4, 8), groups)
    assert_agrees(evaluate_queries(*query, **given), expected)


def test_a_group_of_its_own_for_each_image_changes_nothing():
    rows, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 5
    assert evaluate(rows, labels, groups=np.arange(40)) == evaluate(rows, labels)


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


class Exported:
    """An array behind one of the protocols."""

    def __init__(self, array, *protocols):
        self.array = array
        for name in protocols:
            setattr(self, name, getattr(array, name))

    def __getattr__(self, name):
        raise AttributeError(name)


class WithArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype)


class WithDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


ANY_NUMBERS = {
    "negative strides": lambda a: a[::-1].copy()[::-1],
    "columns first": np.asfortranarray,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": read_only,
    "nested lists": lambda a: a.tolist(),
    "list of arrays": list,
    "tuple of tuples": lambda a: tuple(map(tuple, a.tolist())) if a.ndim == 2 else tuple(a),
    "list of tensors": lambda a: [torch.tensor(row) for row in a],
    "lists of tensors": lambda a: (
        [[torch.tensor(v) for v in row] for row in a[:, None].tolist()]
        if a.ndim == 1
        else [[torch.tensor(v) for v in row] for row in a.tolist()]
    ),
    "__array__": WithArray,
    "__array_interface__": lambda a: Exported(a, "__array_interface__"),
    "dlpack": WithDLPack,
    "tensor": torch.tensor,
    "memmap": lambda a: np.asarray(a).view(np.memmap),
}


@pytest.mark.parametrize("convert", ANY_NUMBERS.values(), ids=list(ANY_NUMBERS))
def test_whatever_numpy_and_torch_read_as_numbers_is_taken(convert):
    rows, labels = clusters(11, classes=3, each=4)
    expected = evaluate(rows, labels, gallery=rows, gallery_labels=labels)
    flat = convert(labels) if convert is not ANY_NUMBERS["lists of tensors"] else labels
    given = convert(rows)
    assert evaluate(given, flat, gallery=given, gallery_labels=flat) == expected


ANY_TYPE = [np.float16, np.float32, np.float64, np.longdouble, np.int8, np.uint8, np.int16]
ANY_TYPE += [np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.longlong, np.ulonglong]


@pytest.mark.parametrize("dtype", ANY_TYPE)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_of_real_numbers_is_taken(dtype, order):
    rows = np.random.default_rng(0).integers(1, 100, (12, 4))
    labels, kind = np.arange(12) % 3, np.dtype(dtype).newbyteorder(order)
    whole = np.issubdtype(dtype, np.integer)
    expected = evaluate(rows, labels)
    assert evaluate(rows.astype(kind), labels.astype(kind) if whole else labels) == expected


def test_tensors_of_every_kind_are_taken():
    rows = torch.from_numpy(np.random.default_rng(0).integers(1, 100, (12, 4)))
    labels = torch.arange(12) % 3
    expected = evaluate(rows, labels)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.uint16, torch.uint64):
        assert evaluate(rows.to(dtype), labels) == expected, dtype
        assert evaluate(list(rows.to(dtype)), labels) == expected, dtype
    with_gradient = rows.double().requires_grad_()
    assert evaluate(with_gradient * 1, labels) == expected
    assert evaluate([*with_gradient], [*labels]) == expected
    assert evaluate(torch.nn.Parameter(rows.float()), labels.to(torch.uint8)) == expected
    assert evaluate(rows.float().T.contiguous().T, labels.flip(0).flip(0)) == expected
    with torch.inference_mode():
        inferred = rows.float() * 1
    assert evaluate(inferred, labels) == expected


def test_numbers_of_numpy_and_torch_are_taken_as_options():
    rows, labels = clusters(12, classes=3, each=4)
    expected = evaluate(rows, labels, ks=(1, 3), nmi_restarts=2, seed=5, memory_mb=64)
    kinds: list[Any] = [np.int64, np.uint8, np.array, torch.tensor]
    for number in kinds:
        options = {"nmi_restarts": number(2), "seed": number(5), "memory_mb": number(64)}
        wanted: list[Any] = [np.array([1, 3]), torch.tensor([1, 3]), [number(1), number(3)]]
        for ks in [*wanted, range(1, 4, 2)]:
            assert evaluate(rows, labels, ks=ks, **options) == expected


ROWS = np.eye(3)
MASKED = np.ma.masked_array(ROWS, mask=ROWS > 0)
LABELS = [0, 1, 2]
GALLERY = {"gallery": ROWS}


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_tensors_of_other_devices_go_to_the_cpu(device: str) -> None:
    """Stand-ins: none of these devices is at hand."""
    with FakeTensorMode():
        rows = torch.empty(3, 2, device=device, requires_grad=True)
        there = torch.empty(3, 2, device="cuda")
        assert as_vectors(rows, "embeddings").device.type == "cpu"
        assert as_vectors(there, "embeddings").device.type == "cuda"


@pytest.mark.parametrize(
    ("rows", "labels", "options", "message"),
    [
        (ROWS, [0, 1], {}, r"labels: expected shape \(3,\), one per row, got \(2,\)"),
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
        (ROWS, LABELS, {"groups": [0]}, "groups: expected shape"),
        (ROWS, LABELS, {"gallery_groups": LABELS}, "pass both or neither"),
        (ROWS, LABELS, {**GALLERY, "gallery_labels": LABELS, "groups": LABELS}, "pass both or nei"),
        (ROWS, [0, 1, 2], {"ks": ()}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (0, 1)}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (1, 1)}, "ks: expected distinct integers"),
        (ROWS, [0, 1, 2], {"ks": (1.5,)}, "ks: expected distinct integers"),
        (MASKED, LABELS, {}, "embeddings: a masked array"),
        (list(MASKED), LABELS, {}, "embeddings: a masked array"),
        (ROWS, np.ma.masked_array(LABELS, mask=ROWS[2] > 0), {}, "labels: a masked array"),
        (ROWS, LABELS, {"gallery": MASKED, "gallery_labels": LABELS}, "gallery: a masked array"),
        (scipy.sparse.csr_matrix(ROWS), LABELS, {}, "embeddings: a sparse matrix"),
        (scipy.sparse.coo_array(ROWS), LABELS, {}, "embeddings: a sparse matrix"),
        (torch.eye(3).to_sparse(), LABELS, {}, "embeddings: a sparse or nested tensor"),
        (torch.eye(3).to_sparse_coo(), LABELS, {}, "embeddings: a sparse or nested tensor"),
        ([*torch.eye(3).to_sparse()], LABELS, {}, "embeddings: a sparse or nested tensor"),
        (torch.eye(3, device="meta"), LABELS, {}, "embeddings: a tensor on the meta device"),
        (ROWS, torch.arange(3, device="meta"), {}, "labels: a tensor on the meta device"),
        (ROWS + 0j, LABELS, {}, "embeddings: expected real numbers, got complex"),
        (torch.eye(3) + 0j, LABELS, {}, "embeddings: expected real numbers, got torch.complex64"),
        (ROWS > 0, LABELS, {}, "embeddings: expected real numbers, got torch.bool"),
        (ROWS.astype(str), LABELS, {}, "embeddings: expected real numbers, got strings"),
        (ROWS.astype("S"), LABELS, {}, "embeddings: expected real numbers, got bytes"),
        (ROWS.astype(object), LABELS, {}, "embeddings: expected real numbers, got Python objects"),
        (ROWS.astype("M8[s]"), LABELS, {}, "embeddings: expected real numbers, got dates"),
        (np.zeros(3, "f4,f4"), LABELS, {}, "embeddings: expected real numbers, got records"),
        ([[1.0], [1.0, 2.0], [3.0]], LABELS, {}, "embeddings: not an array"),
        ([torch.ones(1), torch.ones(2), torch.ones(1)], LABELS, {}, "embeddings: not an array"),
        (None, LABELS, {}, "embeddings: expected real numbers, got Python objects"),
        ("rows", LABELS, {}, "embeddings: expected real numbers, got strings"),
        ({"a": 1}, LABELS, {}, "embeddings: expected real numbers, got Python objects"),
        (ROWS, None, {}, "labels: expected integers, got Python objects"),
        (ROWS, [0, 1, 2**64], {}, "labels: expected integers, got Python objects"),
        (ROWS, np.array([0, 1, 2**63], np.uint64), {}, "labels: .* above 9223372036854775807"),
        (ROWS, LABELS, {"ks": 1}, "ks: expected distinct integers"),
        (ROWS, LABELS, {"ks": np.array([1.0])}, "ks: expected distinct integers"),
        (ROWS, LABELS, {"ks": torch.ones(1, device="meta")}, "ks: expected distinct integers"),
        (ROWS, LABELS, {"ks": (True, 2)}, "ks: expected distinct integers"),
        *(
            (ROWS, LABELS, {"seed": seed}, "seed: .* must be an integer from 0 to")
            for seed in (-1, 2**63, 1.5, True, None, "1", np.int8(-1), np.float32(1), [1])
        ),
        (ROWS, LABELS, {"memory_mb": np.float64(1)}, "memory_mb: .* must be an integer"),
        (ROWS, [0, 1, 2], {"nmi_restarts": 0}, "nmi_restarts: 0 must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named_in_one_line(rows, labels, options, message):
    with pytest.raises(MlbenchError, match=message) as caught:
        evaluate(rows, labels, **options)
    assert "\n" not in str(caught.value)


def test_precision_and_map_at_any_depth():
    """Query 0 at 0 degrees finds classes 1, 0, 0 in this order; R is 2."""
    angles = np.radians([0, 10, 20, 35])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    results = evaluate_queries(rows, [0, 1, 0, 0], ks=(1,), depths=(1, 2, 3, 10))
    first = {name: scores[0] for name, scores in results.at_depth.items()}
    assert first == pytest.approx(
        {
            "P@1": 0, "mAP@1": 0,
            "P@2": 1 / 2, "mAP@2": (1 / 2) / 2,
            "P@3": 2 / 3, "mAP@3": (1 / 2 + 2 / 3) / 2,
            "P@10": 2 / 10, "mAP@10": (1 / 2 + 2 / 3) / 2,
        }
    )  # fmt: skip
    assert summarize(results)["mAP@2"] == results.at_depth["mAP@2"].mean()
    with pytest.raises(MlbenchError, match="depths: expected distinct integers"):
        evaluate_queries(rows, [0, 1, 0, 0], depths=(0,))
