import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench.training.sampler import batch_sizes, epoch_batches

pytestmark = pytest.mark.numeric


def test_sizes_of_batches() -> None:
    assert batch_sizes(70, 32, drop_last=False) == [32, 32, 6]
    assert batch_sizes(70, 32, drop_last=True) == [32, 32]
    assert batch_sizes(64, 32, drop_last=False) == [32, 32]
    assert batch_sizes(5, 32, drop_last=True) == [5]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_plain_epoch_shows_every_image_at_most_once(drop_last: bool) -> None:
    sizes = batch_sizes(70, 32, drop_last=drop_last)
    batches = list(epoch_batches(np.zeros(70, np.int64), sizes, None, np.random.default_rng(0)))
    seen = np.concatenate(batches)
    assert [len(b) for b in batches] == sizes
    assert len(set(seen.tolist())) == len(seen) == sum(sizes)


@given(
    st.integers(2, 12), st.integers(1, 9), st.integers(1, 6), st.integers(2, 40), st.integers(0, 99)
)
def test_balanced_batches(classes: int, images: int, m: int, batch: int, seed: int) -> None:
    labels = np.repeat(np.arange(classes), images)
    sizes = batch_sizes(len(labels), batch, drop_last=False)
    batches = list(epoch_batches(labels, sizes, m, np.random.default_rng(seed)))
    assert [len(b) for b in batches] == sizes
    for indices in batches:
        counts = np.bincount(labels[indices], minlength=classes)
        groups = -(-len(indices) // m)
        if groups <= classes:
            assert (counts > 0).sum() == groups
            assert np.sort(counts[counts > 0])[1:].tolist() == [m] * (groups - 1)
            if m <= images:
                assert len(set(indices.tolist())) == len(indices)


def test_balanced_epochs_give_classes_and_images_equal_turns() -> None:
    labels = np.repeat(np.arange(6), 10)
    batches = epoch_batches(labels, [12] * 20, 2, np.random.default_rng(0))
    seen = np.bincount(np.concatenate(list(batches)), minlength=60)
    assert (seen == 4).all()


@given(
    st.lists(st.integers(0, 14), min_size=1, max_size=10).filter(any),
    st.integers(1, 6),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_no_image_returns_within_a_batch_that_lacks_another_of_its_class(
    class_sizes: list[int], m: int, batch: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(
        np.repeat(range(len(class_sizes)), class_sizes)
    )
    for indices in epoch_batches(labels, [batch] * 12, m, np.random.default_rng(seed)):
        for c in np.unique(labels[indices]):
            shown = indices[labels[indices] == c]
            times = np.unique(shown, return_counts=True)[1]
            assert len(times) == min(len(shown), class_sizes[c])
            assert times.max() - times.min() <= 1


def test_a_batch_of_more_groups_than_classes_repeats_no_image_needlessly() -> None:
    labels = np.repeat(np.arange(8), [11, 11, 7, 11, 7, 6, 11, 7])
    for seed in range(50):
        for indices in epoch_batches(labels, [31] * 20, 3, np.random.default_rng(seed)):
            assert len(np.unique(indices)) == 31


@pytest.mark.parametrize(
    ("batch", "m", "digest"),
    [(32, 2, "11043c7f5556ec4b"), (128, 2, "49a07c374c55c450"), (128, 4, "eff3e943e58592b0")],
)
def test_batches_are_those_of_the_records(batch: int, m: int, digest: str) -> None:
    """Digests of the first sampler, which searched the labels once a class (CUB's size)."""
    labels = np.sort(np.random.default_rng(5).integers(0, 100, 5864))
    sizes = batch_sizes(len(labels), batch, drop_last=False)
    drawn = hashlib.sha256()
    for epoch in range(3):
        order, _ = np.random.default_rng([0, epoch]).spawn(2)
        for indices in epoch_batches(labels, sizes, m, order):
            drawn.update(indices.astype("<i8").tobytes())
    assert drawn.hexdigest()[:16] == digest


def test_an_epoch_of_many_classes_does_not_look_at_all_images_once_a_class() -> None:
    class Counted(np.ndarray):
        compared = 0

        def __array_ufunc__(self, ufunc, method, *inputs, **options):  # type: ignore[no-untyped-def]
            Counted.compared += max(np.size(i) for i in inputs)
            plain = [np.asarray(i) for i in inputs]
            return getattr(ufunc, method)(*plain, **options)

    classes = 500
    labels = np.repeat(np.arange(classes), 3).view(Counted)
    list(epoch_batches(labels, [50] * 10, 2, np.random.default_rng(0)))
    assert Counted.compared < 10 * len(labels)
