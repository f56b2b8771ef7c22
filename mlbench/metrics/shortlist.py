"""Short lists of likely nearest neighbours, from float32 products that fit a processor's cache.

A list of ``keep`` rows comes with a floor: no row that is missing scores more than that in float32.
Which rows are nearest, ``neighbors`` decides from there. Products must be exact float32, as
in ``known_state``: the error bound would not hold for TF32 or bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

CHUNKS = (128, 256, 512)
# Rows of a tile, whole chunks.
TILE = {"cpu": 512, "cuda": 8192}


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

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return floors ``(q,)`` and rows ``(q, keep)``, at least ``keep`` of the best, unordered.

        Args:
            queries: ``(q, D)`` float32.
            start: the number of the first of them.
        """
        ...


def make_shortlist(gallery: Tensor, keep: int, *, symmetric: bool, memory: int) -> Shortlist:
    """Return the proposer that suits: long chunks if the gallery is long for the list.

    Args:
        gallery: ``(G, D)`` float32 unit rows.
        keep: length of the lists, below ``G``.
        symmetric: query ``i`` is row ``i`` of the gallery.
        memory: bytes that may be taken besides.
    """
    size = len(gallery)
    suitable = [chunk for chunk in CHUNKS if size >= 4 * keep * chunk]
    if not suitable:
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
        self.block = 512
        self.bytes_per_query = 5 * len(gallery) + 24 * self.chunk * keep
        self._scores = self._maxima = gallery.new_empty(0)

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        size = len(self.gallery)
        scores, maxima = self._buffers(len(queries))
        torch.mm(queries, self.gallery.T, out=scores[:, :size])
        if self.chunk < 2:
            values, rows = scores[:, :size].topk(self.keep, dim=1)
            return values[:, -1], rows
        torch.amax(scores.unflatten(1, (self.chunk, -1)), 1, out=maxima)
        chunks = maxima.topk(self.keep, dim=1, sorted=False)[1]
        offsets = torch.arange(0, scores.shape[1], self.chunks, device=queries.device)
        rows = (chunks[:, :, None] + offsets).flatten(1)
        values, place = scores.gather(1, rows).topk(self.keep, dim=1)
        return values[:, -1], rows.gather(1, place)

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
        # The maxima of a block; all scores of its best chunks, and where they go.
        self.bytes_per_query = 4 * self.chunks + keep * (4 * chunk + 64)
        self._maxima = self._symmetric_maxima() if symmetric else None

    def propose(self, queries: Tensor, start: int) -> tuple[Tensor, Tensor]:
        if self._maxima is None:
            maxima = self._block_maxima(queries)
        else:
            maxima = self._maxima[start : start + len(queries)]
        highest, chunks = maxima.topk(self.keep, dim=1)
        scores = self._scores(queries, chunks).flatten(1)
        values, place = scores.topk(self.keep, dim=1)
        rows = chunks.gather(1, place // self.chunk) * self.chunk + place % self.chunk
        # The same product may have been rounded in two ways, in tiles and anew.
        return torch.maximum(values[:, -1], highest[:, -1]), rows

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
        step = TILE[queries.device.type]
        for part, found in zip(queries.split(step), maxima.split(step), strict=True):
            for columns in self._tiles(0):
                tile = self._tile(part, columns)
                found[:, self._chunks_of(columns)] = _maxima(tile, 1, self.chunk)
        return maxima

    def _new_maxima(self, queries: int) -> Tensor:
        return self.gallery.new_empty(queries, self.chunks)

    def _tiles(self, start: int) -> Iterator[slice]:
        step = TILE[self.gallery.device.type]
        size = len(self.gallery)
        return (slice(first, min(first + step, size)) for first in range(start, size, step))

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
            for part in places.split(TILE[queries.device.type]):
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
