"""Differences over several splits of the classes: folds, or random halves.

A split stands above its runs and is shared by all rows, so what is compared is the difference of
two rows in each split.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlbench.comparison.crossed import ClassTotals, aligned
from mlbench.comparison.pairs import Pairs, satterthwaite
from mlbench.errors import MlbenchError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Split:
    """The runs of all rows on one split.

    Attributes:
        classes: ``G`` names or numbers of those tested, the same in all splits for one class.
        rows: by name, with totals by these classes.
        train_classes: number of those trained on.
    """

    classes: Sequence[Hashable]
    rows: Mapping[str, ClassTotals]
    train_classes: int


@dataclass(frozen=True, eq=False)
class OverSplits:
    """Means over splits, and what two statements take their differences for.

    Attributes:
        names: of the ``L`` rows.
        means: ``(L,)``, each split alike.
        other_test_classes: the pairs, for other test classes.
        other_training_classes: the pairs, for other training classes as well; it comes out wide.
    """

    names: tuple[str, ...]
    means: Figures
    other_test_classes: Pairs
    other_training_classes: Pairs


def over_splits(splits: Sequence[Split]) -> OverSplits:
    """Compare rows over two splits or more.

    For other test classes the variance is that of classes, each of which counts once however many
    splits test it, plus that of splits; where no class is tested twice the two hold the same, and
    the larger is taken. For other training classes it is corrected for training classes that splits
    share (Nadeau and Bengio 2003).

    Raises:
        MlbenchError: fewer than two splits, or a split with other rows or classes than it names.
    """
    import numpy as np

    names = _names(splits)
    number = {each: n for n, each in enumerate(dict.fromkeys(c for s in splits for c in s.classes))}
    means = np.empty((len(splits), len(names)))
    by_class = np.zeros((len(names), len(number)))
    for split, mean in zip(splits, means, strict=True):
        mean[:], residuals = _scores(split, names)
        by_class[:, [number[each] for each in split.classes]] += residuals / len(splits)

    first, second = np.triu_indices(len(names), 1)
    gaps = means[:, first] - means[:, second]
    gap, of_splits, freedom = gaps.mean(axis=0), gaps.var(axis=0, ddof=1), len(splits) - 1
    spread = np.square(by_class[first] - by_class[second]).sum(axis=1)
    of_classes = spread * len(number) / max(len(number) - 1, 1)
    ways = ((of_classes, len(number) - 1), (of_splits / len(splits), freedom))
    tested = sum(len(split.classes) for split in splits)
    share = tested / sum(split.train_classes for split in splits)
    corrected = of_splits * (1 / len(splits) + share), np.full(len(gap), float(freedom))
    together = _larger(*ways) if tested == len(number) else _added(*ways)
    return OverSplits(
        names,
        means.mean(axis=0),
        other_test_classes=Pairs(first, second, gap, (together,)),
        other_training_classes=Pairs(first, second, gap, (corrected,)),
    )


def _names(splits: Sequence[Split]) -> tuple[str, ...]:
    if len(splits) < 2:
        raise MlbenchError(
            "one split of the classes does not allow statements about others; use at least two"
        )
    names = tuple(splits[0].rows)
    for split in splits:
        if set(split.rows) != set(names):
            differing = ", ".join(sorted(set(split.rows) ^ set(names)))
            raise MlbenchError(f"not every split has a run of: {differing}")
        if len(set(split.classes)) < len(split.classes) or split.train_classes < 1:
            raise MlbenchError("a split tests a class twice, or trains on none")
    return names


def _scores(split: Split, names: Sequence[str]) -> tuple[Figures, Figures]:
    """Return ``(L,)`` means over runs, and ``(L, G)`` residuals by class."""
    import numpy as np

    queries, totals = aligned({name: split.rows[name] for name in names})
    if len(queries) != len(split.classes):
        raise MlbenchError(
            f"a split names {len(split.classes)} classes, with totals of {len(queries)}"
        )
    by_class = np.array([each.mean(axis=0) for each in totals.values()]) / queries.sum()
    means = by_class.sum(axis=1)
    return means, by_class - np.outer(means, queries / queries.sum())


Way = tuple["Figures", int]


def _larger(one: Way, other: Way) -> tuple[Figures, Figures]:
    import numpy as np

    (a, freedom), (b, others) = one, other
    return np.maximum(a, b), np.where(a >= b, float(freedom), float(others))


def _added(one: Way, other: Way) -> tuple[Figures, Figures]:
    import numpy as np

    terms = [(v, np.full(len(v), float(freedom))) for v, freedom in (one, other)]
    variance = one[0] + other[0]
    return variance, satterthwaite(variance, terms)
