import numpy as np
import pytest
import torch
from helpers.rounding import round_by_shape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mlbench.errors import MlbenchError
from mlbench.metrics import neighbors, shortlist
from mlbench.metrics.neighbors import nearest

pytestmark = pytest.mark.numeric


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def oracle(queries, gallery, k, exclude_self):
    """The definition, read out literally: sort every row by (-similarity, index)."""
    similarity = (unit(queries).astype(np.float64) @ unit(gallery).astype(np.float64).T).astype(
        np.float32
    )
    result = []
    for i, row in enumerate(similarity):
        indices = [j for j in range(len(row)) if not (exclude_self and i == j)]
        ranked = sorted(indices, key=lambda j: (-row[j], j))[:k]
        result.append(ranked + [-1] * (k - len(ranked)))
    return np.array(result)


@st.composite
def integer_rows(draw, dim, max_rows=40):
    """Small integers: many duplicate directions and exact ties, never a zero row."""
    count = draw(st.integers(1, max_rows))
    seed = draw(st.integers(0, 2**32 - 1))
    rows = np.random.default_rng(seed).integers(-2, 3, (count, dim))
    rows[~rows.any(axis=1)] = 1
    return rows


@settings(max_examples=80, deadline=None)
@given(data=st.data(), k=st.integers(1, 50), dtype=st.sampled_from(["f2", "f4", "f8", "i8"]))
def test_ties_against_oracle(data, k, dtype):
    queries = data.draw(integer_rows(3)).astype(dtype)
    gallery = data.draw(integer_rows(3)).astype(dtype)
    np.testing.assert_array_equal(nearest(queries, gallery, k), oracle(queries, gallery, k, False))


@settings(max_examples=60, deadline=None)
@given(rows=integer_rows(4, max_rows=120), k=st.integers(1, 20))
def test_self_is_left_out_by_index_not_by_similarity(rows, k):
    found = nearest(rows, rows, k, exclude_self=True)
    np.testing.assert_array_equal(found, oracle(rows, rows, k, True))


@pytest.fixture
def _short_chunks(monkeypatch):
    monkeypatch.setattr(shortlist, "CHUNKS", (2, 4))
    monkeypatch.setattr(shortlist, "TILE", 8)


@pytest.mark.usefixtures("_short_chunks")
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=integer_rows(4, max_rows=150),
    k=st.integers(1, 3),
    others=st.none() | integer_rows(4),
    decimals=st.booleans(),
)
def test_long_galleries_against_oracle(rows, k, others, decimals):
    """Chunks so short that small galleries are long for them, all in ties or none."""
    if decimals:
        rows = rows + np.random.default_rng(0).normal(scale=1e-3, size=rows.shape)
    queries = rows if others is None else others
    found = nearest(queries, rows, k, exclude_self=others is None)
    np.testing.assert_array_equal(found, oracle(queries, rows, k, others is None))


def grouped(rows, gallery, k, groups, memory_mb=256):
    """Search as ``nearest`` does, each query's own group left out; one array is searched itself."""
    queries = torch.as_tensor(rows)
    searched = queries if gallery is rows else torch.as_tensor(gallery)
    blocks = neighbors.neighbor_blocks(
        queries,
        searched,
        k,
        exclude_self=gallery is rows,
        memory_mb=memory_mb,
        groups=(torch.as_tensor(groups[0]), torch.as_tensor(groups[1])),
    )
    return np.concatenate([found for _, found in blocks])


def grouped_oracle(rows, gallery, k, groups):
    whole = oracle(rows, gallery, len(gallery), gallery is rows)
    left = [
        [j for j in row if j >= 0 and groups[1][j] != groups[0][i]][:k]
        for i, row in enumerate(whole.tolist())
    ]
    return np.array([row + [-1] * (k - len(row)) for row in left])


@pytest.mark.usefixtures("_short_chunks")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=integer_rows(4, max_rows=150),
    others=st.none() | integer_rows(4),
    k=st.integers(1, 4),
    kinds=st.integers(1, 60),
    room=st.sampled_from([0, 1, 64]),
)
def test_a_group_is_left_out_against_oracle(rows, others, k, kinds, room):
    """Groups that fit into the short lists, and groups that use them up."""
    queries = rows if others is None else others
    rng = np.random.default_rng(kinds)
    asking, found_in = rng.integers(0, kinds, len(queries)), rng.integers(0, kinds, len(rows))
    groups = (asking, asking if others is None else found_in)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "GROUP_ROOM", room)
        found = grouped(queries, rows, k, groups)
    np.testing.assert_array_equal(found, grouped_oracle(queries, rows, k, groups))


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize("frames", [7, 100])
def test_videos_are_left_out_whatever_the_memory(frames):
    """Frames of a video are nearly the same: they come before all others, and fill short lists."""
    rng = np.random.default_rng(5)
    videos = np.arange(300) // frames
    rows = rng.normal(size=(300, 8))[videos * frames] + 1e-3 * rng.normal(size=(300, 8))
    expected = grouped_oracle(rows, rows, 3, (videos, videos))
    for memory_mb in (256, 8):
        found = grouped(rows, rows, 3, (videos, videos), memory_mb)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "memory_mb"), [(3072, 300), (3400, 300), (3584, 300), (5001, 7)])
