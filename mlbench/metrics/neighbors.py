"""Exact nearest neighbours by cosine similarity, in blocks of bounded memory.

Similarity is defined reproducibly: rows are brought to unit length in float64 and rounded to
float32; their dot product is summed in float64, half onto half, and rounded to float32. Pairs that
tie on paper then tie in fact, and ties go to the lower gallery index. A float64 matrix product, in
whichever order it sums, is within a bound of that sum; the few dot products that the bound leaves
between two float32 numbers are summed as defined.

A float32 matrix product proposes a short list per query and orders it. Neighbours in that order
that are no further apart than float32's error allows are ordered by the definition. A query whose
list is not provably complete (the gap at its end is within that error) is ranked against the whole
gallery instead, so the answer never depends on hardware, blocks or threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlbench.errors import MlbenchError
from mlbench.metrics.shortlist import lowest, make_shortlist
from mlbench.metrics.vectors import Vectors, as_vectors
from mlbench.scalars import whole_number
from mlbench.system.known_state import known_state

Groups = tuple[Tensor, Tensor]
"""The group of each query ``(Q,)`` and of each gallery row ``(G,)``, int64 on their device."""

SLACK = 4
# Rows of a query's own group that short lists have room for; a larger group takes a longer search.
GROUP_ROOM = 64
INDEX_MASK = 2**32 - 1
MEMORY_MB = 256
# A GPU has the memory for larger blocks, and each costs it the start of about a hundred operations.
GPU_MEMORY_MB = 2048


@known_state()
def nearest(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    *,
    exclude_self: bool = False,
    memory_mb: int | None = None,
) -> npt.NDArray[np.int64]:
    """Return each query's ``k`` nearest gallery rows by cosine similarity, best first.

    Args:
        queries: ``(Q, D)`` of any floating-point or integer type; a tensor's device does the work.
        gallery: ``(G, D)``, likewise.
        k: neighbours wanted, at least 1; may exceed the gallery.
        exclude_self: leave row ``i`` out of the neighbours of query ``i`` (by index).
        memory_mb: working memory in MiB, above the inputs and the result; by default 256, and
            2,048 on a GPU.

    Returns:
        ``(Q, k)`` int64 gallery indices; -1 fills the places for which no row is left.

    Raises:
        MlbenchError: shapes that do not fit, or a row that is zero or not finite.

    >>> from mlbench.metrics.neighbors import nearest
    >>> rows = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
    >>> nearest([[0.1, 0.9]], rows, k=2).tolist()
    [[2, 1]]
    >>> nearest(rows, rows, k=3, exclude_self=True).tolist()
    [[1, 2, -1], [0, 2, -1], [1, 0, -1]]
    """
    k = whole_number(k, "k", 1)
    query_rows = as_vectors(queries, "queries")
    gallery_rows = query_rows if gallery is queries else as_vectors(gallery, "gallery")
    blocks = neighbor_blocks(
        query_rows, gallery_rows, k, exclude_self=exclude_self, memory_mb=memory_mb
    )
    result = np.empty((len(query_rows), k), dtype=np.int64)
    for rows, found in blocks:
        result[rows] = found
    return result


def neighbor_blocks(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    exclude_self: bool,
    memory_mb: int | None,
    groups: Groups | None = None,
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Return ``nearest``'s result in pieces: which queries, and their ``(q, k)`` neighbours.

    Args:
        queries: ``(Q, D)`` tensor.
        gallery: ``(G, D)`` tensor on the same device; ``queries`` itself shares the work.
        k: as for ``nearest``.
        exclude_self: as for ``nearest``.
        memory_mb: as for ``nearest``; it includes what the caller does with a piece, at 48 bytes
            a neighbour. One query at a time is the least it can do.
        groups: leave the rows of each query's own group out of its neighbours.

    Raises:
        MlbenchError: as for ``nearest``; unsuitable query rows come to light piece by piece.
    """
    _check_request(queries, gallery)
    memory_mb = working_memory(memory_mb, gallery.device)
    return _blocks(queries, gallery, k, exclude_self, memory_mb, groups)


def working_memory(memory_mb: int | None, device: torch.device) -> int:
    """Return the working memory of a search in MiB: what was asked for, or what suits the device.

    Raises:
        MlbenchError: not an integer of at least 1.
    """
    if memory_mb is None:
        return MEMORY_MB if device.type == "cpu" else GPU_MEMORY_MB
    return whole_number(memory_mb, "memory_mb", 1)


