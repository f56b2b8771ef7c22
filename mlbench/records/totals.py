"""A run's totals by test class: all that the statistics of a comparison need of it."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.arrays import Labels

_UNIT = 2.0**-24
"""Of the packed sums; a mean over queries is then off by at most half of it."""

_MOST_BYTES = 1 << 26
"""Of the packed arrays together, when they are unpacked."""


@dataclass(frozen=True, eq=False)
class RunTotals:
    """What a run scored, by test class.

    Attributes:
        classes: ``(G,)`` int64 numbers of the test classes in the data set's own list of classes
            (``Dataset.test_numbers``), ascending; one class has one number in every split.
        queries: ``(G,)`` int64 number of queries of each.
        sums: by metric (``R@1``, ``R@2``, ..., ``MAP@R``, ``R-Precision``), ``(G,)`` float64 sums
            over the queries of the class. R-Precision is missing where the totals were made from
            per-query scores, which lack it.
    """

    classes: npt.NDArray[np.int64]
    queries: npt.NDArray[np.int64]
    sums: Mapping[str, npt.NDArray[np.float64]]

    @property
    def means(self) -> dict[str, float]:
        """The metrics: by name, the mean over all queries."""
        import numpy as np

        means = np.array([*self.sums.values()]).sum(axis=1) / self.queries.sum()
        return dict(zip(self.sums, means.tolist(), strict=True))

    def pack(self) -> PackedTotals:
        """Return the form in which a record keeps them."""
        import numpy as np

        units = [np.rint(np.asarray(sums) / _UNIT) for sums in self.sums.values()]
        rows = np.array([self.classes, self.queries, *units]).astype("<i8")
        # Bytes of one weight lie together: those of high weight are nearly all zero.
        planes = rows.view(np.uint8).reshape(-1, rows.itemsize).T.tobytes()
        packed = base64.b64encode(zlib.compress(planes, 9)).decode()
        return PackedTotals(tuple(self.sums), len(self.classes), packed)


@dataclass(frozen=True)
class PackedTotals:
    """Totals by class as a record keeps them.

    Attributes:
        metrics: names of the sums.
        classes: number ``G`` of test classes.
        packed: a ``(2 + M, G)`` array of int64 in little-endian order: numbers of the classes,
            queries, and the sums of each of the ``M`` metrics in units of 2^-24; first the lowest
            bytes of all its values, then the second lowest and so on; compressed by zlib, in
            base64.
    """

    metrics: tuple[str, ...]
    classes: int
    packed: str

    def unpack(self) -> RunTotals:
        """Return the totals; ValueError if they are no totals of any run."""
        import numpy as np

        planes = np.frombuffer(_unpacked(self.packed, self._bytes), np.uint8).reshape(8, -1)
        rows = planes.T.copy().view("<i8").reshape(-1, self.classes)
        classes, queries, sums = rows[0], rows[1], rows[2:] * _UNIT
        if rows.min() < 0 or (classes[1:] <= classes[:-1]).any():
            raise ValueError("their classes are not in ascending order, or values are below 0")
        if queries.min() < 1 or (sums > queries).any():
            raise ValueError("a class without queries, or with sums that its queries cannot have")
        return RunTotals(classes, queries, dict(zip(self.metrics, sums, strict=True)))

    @property
    def _bytes(self) -> int:
        """The size when unpacked; ValueError if it is beyond all reason."""
        size = 8 * (2 + len(self.metrics)) * self.classes
        if not 0 < size <= _MOST_BYTES or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"{self.classes:,} classes, {len(self.metrics):,} metrics")
        return size


def _unpacked(text: str, size: int) -> bytes:
    """Return exactly ``size`` bytes; ValueError if it is more or fewer, or damaged."""
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(binascii.a2b_base64(text, strict_mode=True), size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) != size or not unpacking.eof or unpacking.unused_data:
        raise ValueError("their size is not the declared one")
    return content


def totals_by_class(
    scores: Mapping[str, npt.NDArray[np.bool_] | npt.NDArray[np.floating]],
    labels: Labels,
    numbers: Labels,
) -> RunTotals:
    """Add per-query scores up by class.

    Args:
        scores: ``(Q,)`` by metric.
        labels: ``(Q,)`` classes of the queries, ``0 .. G - 1``.
        numbers: ``(G,)`` of the classes, in the data set's own list of classes.
    """
    import numpy as np

    queries = np.bincount(labels, minlength=len(numbers))
    sums = {
        name: np.bincount(labels, each.astype(np.float64), len(numbers)).astype(np.float64)
        for name, each in scores.items()
    }
    return RunTotals(numbers, queries, sums)
