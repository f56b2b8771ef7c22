from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.rounding import round_by_shape
from sklearn.cluster import k_means

from mlbench.errors import MlbenchError
from mlbench.metrics import kmeans as module
from mlbench.metrics.kmeans import kmeans

pytestmark = pytest.mark.numeric


def blobs(seed, count=600, classes=20, dim=16, noise=0.6):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, dim))
    rows = centers[rng.integers(0, classes, count)] + noise * rng.normal(size=(count, dim))
    return rows.astype(np.float32)


def means_and_distances(points, run, clusters):
    """The centres and the squared distances to all of them, in float64 from the assignment."""
    rows = points.astype(np.float64)
    centers = np.stack([rows[run.assignment.numpy() == c].mean(axis=0) for c in range(clusters)])
    return ((rows[:, None] - centers) ** 2).sum(axis=2)


@pytest.mark.parametrize("noise", [0.2, 0.6, 2.0])
def test_result_is_a_fixed_point_of_lloyd(noise):
    points = blobs(0, noise=noise)
    for run in kmeans(torch.from_numpy(points), 20, restarts=3):
        distances = means_and_distances(points, run, 20)
        own = distances[np.arange(len(points)), run.assignment.numpy()]
        assert run.inertia == pytest.approx(own.sum(), rel=1e-5)
        assert (own <= distances.min(axis=1) + 1e-4).all()
        assert run.iterations < 300


def sklearn_inertia(points, seed) -> float:
    options: dict[str, Any] = {"n_init": 1, "random_state": seed}
    return cast(float, k_means(points, 20, **options)[2])


@pytest.mark.parametrize("noise", [0.2, 0.6, 2.0])
def test_mean_inertia_is_not_worse_than_sklearn(noise):
    points = blobs(1, noise=noise)
    theirs = [sklearn_inertia(points, seed) for seed in range(10)]
    ours = [run.inertia for run in kmeans(torch.from_numpy(points), 20, restarts=10)]
    assert np.mean(ours) <= 1.05 * np.mean(theirs)
    assert min(ours) <= 1.02 * min(theirs)


def test_seed_and_restart_alone_decide():
    points = torch.from_numpy(blobs(2))
    many, few = kmeans(points, 20, restarts=4, seed=5), kmeans(points, 20, restarts=2, seed=5)
    for one, other in zip(many[:2], few, strict=True):
        assert torch.equal(one.assignment, other.assignment)
        assert one.inertia == other.inertia
    assert not torch.equal(many[0].assignment, many[1].assignment)
    assert not torch.equal(kmeans(points, 20, seed=6)[0].assignment, many[0].assignment)


def test_blocks_do_not_change_the_result(monkeypatch):
    points = torch.from_numpy(blobs(3))
    expected = kmeans(points, 20)[0]
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": 997})
    monkeypatch.setattr(module, "MIN_ROWS", 3)
    assert torch.equal(kmeans(points, 20)[0].assignment, expected.assignment)


def test_one_cluster():
    points = blobs(4)
    run = kmeans(torch.from_numpy(points), 1)[0]
    assert not run.assignment.any()
    spread = ((points - points.mean(axis=0, dtype=np.float64)) ** 2).sum()
    assert run.inertia == pytest.approx(spread, rel=1e-5)


def test_as_many_clusters_as_points():
    run = kmeans(torch.from_numpy(blobs(5, count=50)), 50)[0]
    assert sorted(run.assignment.tolist()) == list(range(50))
    assert run.inertia == pytest.approx(0, abs=1e-9)


def test_fewer_distinct_points_than_clusters():
    run = kmeans(torch.eye(3).repeat(10, 1), 7)[0]
    groups = run.assignment.reshape(10, 3)
    assert run.inertia == pytest.approx(0, abs=1e-6)
    assert len(set(groups[0].tolist())) == 3
    assert run.iterations < 10


def test_empty_cluster_moves_to_the_farthest_point():
    points = torch.tensor([[10.0], [11.0], [12.0], [110.0]])
    lloyd = module._Lloyd(points, 3)
    run = lloyd.run(torch.tensor([0, 1, 1, 1]), 50)
    assert run.inertia == pytest.approx(0.5)


@pytest.mark.parametrize("noise", [0.2, 0.6, 2.0])
def test_every_iteration_is_one_of_plain_lloyd(noise):
    """Leaving out what cannot matter changes nothing: the same assignments, step by step."""
    points = blobs(7, noise=noise)
    rows = points.astype(np.float64)
    start = assignment = nearest(rows, rows[:20])
    for iterations in range(1, 30):
        lloyd = module._Lloyd(torch.from_numpy(points), 20)
        run = lloyd.run(torch.from_numpy(start.copy()), iterations)
        assignment = nearest(rows, [rows[assignment == c].mean(axis=0) for c in range(20)])
        np.testing.assert_array_equal(run.assignment.numpy(), assignment)


