"""Run a network over a whole image set."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mlbench.augment import Source

Progress = Callable[[int, int], None]


@torch.inference_mode()
def embed(
    network: nn.Module, source: Source, *, batch_size: int = 64, progress: Progress | None = None
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
    network.eval()
    outputs = []
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, min(start + batch_size, len(source)))
        # Fetched at the end: fetching each batch would make a GPU wait for the next one.
        outputs.append(network(source.test_batch(indices)).float())
        if progress is not None:
            progress(int(indices[-1]) + 1, len(source))
    return torch.cat([output.cpu() for output in outputs])