def test_long_galleries_in_blocks_and_in_one(size, memory_mb, monkeypatch):
    chosen = []
    make = neighbors.make_shortlist
    monkeypatch.setattr(
        neighbors, "make_shortlist", lambda *a, **o: chosen.append(make(*a, **o)) or chosen[-1]
    )
    rows = torch.randn(size, 8, generator=torch.Generator().manual_seed(size)).numpy()
    found = nearest(rows, rows, 1, exclude_self=True, memory_mb=memory_mb)
    assert (chosen[0].bytes > 0) == (memory_mb == 300)
    some = np.random.default_rng(0).permutation(size)[:40]
    similarity = (unit(rows)[some].astype(np.float64) @ unit(rows).astype(np.float64).T).astype(
        "f4"
    )
    similarity[np.arange(40), some] = -2
    np.testing.assert_array_equal(found[some, 0], similarity.argmax(axis=1))


@pytest.mark.parametrize("size", [200, 3001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_random_rows_against_oracle_in_shortlist_and_chunk_paths(size, dtype):
    rows = torch.randn(size, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = nearest(rows[:50], rows, 5, exclude_self=True)
    np.testing.assert_array_equal(found, oracle(rows[:50].numpy(), rows.numpy(), 5, True))


def test_ties_beyond_the_shortlist_are_found():
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(4000, 8))
    gallery[rng.permutation(4000)[:300]] = gallery[17]
    found = nearest(gallery[17:18], gallery, 10)
    np.testing.assert_array_equal(found, oracle(gallery[17:18], gallery, 10, False))


def test_near_ties_closer_than_float32_resolves_are_ranked_by_definition():
    """Similarities near 0.3, about 1e-7 apart: a float32 product alone gets them out of order."""
    rng = np.random.default_rng(2)
    gallery = rng.normal(size=512) + 6e-6 * rng.normal(size=(3000, 512))
    queries = 0.3 * unit(gallery[:1]) + 0.042 * rng.normal(size=(40, 512))
    np.testing.assert_array_equal(
        nearest(queries, gallery, 12), oracle(queries, gallery, 12, False)
    )


def test_similarities_that_underflow_tie_with_zero():
    gallery = [[0.0, -1e-30, 1.0], [0.0, 0.0, 1.0], [0.0, 1e-30, 1.0]]
    assert nearest([[1.0, 1e-30, 0.0]], gallery, 3).tolist() == [[0, 1, 2]]


def test_collapsed_embeddings_give_lowest_indices():
    found = nearest(np.ones((2500, 8)), np.ones((2500, 8)), 3, exclude_self=True)
    np.testing.assert_array_equal(
        found[:5], [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    )
    assert (found[5:] == [0, 1, 2]).all()


@pytest.mark.parametrize("k", [3, 400])
def test_memory_bound_does_not_change_the_result(k):
    rows = torch.randn(1300, 6, generator=torch.Generator().manual_seed(3)).mul(2).round() + 0.1
    np.testing.assert_array_equal(nearest(rows, rows, k, memory_mb=1), nearest(rows, rows, k))


def test_k_beyond_the_gallery_is_padded():
    rows = np.eye(3)
    assert nearest(rows, rows, 4, exclude_self=True).tolist() == [
        [1, 2, -1, -1],
        [0, 2, -1, -1],
        [0, 1, -1, -1],
    ]


def test_scale_of_rows_does_not_matter():
    rows = np.random.default_rng(4).normal(size=(60, 5))
    scales = np.array([1e-200, 1.0, 1e200])[np.arange(60) % 3, None]
    np.testing.assert_array_equal(nearest(rows * scales, rows, 7), nearest(rows, rows, 7))


@pytest.mark.parametrize("size", [200, 3100])
def test_low_matmul_precision_setting_is_overridden_and_restored(monkeypatch, size):
    """Checked at the product itself: few CPUs show a difference in its result."""
    seen = []
    product = torch.mm

    def record(*args, **options):
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **options)

    monkeypatch.setattr(torch, "mm", record)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        rows = torch.eye(size)[:, :200] + 0.1
        nearest(rows, rows, 1)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def test_rows_that_require_grad_are_accepted():
    rows = torch.eye(4, requires_grad=True)
    assert nearest(rows, rows, 1)[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [3, 400])
@pytest.mark.parametrize("copies", [1, 60])
@pytest.mark.parametrize("size", [120, 3001])
def test_rounding_of_products_decides_nothing(size, copies, k, monkeypatch):
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(-(-size // copies), 64, generator=generator).repeat(copies, 1)[:size]
    expected = nearest(rows, rows, k, exclude_self=True)
    for seed in range(2):
        with monkeypatch.context() as patch:
            round_by_shape(patch, seed)
            np.testing.assert_array_equal(nearest(rows, rows, k, exclude_self=True), expected)


@pytest.mark.parametrize("k", [2, 400])
def test_ties_at_the_border_of_two_float32_numbers_go_to_the_lower_index(k, monkeypatch):
    """Similarities halfway between two float32 numbers: whatever a product errs decides which."""
    some = torch.rand(4000, 4, generator=torch.Generator().manual_seed(8)) + 0.5
    rows = neighbors.unit_rows(some, "rows")
    sums = rows.double() @ torch.full((4,), 0.5, dtype=torch.float64)
    halfway = (sums * 2**24) % 1 == 0.5
    assert halfway.sum() > 200
    gallery = rows[halfway & (sums >= 0.5)][:20].repeat(20, 1)
    expected = oracle(np.ones((1, 4)), gallery.numpy(), k, False)
    for seed in range(5):
        with monkeypatch.context() as patch:
            round_by_shape(patch, seed)
            np.testing.assert_array_equal(nearest(np.ones((1, 4)), gallery, k), expected)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 64])
def test_sums_are_those_of_the_terms(dim):
    terms = torch.randn(5, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    torch.testing.assert_close(neighbors._sum(terms), terms.sum(1))


class _CountCalls(TorchDispatchMode):
    """Counts the operations that a GPU would have to launch."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def test_on_a_gpu_a_block_takes_few_operations(monkeypatch):
    """Without chunks, as there: scores of whole rows. SOP has some twenty blocks."""
    monkeypatch.setattr(shortlist, "CHUNKS", ())
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(9))
    expected = nearest(rows, rows, 4, exclude_self=True)
    counts = {}
    for size in (1500, 4000):
        with _CountCalls() as mode:
            found = nearest(rows[:size], rows, 4, exclude_self=True)
        np.testing.assert_array_equal(found, expected[:size])
        counts[size] = mode.calls
    blocks = -(-4000 // 512) - -(-1500 // 512)
    assert (counts[4000] - counts[1500]) / blocks < 130


def test_blocks_are_larger_on_a_gpu():
    cpu, gpu = (neighbors.working_memory(None, torch.device(name)) for name in ("cpu", "cuda"))
    assert (cpu, gpu, neighbors.working_memory(7, torch.device("cuda"))) == (256, 2048, 7)


def test_neighbours_closer_than_float32s_error_are_ordered_by_definition(monkeypatch):
    """Thirty similarities about 1e-8 apart, and others that are far from each other."""
    angles = torch.cat((torch.linspace(0.2, 0.200002, 30), torch.linspace(0.1, 1.4, 470)))
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    gallery = torch.stack((angles.cos(), angles.sin()), 1)[shuffled]
    query = np.array([[1.0, 0.0]])
    expected = oracle(query, gallery.numpy(), 90, False)
    recomputed = []
    defined = neighbors._Search._defined
    monkeypatch.setattr(
        neighbors._Search,
        "_defined",
        lambda self, queries, i, rows: recomputed.append(len(i)) or defined(self, queries, i, rows),
    )
    np.testing.assert_array_equal(nearest(query, gallery, 90), expected)
    assert 30 <= sum(recomputed) < 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and MLBENCH_TEST_GPU=1")
@pytest.mark.parametrize("size", [150, 9001])
def test_gpu_agrees_with_cpu(size):
    rows = torch.randn(size, 16, generator=torch.Generator().manual_seed(6)).mul(2).round() + 0.1
    expected = nearest(rows, rows, 9, exclude_self=True)
    gpu = rows.cuda()
    np.testing.assert_array_equal(nearest(gpu, gpu, 9, exclude_self=True), expected)


GOOD = np.eye(3)


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "message"),
    [
        (np.diag([1.0, 0.0, 1.0]), GOOD, {}, "queries: row 1 is all zeros"),
        (GOOD, np.diag([1.0, 1.0, np.nan]), {}, "gallery: row 2 is not finite"),
        (GOOD, np.diag([np.inf, 1.0, 1.0]), {}, "gallery: row 0 is not finite"),
        (GOOD, np.eye(4), {}, "queries have 3 dimensions and the gallery 4"),
        (np.empty((0, 3)), GOOD, {}, "queries: expected a non-empty"),
        (np.ones(3), GOOD, {}, r"queries: expected a non-empty \(N, D\) array, got shape \(3,\)"),
        ([["a"]], GOOD, {}, "queries: expected real numbers, got strings"),
        (GOOD * 1j, GOOD, {}, "queries: expected real numbers"),
        (GOOD, GOOD, {"k": 0}, "k: 0 must be an integer of at least 1"),
        (GOOD, GOOD, {"memory_mb": 0}, "memory_mb: 0 must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named_in_one_line(queries, gallery, options, message):
    with pytest.raises(MlbenchError, match=message) as caught:
        nearest(queries, gallery, **{"k": 1, **options})
    assert "\n" not in str(caught.value)


def test_bad_row_is_named_by_its_index_in_the_whole_array():
    rows = np.ones((2000, 3))
    rows[1234] = 0
    with pytest.raises(MlbenchError, match="queries: row 1234 is all zeros"):
        nearest(rows, np.eye(3), 1)