def nearest(rows, centers):
    return ((rows[:, None] - np.asarray(centers)) ** 2).sum(axis=2).argmin(axis=1)


def test_start_assigns_points_to_its_nearest_centres():
    """In tight blobs that are far apart the start is the answer."""
    points = torch.from_numpy(blobs(8, noise=1e-3))
    (start,) = module._plus_plus(points, 20, 1, 0)
    (run,) = kmeans(points, 20)
    assert len(start.unique()) == 20
    assert run.iterations == 1
    assert run.inertia < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and MLBENCH_TEST_GPU=1")
def test_gpu_is_as_good_as_cpu():
    points = torch.from_numpy(blobs(9))
    cpu, gpu = (kmeans(p, 20, restarts=5) for p in (points, points.cuda()))
    assert gpu[0].assignment.is_cuda
    assert [r.inertia for r in gpu] == pytest.approx([r.inertia for r in cpu], rel=1e-3)


def test_iterations_are_bounded():
    points = torch.from_numpy(blobs(6, noise=2.0))
    assert kmeans(points, 20, max_iterations=2)[0].iterations == 2


@pytest.mark.parametrize(
    ("clusters", "restarts", "message"),
    [
        (0, 1, "k-means: 0 clusters of 4 points"),
        (5, 1, "k-means: 5 clusters of 4 points"),
        (2, 0, "k-means: restarts is 0"),
    ],
)
def test_bad_requests(clusters, restarts, message):
    with pytest.raises(MlbenchError, match=message):
        kmeans(torch.eye(4), clusters, restarts=restarts)


def lattice(seed):
    """Points of a grid, many of them copies, as far from one centre as from another."""
    return np.random.default_rng(seed).integers(-2, 3, (400, 3)).astype(np.float32)


def unit_blobs(seed):
    rows = blobs(seed, noise=1.0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def collapsed(seed):
    """Far from the origin and close together: float32 cannot tell the scores apart."""
    return (1 + 1e-4 * blobs(seed)).astype(np.float32)


CASES = [blobs, unit_blobs, lattice, collapsed]


@pytest.mark.parametrize("rounding", range(3))
@pytest.mark.parametrize("make", CASES)
def test_rounding_of_products_decides_nothing(make, rounding, monkeypatch):
    points = torch.from_numpy(make(10))
    expected = kmeans(points, 20, restarts=3)
    round_by_shape(monkeypatch, rounding)
    found = kmeans(points, 20, restarts=3)
    assert [run.iterations for run in found] == [run.iterations for run in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.assignment, other.assignment)


@pytest.mark.parametrize("make", CASES)
def test_every_move_is_to_another_centre_and_lowers_the_inertia(make, monkeypatch):
    round_by_shape(monkeypatch, 0)
    points = torch.from_numpy(make(11))
    lloyd = module._Lloyd(points, 20)
    lloyd._start(torch.arange(len(points)) % 20)
    before, iterations = lloyd._inertia(), 0
    while lloyd.changed:
        assignment = lloyd.assignment.clone()
        lloyd._move_centers()
        lloyd._reassign()
        moved = assignment != lloyd.assignment
        assert bool(moved.any()) == lloyd.changed
        counts = lloyd.assignment.bincount(minlength=20)
        assert torch.equal(lloyd.sums[:, -1], counts.double())
        assert lloyd._inertia() < before or not lloyd.changed
        before, iterations = lloyd._inertia(), iterations + 1
    assert iterations < 60


@pytest.mark.parametrize("make", CASES)
def test_number_of_restarts_changes_none_of_them(make, monkeypatch):
    round_by_shape(monkeypatch, 0)
    points = torch.from_numpy(make(12))
    many, few = kmeans(points, 20, restarts=5), kmeans(points, 20, restarts=2)
    for one, other in zip(many[:2], few, strict=True):
        assert torch.equal(one.assignment, other.assignment)


def test_copies_of_a_point_share_its_cluster(monkeypatch):
    round_by_shape(monkeypatch, 0)
    points = torch.from_numpy(unit_blobs(13)[:7]).repeat(40, 1)
    for run in kmeans(points, 10, restarts=3):
        assert len(run.assignment.unique()) == 7
        assert run.assignment.view(40, 7).eq(run.assignment[:7]).all()


def test_of_points_equally_far_the_first_gets_the_empty_cluster(monkeypatch):
    points = torch.from_numpy(unit_blobs(14)[:4]).repeat(30, 1)
    points = torch.cat((points, -points))
    round_by_shape(monkeypatch, 1)
    lloyd = module._Lloyd(points, 3)
    lloyd._start(torch.zeros(len(points), dtype=torch.int64))
    lloyd._move_centers()
    lengths = points[:4].double().norm(dim=1)
    assert lengths.max() - lengths.min() < 1e-6
    first = int((lengths.square() >= lengths.square().max() - lloyd.slack).int().argmax())
    assert torch.equal(lloyd.wide[1, :-1], -2 * points[first].double())
