import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbench.sampler import batch_sizes, epoch_batches

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
