"""Run a network over a whole image set."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mlbench.progress import Progress
from mlbench.training.batches import InputSource


def embed(
    network: nn.Module,
    source: InputSource,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """Return the network's outputs for every image, without augmentation and in evaluation mode.

    Args:
        network: maps a batch of ``source`` to ``(B, D)``.
        source: ``N`` images or features.
        batch_size: images at a time; does not change the result beyond rounding.
        progress: called with images done and ``N``.

    Returns:
        float32 ``(N, D)`` on the CPU.
    """
    outputs = list(embed_batches(network, source, batch_size=batch_size, progress=progress))
    # Fetched at the end: fetching each batch would make a GPU wait for the next one.
    return torch.cat([output.cpu() for output in outputs])


def embed_batches(
    network: nn.Module,
    source: InputSource,
    *,
    start: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Yield what ``embed`` returns from image ``start`` on, batch after batch, on its device.

    The batches, and so the rounding, are those of a pass from the first image on where ``start`` is
    the end of one.
    """
    network.eval()
    for first in range(start, len(source), batch_size):
        indices = np.arange(first, min(first + batch_size, len(source)))
        with torch.inference_mode():
            output = network(source.test_batch(indices)).float().detach()
        yield output
        if progress is not None:
            progress(int(indices[-1]) + 1, len(source))
