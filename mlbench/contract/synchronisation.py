"""Whether a training step would make a GPU wait for the host: seen on any machine.

What needs a value on the host is one of a few operations; they are watched for, so no GPU is
needed. Copies from host to device cannot be seen this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mlbench.contract.subject import Batch, CheckSkipped, batch, build, fail, outcome
from mlbench.interfaces import LossEntry

_aten = torch.ops.aten
# Their result, or its shape, must be known on the host.
_OPERATIONS = frozenset(
    {
        _aten._local_scalar_dense,
        _aten.nonzero,
        _aten.masked_select,
        _aten._unique2,
        _aten.unique_dim,
        _aten.unique_consecutive,
        _aten.bincount,
        _aten.equal,
        _aten.is_nonzero,
    }
)
# On the CPU these read the memory without any operation.
_METHODS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__})


def no_synchronisation(entry: LossEntry) -> None:
    """Require that a step forces no wait between host and device, where that is avoidable.

    It is for losses on proxies, whose shapes are known beforehand; the tuples that a mining loss
    picks are not.
    """
    seen = synchronising(entry, batch(entry, 0))
    if seen and entry.proxies == "none":
        raise CheckSkipped(f"waits for the device ({', '.join(seen)}), as mining may have to")
    if seen:
        fail(f"a training step waits for the device: {', '.join(seen)}; keep values in tensors")


def synchronising(entry: LossEntry, given: Batch) -> list[str]:
    """Return the names of the operations in a step that need a value on the host."""
    module, seen = build(entry), dict[str, None]()
    with _Operations(seen), _Methods(seen):
        outcome(module, given)
    return list(seen)


class _Operations(TorchDispatchMode):
    def __init__(self, seen: dict[str, None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _OPERATIONS or _selects_by_mask(func, args):
            self._seen[func.overloadpacket.__name__.lstrip("_")] = None
        return func(*args, **(kwargs or {}))


def _selects_by_mask(func: Any, args: Any) -> bool:
    """Tell whether ``x[mask]`` is read, or written with as many values as the mask has ones."""
    if func.overloadpacket not in (_aten.index, _aten.index_put, _aten.index_put_):
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


class _Methods(TorchFunctionMode):
    def __init__(self, seen: dict[str, None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _METHODS:
            self._seen[func.__name__] = None
        return func(*args, **(kwargs or {}))
