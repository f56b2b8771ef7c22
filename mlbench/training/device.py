"""How torch executes networks: eagerly, or compiled without a trace in the run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.records.provenance import Execution

_NO_MEMORY = ("alloc_cpu", "out of memory", "alloc_failed", "allocation_failed")
"""In the messages of torch's CPU allocator, CUDA, cuBLAS and cuDNN."""


def execution(device: torch.device, *, compiled: bool) -> Execution:
    """Return how training steps are asked to be executed on ``device``, as records call it."""
    if not compiled:
        return "eager"
    return "cuda-graph" if device.type == "cuda" else "compile"


def graphs_skipped() -> int:
    """Return how often torch compiled without capturing a CUDA graph, of which it only logs."""
    counters = importlib.import_module("torch._dynamo.utils").counters
    return counters["inductor"]["cudagraph_skips"]


def compile_network(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return ``network`` compiled for inputs of one shape; its parameters are shared.

    On a GPU both passes are captured as CUDA graphs at the second call (not tried on one yet).
    Nothing is compiled before the first call.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(network, dynamic=False, mode=mode)


@contextmanager
def rehearsal(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Take back what passes within the block do to buffers, gradients and random generators.

    Raises:
        MlbenchError: torch cannot compile the network here.
    """
    kept: dict[str, Tensor] = {name: value.clone() for name, value in network.named_buffers()}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise MlbenchError(f"--compile is not supported here ({reason}); run without it") from error
    finally:
        network.zero_grad(set_to_none=True)
        for name, value in network.named_buffers():
            value.copy_(kept[name])


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the processor or the GPU has too little memory.

    Torch has a type for its own allocator on a GPU alone; elsewhere only the words tell.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    )


def device_lost(error: BaseException) -> bool:
    """Tell whether a GPU has failed so that every further call of this process fails too.

    Such is what CUDA reports after a failed assertion in a kernel or an illegal address, but for a
    lack of memory, which the next run may not meet.
    """
    accelerator = getattr(torch, "AcceleratorError", ())  # torch 2.8 and newer
    words = isinstance(error, RuntimeError) and "cuda error:" in str(error).lower()
    return (isinstance(error, accelerator) or words) and not out_of_memory(error)


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; MlbenchError if there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise MlbenchError(f"device: {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise MlbenchError("--device cuda: torch finds no GPU; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return ``cpu``, or the GPU's model: figures of another model differ in their last digits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor of ``array`` on ``device``; a copy to a GPU is queued, not waited for.

    On the CPU the tensor shares the array's memory.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
