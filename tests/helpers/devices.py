"""The devices of a test that is to hold on a GPU: on the CPU it runs everywhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

_REASON = "needs a GPU and MLBENCH_TEST_GPU=1"
_MISSING = pytest.mark.skipif(not torch.cuda.is_available(), reason=_REASON)

DEVICES = (
    torch.device("cpu"),
    pytest.param(torch.device("cuda"), marks=[pytest.mark.gpu, _MISSING]),
)


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Raise where the processor waits for the GPU."""
    if device.type == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
