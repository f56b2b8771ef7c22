"""Checks of a loss's gradients: that they reach all they should, and are true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.overrides import TorchFunctionMode

from mlbench.contract.subject import (
    CheckSkipped,
    batch,
    batches,
    brief,
    build,
    fail,
    outcome,
    trained,
    value,
)
from mlbench.interfaces import LossEntry


def gradients_reach(entry: LossEntry) -> None:
    """Require gradients of the embeddings and every parameter, and of no unregistered tensor."""
    module = build(entry)
    outcomes = [outcome(module, given) for given in batches(entry)]
    for position, name in enumerate(["embeddings", *trained(module)], start=1):
        gradients = [result[position] for result in outcomes]
        if not all(bool(g.isfinite().all()) for g in gradients):
            fail(f"the gradient of {name} is not finite")
        if not any(g.any() for g in gradients):
            fail(f"no gradient reaches {name} in {len(gradients)} batches that contain all classes")
    known = {id(p) for p in module.parameters()}
    for leaf in _leaves(value(module, next(batches(entry)))):
        if id(leaf) not in known:
            fail(
                f"a tensor of shape {tuple(leaf.shape)} gets gradients but is not a parameter of "
                "the module, so it would be neither trained nor saved; make it an nn.Parameter"
            )


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors in which backward() would accumulate gradients."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # type: ignore[attr-defined]
        waiting += [following for following, _ in node.next_functions]


def true_gradient(entry: LossEntry) -> None:
    """Require that the gradient is the derivative of the loss: torch's gradcheck in float64.

    What a loss detaches on purpose (circle loss its weights) counts as constant, and is told.
    """
    problem = _gradient_problem(entry, nullcontext)
    if problem and not _gradient_problem(entry, _ConstantDetached().again):
        raise CheckSkipped("true if what the loss detaches is constant, but not otherwise")
    if problem:
        fail(f"in float64 the gradient is not the derivative of the loss: {problem}")


def _gradient_problem(
    entry: LossEntry, context: Callable[[], AbstractContextManager[object]]
) -> str | None:
    module, given = build(entry).double(), batch(entry, 0)
    names = list(trained(module))
    buffers = dict(module.named_buffers())
    inputs = (given.embeddings.double(), *trained(module).values())

    def loss(embeddings: Tensor, *params: Tensor) -> Tensor:
        torch.manual_seed(0)
        state = {name: buffer.clone() for name, buffer in buffers.items()}
        state |= dict(zip(names, params, strict=True))
        with context():
            return torch.func.functional_call(module, state, (embeddings, given.labels))

    try:
        leaves = tuple(t.detach().requires_grad_() for t in inputs)
        gradcheck(loss, leaves, atol=1e-6, fast_mode=True)
    except GradcheckError as error:
        return brief(error)
    return None


class _ConstantDetached(TorchFunctionMode):
    """Gives what is detached the values it had at the first evaluation, in all others."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Tensor] = []
        self._calls = 0

    def again(self) -> _ConstantDetached:
        self._calls = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not Tensor.detach:
            return result
        if self._calls == len(self._values):
            self._values.append(result)
        self._calls += 1
        return self._values[self._calls - 1]