@torch.no_grad()
def _blocks(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    exclude_self: bool,
    memory_mb: int,
    groups: Groups | None,
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    same = queries is gallery
    unit = unit_rows(gallery, "queries" if same else "gallery")
    spare = memory_mb * 2**20 - unit.nbytes - 12 * _part_elements(unit)
    search = _Search(
        unit, k, exclude_self=exclude_self, symmetric=same, memory=spare, groups=groups
    )
    step = search.block
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        block = search.gallery[rows] if same else unit_rows(queries[rows], "queries", start)
        found = search.neighbors(block, start)
        yield rows, found.cpu().numpy()


def unit_rows(rows: Tensor, what: str, first: int = 0) -> Tensor:
    """Return ``(N, D)`` float32 rows of unit length, computed in float64 (blocked).

    Args:
        rows: ``(N, D)``.
        what: what the rows are, for messages.
        first: index of ``rows[0]`` in the user's array, for messages.

    Raises:
        MlbenchError: a row is zero or not finite.
    """
    unit = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    largest = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    step = max(1, _part_elements(rows) // (4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        unit[part], largest[part] = _unit_block(rows[part])
    bad = ~(torch.isfinite(largest) & (largest > 0))
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise _bad_row(largest[row].item(), what, first + row)
    return unit


def _unit_block(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit rows, and the magnitude of each row's largest entry."""
    block = rows.double()
    # The largest entry goes first: squares of tiny or huge entries would leave float64's range.
    largest = block.abs().amax(1)
    block = block / largest[:, None]
    return (block / _sum(block.square()).sqrt()[:, None]).float(), largest


def _part_elements(rows: Tensor) -> int:
    """Return how many float64 are worked on at a time: a processor's cache should hold them."""
    return 2**19 if rows.device.type == "cpu" else 2**24


def _sum(terms: Tensor) -> Tensor:
    """Sum float64 ``(N, D)`` over D, half onto half: one order on every processor and device."""
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        rest = terms[:, 2 * half :]
        terms = torch.cat((terms[:, :half] + terms[:, half : 2 * half], rest), dim=1)
    return terms[:, 0]


def _bad_row(largest: float, what: str, row: int) -> MlbenchError:
    if largest == 0:
        return MlbenchError(
            f"{what}: row {row} is all zeros and has no direction; drop it or fix the model"
        )
    return MlbenchError(
        f"{what}: row {row} is not finite (NaN or infinity); check the model that embedded it"
    )


def _check_request(queries: Tensor, gallery: Tensor) -> None:
    if queries.shape[1] != gallery.shape[1]:
        raise MlbenchError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}; "
            "embed both with one model"
        )
    if queries.device != gallery.device:
        raise MlbenchError(
            f"queries are on {queries.device} and the gallery on {gallery.device}; move one"
        )


class _Search:
    """One gallery and what is asked of it.

    Args:
        gallery: ``(G, D)`` float32 unit rows.
        k: neighbours a query.
        exclude_self: query ``i`` is row ``i`` of the gallery, and not its own neighbour.
        symmetric: the queries are the gallery.
        memory: working memory in bytes.
        groups: a query's own group is none of its neighbours.

    Attributes:
        block: queries at a time.
    """

    def __init__(
        self,
        gallery: Tensor,
        k: int,
        *,
        exclude_self: bool,
        symmetric: bool,
        memory: int,
        groups: Groups | None,
    ) -> None:
        self.gallery = gallery
        self.k = k
        self.exclude_self = exclude_self
        self.groups = groups
        # Rounding of a D-term float32 dot product of unit vectors, in any order, is below
        # D * 2**-24 (Higham 2002, sec. 3.1); the exact one is rounded too, as are differences of
        # two, and 1 % is for terms of second order.
        self._error = 1.01 * (gallery.shape[1] + 2) * 2.0**-24
        # The same of two float64 sums of the same products, which are exact.
        self._error64 = gallery.shape[1] * 2.0**-51
        keep = k + SLACK + max(int(exclude_self), _group_room(groups))
        self._shortlist = None
        if 4 * keep < len(gallery):
            self._shortlist = make_shortlist(gallery, keep, symmetric=symmetric, memory=memory)
            memory = (memory - self._shortlist.bytes) // 2
        self._whole_block = max(1, min(512, memory // (64 * len(gallery) + 64 * k)))
        self.block = self._whole_block
        if self._shortlist:
            each = self._shortlist.bytes_per_query + 128 * keep + 64 * k
            self.block = max(1, min(self._shortlist.block, memory // each))

    def neighbors(self, queries: Tensor, start: int) -> Tensor:
        """Return ``(q, k)`` indices for unit ``queries``, the first of which is query ``start``."""
        own = torch.arange(start, start + len(queries), device=queries.device)
        if not self._shortlist:
            return self._rank_all(queries, own)
        floor, scores, listed = self._shortlist.propose(queries, start)
        best, found = self._rank_list(queries, scores, listed, own)
        # Either of the two may err. A list that its query's group has used up ends in -inf.
        sure = best[:, -1] - floor > 2 * self._error
        unsure = (~sure).nonzero()[:, 0]
        for row in unsure.split(self._whole_block):
            found[row] = self._rank_all(queries[row], own[row])
        return found

    def _rank_list(
        self, queries: Tensor, scores: Tensor, listed: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Order listed rows ``(q, m)`` by similarity, m above k, given float32 products.

        Where two that follow each other are so close that their products' rounding may have put
        them in order, both get their defined similarity; all others are further apart than that.

        Returns:
            As ``_best``; a score is the defined one or within the error of it.
        """
        keys = lowest(_sort_key(self._without_own(scores, listed, own), listed), scores.shape[1])
        scores, listed = _key_score(keys), keys & INDEX_MASK
        near = scores[:, :-1] - scores[:, 1:] <= 2 * self._error
        close = torch.nn.functional.pad(near, (0, 1)) | torch.nn.functional.pad(near, (1, 0))
        pairs = close.nonzero()
        if len(pairs):
            i, j = pairs.T
            rows = listed[i, j]
            keys[i, j] = _sort_key(self._defined(queries, i, rows), rows)
            keys = lowest(keys, self.k)
        return self._best(keys[:, : self.k])

    def _defined(self, queries: Tensor, i: Tensor, rows: Tensor) -> Tensor:
        """Return the defined similarity of queries ``i`` ``(n,)`` with gallery rows ``(n,)``."""
        step = max(1, _part_elements(queries) // queries.shape[1])
        parts = zip(i.split(step), rows.split(step), strict=True)
        return torch.cat(
            [_sum(queries[a].double() * self.gallery[b].double()).float() for a, b in parts]
        )

    def _rank_all(self, queries: Tensor, own: Tensor) -> Tensor:
        """Rank the whole gallery for each query by the defined similarity."""
        size = len(self.gallery)
        scores = queries.new_empty(len(queries), size)
        step = max(1, _part_elements(queries) // max(queries.shape))
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            scores[:, part] = self._similarity(queries, part)
        everything = torch.arange(size, device=queries.device).expand(len(queries), -1)
        keys = _sort_key(self._without_own(scores, everything, own), everything)
        return self._best(lowest(keys, self.k))[1]

    def _similarity(self, queries: Tensor, part: slice) -> Tensor:
        """Return the defined similarity of queries ``(q, D)`` with a part of the gallery."""
        ours, theirs = queries.double(), self.gallery[part].double().T
        sums, error = ours @ theirs, torch.tensor(self._error64, device=ours.device)
        scores, unsure = _rounded(sums, error)
        if 64 * len(unsure) > sums.numel():  # rows that share few coordinates: less is rounded
            scores, unsure = _rounded(sums, error * (ours.abs() @ theirs.abs()))
        if len(unsure):
            i, j = unsure.T
            scores[i, j] = self._defined(queries, i, part.start + j)
        return scores

    def _without_own(self, scores: Tensor, listed: Tensor, own: Tensor) -> Tensor:
        """Return scores with -inf where a listed row is no neighbour of query ``own``."""
        if self.exclude_self:
            scores = scores.masked_fill(listed == own[:, None], -torch.inf)
        if self.groups is not None:
            asking, found_in = self.groups
            scores = scores.masked_fill(found_in[listed] == asking[own][:, None], -torch.inf)
        return scores

    def _best(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and rows ``(q, k)`` of sorted keys; row -1 where none is left."""
        scores, rows = _key_score(keys), keys & INDEX_MASK
        found = torch.where(scores == -torch.inf, -1, rows)
        return scores, torch.nn.functional.pad(found, (0, self.k - keys.shape[1]), value=-1)


def _group_room(groups: Groups | None) -> int:
    """Return how many rows of its own group a query's short list should have room for."""
    if groups is None:
        return 0
    codes = torch.cat(groups).unique(return_inverse=True)[1]
    asking, found_in = codes.split([len(each) for each in groups])
    sizes = found_in.bincount(minlength=int(codes.max()) + 1)
    return min(int(sizes[asking].max()), GROUP_ROOM)


def _rounded(sums: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Round float64 ``(q, m)`` to float32; return also the places ``(n, 2)`` where that is unsure.

    Args:
        sums: float64.
        error: by how much another order of summing may change one.
    """
    low = (sums - error).float()
    return low, (low != (sums + error).float()).nonzero()


def _sort_key(scores: Tensor, rows: Tensor) -> Tensor:
    """Return int64 keys that order as (score descending, row ascending)."""
    # IEEE floats order like sign-magnitude integers; 0.0 - x makes no -0.0 of either zero.
    bits = (0.0 - scores).view(torch.int32)
    return (_ordered(bits).long() << 32) | rows


def _key_score(key: Tensor) -> Tensor:
    return 0.0 - _ordered((key >> 32).int()).view(torch.float32)


def _ordered(bits: Tensor) -> Tensor:
    """Turn signs and magnitudes into integers of the same order, or those back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
