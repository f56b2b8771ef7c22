"""Embeddings and labels as callers give them: whatever NumPy or torch can read as numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mlbench.arrays import Labels
from mlbench.errors import MlbenchError

Vectors = Tensor | npt.ArrayLike
LabelsLike = Tensor | npt.ArrayLike

_Array = npt.NDArray[Any]
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64}
_HOMES = ("cpu", "cuda")
_OTHERS = {"c": "complex numbers", "O": "Python objects", "U": "strings", "S": "bytes"}
_OTHERS |= {"T": "strings", "M": "dates", "m": "durations", "V": "records"}


def as_vectors(values: Vectors, what: str) -> Tensor:
    """Return real numbers ``(N, D)`` as a detached tensor, on the device of a given tensor.

    A tensor of another device than the CPU or a CUDA GPU is copied to the CPU: the search and
    k-means need float64, which some devices lack, and were tried on none of them.

    Taken are tensors, arrays of any byte order, strides and precision, nested lists, lists of
    tensors or arrays, and objects with ``__array__``, ``__array_interface__`` or DLPack.

    Args:
        values: to be read.
        what: their name, for messages.

    Raises:
        MlbenchError: not ``(N, D)``, or not plain real numbers: sparse, masked or meta arrays,
            lists of unequal lengths, strings, objects, complex or truth values.
    """
    rows = _as_tensor(values, what, "(N, D) floats")
    if rows.ndim != 2 or 0 in rows.shape:
        raise MlbenchError(
            f"{what}: expected a non-empty (N, D) array, got shape {tuple(rows.shape)}"
        )
    if rows.is_complex() or rows.dtype == torch.bool:
        raise MlbenchError(f"{what}: expected real numbers, got {rows.dtype}; convert to float32")
    return rows


def as_labels(values: LabelsLike, count: int, what: str) -> Labels:
    """Return ``(count,)`` integers as int64; what is taken and refused is as in ``as_vectors``."""
    labels = _as_tensor(values, what, f"({count},) integers").cpu()
    if labels.shape != (count,):
        shape = tuple(labels.shape)
        raise MlbenchError(f"{what}: expected shape ({count},), one per row, got {shape}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise MlbenchError(f"{what}: expected integers, got {kind}; number the classes first")
    if labels.dtype == torch.uint64 and bool((labels.view(torch.int64) < 0).any()):
        raise MlbenchError(f"{what}: a number above {2**63 - 1}; number the classes first")
    return labels.long().numpy()


def as_array(values: Any, what: str, wanted: str) -> _Array:
    """Return a NumPy array, of native byte order, of what ``as_vectors`` takes, in any shape.

    Args:
        values: to be read.
        what: their name, for messages.
        wanted: what they should be, for messages.
    """
    tensor = _as_tensor(values, what, wanted).cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _as_tensor(values: Any, what: str, wanted: str) -> Tensor:
    """Return ``values`` as a dense tensor with values, detached."""
    _refuse_unreadable(values, what)
    try:
        if isinstance(values, Tensor):
            return _dense(values)
        if not _has_array(values) and hasattr(values, "__dlpack__"):
            return _dense(torch.from_dlpack(values))
        array = np.asarray(_with_arrays(values, what))
    except (TypeError, ValueError, RuntimeError, BufferError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MlbenchError(f"{what}: not an array ({reason}); pass {wanted}") from error
    return _from_numpy(array, what)


def _refuse_unreadable(values: Any, what: str) -> None:
    """Raise MlbenchError for containers whose numbers are not all there, or not to be had."""
    if isinstance(values, np.ma.MaskedArray):
        raise MlbenchError(f"{what}: a masked array; remove the masked rows and pass its .data")
    if type(values).__module__.startswith("scipy.sparse"):
        raise MlbenchError(f"{what}: a sparse matrix; pass a dense one, its .toarray()")
    if not isinstance(values, Tensor):
        return
    if values.is_nested or values.layout != torch.strided:
        raise MlbenchError(f"{what}: a sparse or nested tensor; pass a dense one, its .to_dense()")
    if values.is_meta:
        raise MlbenchError(f"{what}: a tensor on the meta device has no values; pass one that has")
    if values.is_quantized:
        raise MlbenchError(f"{what}: a quantized tensor; pass its .dequantize()")


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.device.type not in _HOMES:
        tensor = tensor.cpu()
    # Torch has no arithmetic for these.
    return tensor.to(_WIDER.get(tensor.dtype, tensor.dtype))


def _has_array(values: object) -> bool:
    kinds = (list, tuple, np.generic)
    names = ("__array__", "__array_interface__", "__array_struct__")
    return isinstance(values, kinds) or any(hasattr(values, name) for name in names)


def _with_arrays(values: Any, what: str) -> Any:
    """Return a (nested) list with arrays in place of tensors; all else as it is."""
    if isinstance(values, Tensor):
        _refuse_unreadable(values, what)
        dense = _dense(values).cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    _refuse_unreadable(values, what)
    if not isinstance(values, list | tuple) or all(type(v) in (int, float) for v in values):
        return values
    return [_with_arrays(each, what) for each in values]


def _from_numpy(array: _Array, what: str) -> Tensor:
    if array.dtype.kind not in "fiub":
        kind = _OTHERS.get(array.dtype.kind, str(array.dtype))
        mend = "number the classes first" if "label" in what else "convert to float32"
        wanted = "integers" if "label" in what else "real numbers"
        raise MlbenchError(f"{what}: expected {wanted}, got {kind}; {mend}")
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # C has two types of eight bytes, and torch takes one of them: named by its size, it is that.
    by_size = f"{array.dtype.kind}{array.dtype.itemsize}"
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    array = native.view(by_size).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return _dense(torch.from_numpy(array))
