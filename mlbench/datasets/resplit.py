"""Random class-disjoint splits of a data set, beside its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mlbench.arrays import ImageArray, Indices, Labels
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet

Members = Mapping[str, Indices]


def resplit(dataset: Dataset, split: int) -> tuple[Dataset, Members]:
    """Deal all classes anew to training and test, as many to each as in the data set's own split.

    The fingerprint stays, as the images are the same; one class has one number in every split.
    Validation images of its own are left as they are.

    Args:
        dataset: with its own split.
        split: number of the random one, 0 or more.

    Returns:
        the data set, and for each side the positions of its images among those of the data set's
        own training side and, after them, of its own test side.

    Raises:
        MlbenchError: test images are searched in a gallery, which training classes do not have.
    """
    if dataset.gallery is not None:
        raise MlbenchError(
            f"data set '{dataset.name}': no random splits, as its test images are searched in a "
            "gallery, which its training classes do not have; omit --splits"
        )
    count = len(dataset.train.class_names)
    names = (*dataset.train.class_names, *dataset.test.class_names)
    labels = np.concatenate([dataset.train.labels, dataset.test.labels + count])
    # The one generator whose numbers no later version of numpy changes (NEP 19).
    order = np.random.RandomState([split, len(names)]).permutation(len(names))
    train, test = np.sort(order[:count]), np.sort(order[count:])
    members: Members = {
        "train": np.flatnonzero(np.isin(labels, train)),
        "test": np.flatnonzero(np.isin(labels, test)),
    }
    dealt = replace(
        dataset,
        train=_part(dataset, members["train"], labels, [names[c] for c in train]),
        test=_part(dataset, members["test"], labels, [names[c] for c in test]),
        test_class_numbers=tuple(test.tolist()),
    )
    return dealt, members


def _part(dataset: Dataset, members: Indices, labels: Labels, classes: list[str]) -> ImageSet:
    """Return some images of both sides as one set, their classes numbered from 0."""
    first, second = dataset.train, dataset.test
    names = (*first.names, *second.names)

    def read(i: int) -> ImageArray:
        position = int(members[i])
        if position < len(first):
            return first.read(position)
        return second.read(position - len(first))

    _, renumbered = np.unique(labels[members], return_inverse=True)
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = np.concatenate([first.groups, second.groups])[members]
    levels = None
    if first.levels is not None and second.levels is not None:
        levels = np.concatenate([first.levels, second.levels])[members]
    chosen = tuple(names[i] for i in members)
    return ImageSet(chosen, renumbered.astype(np.int64), tuple(classes), read, groups, levels)
