"""Which images form a batch."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from mlbench.arrays import Indices, Labels


def batch_sizes(images: int, batch_size: int, *, drop_last: bool) -> list[int]:
    """Return the sizes of an epoch's batches: the same for every loss, so that budgets are equal.

    A data set smaller than one batch gives one smaller batch, also with ``drop_last``.
    """
    full, rest = divmod(images, batch_size)
    sizes = [batch_size] * full
    return [*sizes, rest] if rest and not (drop_last and full) else sizes


def epoch_batches(
    labels: Labels,
    sizes: list[int],
    images_per_class: int | None,
    rng: np.random.Generator,
) -> Iterator[Indices]:
    """Yield the image indices of each batch of one epoch.

    Args:
        labels: ``(N,)`` class of each training image.
        sizes: of the batches, from ``batch_sizes``.
        images_per_class: None for a plain shuffle; otherwise each batch holds that many images of
            each of its classes (the last class of a batch may have fewer). Classes and the images
            of a class come in shuffled cycles, so none returns before all others have had a turn;
            where a class has fewer, the images that did not fit count as having had theirs. No
            image is twice in a batch that lacks another of its class.
        rng: source of the order.
    """
    if images_per_class is None:
        order = rng.permutation(len(labels))[: sum(sizes)]
        yield from np.split(order, np.cumsum(sizes)[:-1])
        return
    images = [_Cycle(members, rng) for members in _members(labels)]
    classes = _Cycle(np.arange(len(images)), rng)
    for size in sizes:
        groups = classes.take(-(-size // images_per_class)).tolist()
        # At once for each class: a batch of more groups than classes has several of one.
        times = Counter(groups)
        taken = {
            c: iter(images[c].take(n * images_per_class).reshape(n, -1)) for c, n in times.items()
        }
        yield np.concatenate([next(taken[c]) for c in groups])[:size]


def twice(indices: Indices) -> Indices:
    """Return the first half of a batch's images twice, as many as there were."""
    half = indices[: -(-len(indices) // 2)]
    return np.concatenate([half, half])[: len(indices)]


def _members(labels: Labels) -> list[Indices]:
    """Return the images of each class that has any, in order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


class _Cycle:
    """Values in shuffled order, reshuffled when exhausted; no repeats within a take if possible."""

    def __init__(self, values: Indices, rng: np.random.Generator) -> None:
        self._values, self._rng = values, rng
        self._queue = rng.permutation(len(values))  # of positions in values

    def take(self, count: int) -> Indices:
        while len(self._queue) < count:
            fresh = self._rng.permutation(len(self._values))
            # Those that wait for their turn come last; where all do, those that wait for several.
            waiting = np.bincount(self._queue, minlength=len(fresh))
            fresh = fresh[np.argsort(waiting[fresh], kind="stable")]
            self._queue = np.concatenate([self._queue, fresh])
        taken, self._queue = self._queue[:count], self._queue[count:]
        return self._values[taken]
