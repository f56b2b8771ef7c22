"""Products whose rounding depends on their shape, on any processor."""

import functools

import pytest
import torch


def round_by_shape(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Let torch's matrix products err as sums in other orders may, another way for every shape.

    An element errs by up to half of the bound that holds for D terms in any order (Higham 2002,
    sec. 3.1), so that equal rows and columns do not give equal elements either.
    """
    for owner, name in ((torch, "mm"), (torch, "bmm"), (torch, "matmul")):
        product = functools.partial(_product, getattr(owner, name), seed)
        monkeypatch.setattr(owner, name, product)
    method = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: _product(method, seed, a, b))


def _product(product, seed, a, b, *, out=None):
    exact = product(a, b)
    if not exact.is_floating_point():
        return exact
    generator = torch.Generator().manual_seed(hash((seed, *a.shape, *b.shape)) % 2**62)
    noise = torch.rand(exact.shape, generator=generator, dtype=exact.dtype) - 0.5
    terms, unit = a.shape[-1], torch.finfo(exact.dtype).eps / 2
    result = exact + terms * unit * product(a.abs(), b.abs()) * noise
    return result if out is None else out.copy_(result)
