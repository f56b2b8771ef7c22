"""Short lists of likely nearest neighbours, from float32 products that fit a processor's cache.

A list of ``keep`` rows comes with a floor: no row that is missing scores more than that in float32.
Which rows are nearest, ``neighbors`` decides from there. Products must be exact float32, as
in ``known_state``: the error bound would not hold for TF32 or bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CHUNKS = (128, 256, 512)
# Rows of a tile, whole chunks.
TILE = 512


class Shortlist(Protocol):
    """Proposes rows of a gallery ``(G, D)`` to blocks of unit queries.

    Attributes:
        bytes: working memory that does not depend on the block.
        bytes_per_query: working memory that one query of a block takes besides, about.
        block: queries of a block that go well together, at most.
    """

    bytes: int
    bytes_per_query: int
    block: int

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return floors ``(q,)``, scores and rows ``(q, keep)``: the best, unordered.

        Args:
            queries: ``(q, D)`` float32.
            start: the number of the first of them.
        """
        ...


def lowest(keys: Tensor, count: int) -> Tensor:
    """Return the ``count`` lowest of each row of ``(q, n)`` int64 keys, sorted; all, if fewer.

    NumPy does it with vector instructions, in a fraction of the time of torch's ``topk``.
    """
    count = min(count, keys.shape[1])
    if keys.device.type != "cpu":
        return keys.topk(count, dim=1, largest=False)[0]
    array = keys.numpy()
    if count < array.shape[1]:
        array = np.partition(array, count - 1, axis=1)[:, :count]
    return torch.from_numpy(np.sort(array, axis=1))


