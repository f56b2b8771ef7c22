"""Features of a whole image set in the cache, and in blocks while they are being computed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlbench.system import npz
from mlbench.system.files import atomic_file
from mlbench.system.locks import built_once
from mlbench.system.machine import raise_lack

Batches = Callable[[int], Iterator[Tensor]]
"""The features from one image on, batch after batch: ``(B, F)`` each."""

_BLOCK_SECONDS = 5.0


def cached_features(
    path: Path, count: int, batches: Batches, waiting: Callable[[], None] = lambda: None
) -> Tensor:
    """Return features from a file of the cache; compute and write it if it is not there.

    One process computes, the others wait for it. It writes what it has every few seconds, so that
    the next goes on from there if it is stopped or killed.

    Args:
        path: the file, named after all that the features depend on.
        count: images ``N``.
        batches: computes the features.
        waiting: called once if another process is computing them.

    Returns:
        float32 ``(N, F)`` on the CPU.

    Raises:
        MlbenchError: the cache cannot be written.
    """
    blocks = path.with_suffix(".blocks")
    features = _load(path, count)
    if features is None:
        with built_once(path, waiting):
            features = _load(path, count)
            if features is None:
                features = _resumed(blocks, count, batches)
                with atomic_file(path) as file:
                    np.save(file, features.numpy(), allow_pickle=False)
    shutil.rmtree(blocks, ignore_errors=True)  # also where a process was killed just before
    return features


def _resumed(folder: Path, count: int, batches: Batches) -> Tensor:
    """Compute the features that no block of the folder holds, a block of them at a time."""
    blocks = _read_blocks(folder, count)
    start = sum(map(len, blocks))
    for block in _blocks(batches(start)) if start < count else ():
        with atomic_file(folder / f"{start}.npy") as file:
            np.save(file, block.numpy(), allow_pickle=False)
        blocks.append(block)
        start += len(block)
    return torch.cat(blocks)


def _blocks(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Join batches to blocks of some seconds."""
    block: list[Tensor] = []
    due = time.monotonic() + _BLOCK_SECONDS
    for batch in batches:
        block.append(batch)
        if time.monotonic() >= due:
            # Fetched only now: fetching each batch would make a GPU wait for the next one.
            yield torch.cat(block).cpu()
            block = []
            due = time.monotonic() + _BLOCK_SECONDS
    if block:
        yield torch.cat(block).cpu()


def _read_blocks(folder: Path, count: int) -> list[Tensor]:
    """Read the blocks that follow each other from the first image on, named after their start."""
    blocks: list[Tensor] = []
    start = 0
    while start < count:
        block = _read(folder / f"{start}.npy")
        if block is None or not 0 < len(block) <= count - start:
            break
        if blocks and block.shape[1] != blocks[0].shape[1]:
            break
        blocks.append(block)
        start += len(block)
    return blocks


def _load(path: Path, count: int) -> Tensor | None:
    """Read all features; None if there are none, or the file is damaged."""
    features = _read(path)
    return features if features is not None and len(features) == count else None


def _read(path: Path) -> Tensor | None:
    try:
        features = npz.read_array(path)
    except Exception as error:  # what a damaged file makes numpy raise has no common type
        raise_lack(error)
        return None
    whole = features.ndim == 2 and features.dtype == np.float32
    return torch.from_numpy(features) if whole else None
