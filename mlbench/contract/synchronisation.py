"""Whether a training step would make a GPU wait for the host: seen without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from mlbench.contract.subject import Batch, CheckSkipped, batch, build, fail
from mlbench.interfaces import LossEntry


def no_synchronisation(entry: LossEntry) -> None:
    """Require that a step never makes the host wait for the device, where that is avoidable.

    It is where all shapes are known beforehand: for classes compared by their proxies. The tuples
    that mining picks are not. (What cannot be seen without a GPU: copies from the host.)
    """
    operation = first_wait(entry, batch(entry, 0))
    if operation and entry.proxies != "unit":
        raise CheckSkipped(f"a step waits for the device ({operation}), as mining may have to")
    if operation:
        fail(f"a step waits for the device: {operation} needs values; keep to tensor operations")


def first_wait(entry: LossEntry, given: Batch) -> str | None:
    """Return the first operation of a step that needs values, not only shapes; None if none does.

    The step is made with tensors that have no values.
    """
    module = build(entry)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state: dict[str, Tensor] = {
            name: mode.from_tensor(tensor) for name, tensor in tensors.items()
        }
        x = mode.from_tensor(given.embeddings.clone().requires_grad_())
        y = mode.from_tensor(given.labels)
        wanted = [x, *(tensor for tensor in state.values() if tensor.requires_grad)]
        try:
            loss = torch.func.functional_call(module, state, (x, y))
            torch.autograd.grad(loss, wanted, allow_unused=True)
        except (DataDependentOutputException, DynamicOutputShapeException) as need:
            return str(need.func).removeprefix("aten.").partition(".")[0].lstrip("_")
    return None