def _highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the places of the ``count`` highest of each row, unsorted, and the least of them."""
    if values.device.type != "cpu":
        found, places = values.topk(count, dim=1)
        return places, found[:, -1]
    first = values.shape[1] - count
    places = torch.from_numpy(np.argpartition(values.numpy(), first, axis=1)[:, first:])
    return places, values.gather(1, places[:, :1])[:, 0]


def make_shortlist(gallery: Tensor, keep: int, *, symmetric: bool, memory: int) -> Shortlist:
    """Return the proposer that suits: long chunks if the gallery is long for the list.

    Long chunks save traffic with a processor's memory, and pay for it with many small operations:
    a GPU, to which those are dear, scores whole rows.

    Args:
        gallery: ``(G, D)`` float32 unit rows.
        keep: length of the lists, below ``G``.
        symmetric: query ``i`` is row ``i`` of the gallery.
        memory: bytes that may be taken besides.
    """
    size = len(gallery)
    suitable = [chunk for chunk in CHUNKS if size >= 4 * keep * chunk]
    if not suitable or gallery.device.type != "cpu":
        return _Whole(gallery, keep)
    for chunk in suitable:
        if symmetric and 4 * size * _ceil(size, chunk) < memory // 2:
            return _Chunks(gallery, keep, chunk, symmetric=True)
    return _Chunks(gallery, keep, suitable[0], symmetric=False)


class _Whole:
    """Scores a block of queries with the whole gallery, and looks where maxima of chunks are high.

    The best ``keep`` rows lie in the ``keep`` chunks with the highest maxima. A chunk's rows lie
    apart, so that the maxima of neighbouring chunks are taken in one vector instruction.
    """

    def __init__(self, gallery: Tensor, keep: int) -> None:
        self.gallery = gallery
        self.keep = keep
        # Fewer chunks make finding them cheaper, and their rows dearer, of which `keep` chunks are
        # gathered; a gathered row costs about twice as much as a maximum.
        self.chunk = math.isqrt(len(gallery) // (2 * keep))
        # Rows of whole cache lines: others took a fifth longer.
        self.chunks = 16 * _ceil(len(gallery), 16 * max(1, self.chunk))
        self.bytes = 0
        self.block = 512 if gallery.device.type == "cpu" else 8192
        # Scores, maxima with their order, and the rows of the best chunks.
        self.bytes_per_query = 4 * len(gallery) + 12 * self.chunks + 24 * self.chunk * keep
        self._scores = self._maxima = gallery.new_empty(0)

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        size = len(self.gallery)
        scores, maxima = self._buffers(len(queries))
        torch.mm(queries, self.gallery.T, out=scores[:, :size])
        if self.chunk < 2:
            rows, floor = _highest(scores[:, :size], self.keep)
            return floor, scores.gather(1, rows), rows
        torch.amax(scores.unflatten(1, (self.chunk, -1)), 1, out=maxima)
        chunks = _highest(maxima, self.keep)[0]
        offsets = torch.arange(0, scores.shape[1], self.chunks, device=queries.device)
        rows = (chunks[:, :, None] + offsets).flatten(1)
        candidates = scores.gather(1, rows)
        places, floor = _highest(candidates, self.keep)
        return floor, candidates.gather(1, places), rows.gather(1, places)

    def _buffers(self, queries: int) -> tuple[Tensor, Tensor]:
        """Return uninitialised scores ``(queries, G)``, padded by -inf to whole chunks, and maxima.

        They serve all blocks: fresh pages for each cost more than the selection.
        """
        if len(self._scores) < queries:
            width = self.chunks * max(1, self.chunk)
            self._scores = self.gallery.new_full((queries, width), -torch.inf)
            self._maxima = self.gallery.new_empty(queries, self.chunks)
        return self._scores[:queries], self._maxima[:queries]


class _Chunks:
    """Keeps the maxima of long chunks only, and scores the best chunks of each query anew.

    Products are taken tile by tile and never leave the cache. Queries that are the gallery need
    only half of the tiles: each gives maxima both of its rows and of its columns.
    """

    def __init__(self, gallery: Tensor, keep: int, chunk: int, *, symmetric: bool) -> None:
        self.gallery = gallery
        self.keep = keep
        self.chunk = chunk
        self.chunks = _ceil(len(gallery), chunk)
        self.bytes = 4 * len(gallery) * self.chunks if symmetric else 0
        self.block = 4096
        # The maxima of a block with their order; all scores of its best chunks, and theirs.
        self.bytes_per_query = 12 * self.chunks + keep * (12 * chunk + 64)
        self._maxima = self._symmetric_maxima() if symmetric else None

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        if self._maxima is None:
            maxima = self._block_maxima(queries)
        else:
            maxima = self._maxima[start : start + len(queries)]
        chunks, least = _highest(maxima, self.keep)
        scores = self._scores(queries, chunks).flatten(1)
        places, floor = _highest(scores, self.keep)
        rows = chunks.gather(1, places // self.chunk) * self.chunk + places % self.chunk
        # The same product may have been rounded in two ways, in tiles and anew.
        return torch.maximum(floor, least), scores.gather(1, places), rows

    def _symmetric_maxima(self) -> Tensor:
        maxima = self._new_maxima(len(self.gallery))
        for rows in self._tiles(0):
            for columns in self._tiles(rows.start):
                tile = self._tile(self.gallery[rows], columns)
                maxima[rows, self._chunks_of(columns)] = _maxima(tile, 1, self.chunk)
                if columns != rows:
                    maxima[columns, self._chunks_of(rows)] = _maxima(tile, 0, self.chunk).T
        return maxima

    def _block_maxima(self, queries: Tensor) -> Tensor:
        maxima = self._new_maxima(len(queries))
        for part, found in zip(queries.split(TILE), maxima.split(TILE), strict=True):
            for columns in self._tiles(0):
                tile = self._tile(part, columns)
                found[:, self._chunks_of(columns)] = _maxima(tile, 1, self.chunk)
        return maxima

    def _new_maxima(self, queries: int) -> Tensor:
        return self.gallery.new_empty(queries, self.chunks)

    def _tiles(self, start: int) -> Iterator[slice]:
        size = len(self.gallery)
        return (slice(first, min(first + TILE, size)) for first in range(start, size, TILE))

    def _tile(self, queries: Tensor, columns: slice) -> Tensor:
        return torch.mm(queries, self.gallery[columns].T)

    def _scores(self, queries: Tensor, chunks: Tensor) -> Tensor:
        """Return the scores ``(q, keep, chunk)`` with the rows of ``chunks`` ``(q, keep)``.

        Rows past the end of the gallery have -inf.
        """
        scores = queries.new_full((chunks.numel(), self.chunk), -torch.inf)
        order = chunks.flatten().argsort()
        counts = chunks.flatten().bincount(minlength=self.chunks).tolist()
        parts = zip(self.gallery.split(self.chunk), order.split(counts), strict=True)
        for candidates, places in parts:
            for part in places.split(TILE):
                rows = queries.index_select(0, part // self.keep)
                scores[:, : len(candidates)].index_copy_(0, part, torch.mm(rows, candidates.T))
        return scores.view(len(queries), self.keep, self.chunk)

    def _chunks_of(self, rows: slice) -> slice:
        return slice(rows.start // self.chunk, _ceil(rows.stop, self.chunk))


def _maxima(tile: Tensor, dim: int, chunk: int) -> Tensor:
    """Return the maxima of a tile's chunks along ``dim``, where it starts a chunk."""
    whole = tile.shape[dim] // chunk * chunk
    maxima = tile.narrow(dim, 0, whole).unflatten(dim, (-1, chunk)).amax(dim + 1)
    if whole == tile.shape[dim]:
        return maxima
    rest = tile.narrow(dim, whole, tile.shape[dim] - whole).amax(dim, keepdim=True)
    return torch.cat((maxima, rest), dim=dim)


def _ceil(count: int, step: int) -> int:
    return -(-count // step)
