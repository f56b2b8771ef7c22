"""One known state of torch, NumPy and Python around whatever makes figures.

Torch and NumPy keep state for a whole process (or thread), which any import or caller may have
changed: figures would then differ under one ``run_id``. Threads are left as they are; records name
their number.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class _Flag:
    """A part of the state: how it is read and written, and its known value."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    value: Any


def _attribute(owner: Any, name: str, value: Any) -> _Flag:
    return _Flag(
        functools.partial(getattr, owner, name), functools.partial(setattr, owner, name), value
    )


def _autocast(device: str) -> _Flag:
    read = functools.partial(torch.is_autocast_enabled, device)
    return _Flag(read, functools.partial(torch.set_autocast_enabled, device), False)


def _set_anomaly(enabled: bool) -> None:
    torch.set_anomaly_enabled(enabled, torch.is_anomaly_check_nan_enabled())


def _flushes_denormals() -> bool:
    return float(torch.tensor(5e-324, dtype=torch.float64, device="cpu") * 1.0) == 0


_cuda, _cudnn, _mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
_FLAGS = (
    _Flag(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    *map(_autocast, _DEVICES),
    _Flag(torch.is_anomaly_enabled, _set_anomaly, False),
    _Flag(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
    _Flag(_flushes_denormals, torch.set_flush_denormal, False),
    _attribute(_cudnn, "enabled", True),
    _attribute(_cudnn, "benchmark", False),
    _attribute(_cudnn, "deterministic", False),
    _attribute(_mkldnn, "enabled", True),
    _attribute(_mkldnn, "deterministic", False),
    _attribute(_cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    _attribute(_cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
    _Flag(_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, True),
    _Flag(_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, True),
    _Flag(_cuda.math_sdp_enabled, _cuda.enable_math_sdp, True),
    _Flag(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, True),
)

# Torch 2.9 has two ways to say at which precision float32 products are taken. The getter of the
# older one raises where the newer one was used besides, and the newer one's public setter for all
# of mkldnn writes another backend's value: hence torch._C.
_PRECISIONS = tuple(
    (backend, operation)
    for backend, operations in (
        ("generic", ("all",)),
        ("cuda", ("all", "matmul", "conv", "rnn")),
        ("mkldnn", ("all", "matmul", "conv", "rnn")),
    )
    for operation in operations
    if hasattr(torch._C, "_set_fp32_precision_setter")
)


@contextmanager
def known_state(precision: str = "fp32", seed: int | None = None) -> Iterator[None]:
    """Give the block a known state of the process; what was there comes back, after errors too.

    Known is: float32 on the CPU by default, gradients on, no inference mode, autocast, anomaly
    detection, flushing of denormals or forced deterministic algorithms; torch's own choice of
    kernels; NumPy's default treatment of floating-point errors. Serves as a decorator too.

    Args:
        precision: of float32 products: ``tf32`` lets CUDA take TF32; all others are exact.
        seed: of the global random generators of torch, NumPy and Python, which are then put back;
            None leaves them as they are.
    """
    with ExitStack() as stack:
        for flag in _FLAGS:
            _put(stack, flag)
        _put(stack, _cache_flag())
        stack.enter_context(_products(tf32=precision == "tf32"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # A device context costs time at every call: only where there is one to be overruled.
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if seed is not None:
            stack.enter_context(_generators(seed))
        yield


def _put(stack: ExitStack, flag: _Flag) -> None:
    before = flag.read()
    if before != flag.value:
        stack.callback(flag.write, before)
        flag.write(flag.value)


def _cache_flag() -> _Flag:
    """Return the flag of autocast's copies of weights.

    They live until the outermost autocast ends: in a caller's, they would outlive training steps.
    """
    torch.autocast_increment_nesting()
    within = torch.autocast_decrement_nesting() > 0
    return _Flag(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, not within)


@contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    """Set at which precision float32 products and convolutions are taken."""
    before = {each: _precision(each) for each in _PRECISIONS}
    products, convolutions = _older_precisions()
    try:
        _set_precisions(dict.fromkeys(_PRECISIONS, "none"))
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        _set_precisions(before)


def _precision(each: tuple[str, str]) -> str:
    return torch._C._get_fp32_precision_getter(*each)


def _set_precisions(values: dict[tuple[str, str], str]) -> None:
    """Set precisions, the general ones first; "none" is to inherit them."""
    for each, value in values.items():
        torch._C._set_fp32_precision_setter(*each, "none")
        if _precision(each) != value:
            torch._C._set_fp32_precision_setter(*each, value)


def _older_precisions() -> tuple[str, bool]:
    """Return what the older switches say of products and of convolutions.

    Where they disagree with the newer ones, which is when they refuse to be read, the newer ones
    are changed until they do not.
    """
    cuda, mkldnn, unset = (
        ("cuda", "matmul"),
        ("mkldnn", "matmul"),
        dict.fromkeys(_PRECISIONS, "none"),
    )
    pairs = (("none", "none"), ("tf32", "tf32"), ("tf32", "bf16"))
    products = _read(
        torch.get_float32_matmul_precision,
        [unset | {cuda: first, mkldnn: second} for first, second in pairs],
    )
    return products, _read(
        functools.partial(getattr, torch.backends.cudnn, "allow_tf32"),
        [unset | {("cuda", "conv"): each, ("cuda", "rnn"): each} for each in ("none", "tf32")],
    )


def _read(read: Callable[[], Any], tried: list[dict[tuple[str, str], str]]) -> Any:
    for precisions in tried:
        try:
            return read()
        except RuntimeError:
            _set_precisions(precisions)
    return read()


@contextmanager
def _generators(seed: int) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy, python = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)
