"""The loss under test: how it is found, built, fed and read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.interfaces import Context, LossEntry, ParamValue
from mlbench.registry import LOSSES

# Distinct primes, so that no axis is taken for another.
CLASSES = 7
OTHER_CLASSES = 11
DIM = 5
LATE = 10**6
"""The step that a loss is told which declares it: long after whatever begins later."""


class CheckFailed(Exception):  # noqa: N818 (an outcome, not an error)
    """What was expected and what came out."""


class CheckSkipped(Exception):  # noqa: N818
    """Why a check does not apply."""


@dataclass(frozen=True)
class Batch:
    """Embeddings, float32 ``(B, D)``, of unit length if the loss declares so, and labels."""

    embeddings: Tensor
    labels: Tensor


def fail(message: str) -> NoReturn:
    """End the check as failed."""
    raise CheckFailed(message)


def resolve_subject(text: str) -> LossEntry:
    """Return the loss that ``text`` names.

    Args:
        text: the name of a registered loss (``pml:NAME`` too), or ``module:attribute``. The
            module may be in the current folder; the attribute is a LossEntry or a factory, which
            is taken as it is registered or, if it is not, with the default declaration.

    Raises:
        MlbenchError: there is no such loss, or its module cannot be imported.
    """
    head, colon, attribute = text.partition(":")
    prefixes = {entry.name for entry in LOSSES.entries() if entry.prefix}
    if not colon or head in prefixes:
        return LOSSES.get(text)
    found = _import(head, attribute)
    if isinstance(found, LossEntry):
        return found
    registered = [entry for entry in LOSSES.entries() if entry.target is found]
    return registered[0] if registered else LossEntry(name=text, target=found, summary="")


def _import(module: str, attribute: str) -> Any:
    # As `python -m` does: a console script does not look into the current folder by itself.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing foreign code may raise anything
        raise MlbenchError(
            f"cannot import '{module}:{attribute}': {brief(error)}; "
            "pass a loss's name or module:attribute"
        ) from error
    if not isinstance(found, LossEntry) and not callable(found):
        raise MlbenchError(f"'{module}:{attribute}' is neither a loss factory nor a LossEntry")
    return found


def brief(error: BaseException) -> str:
    """Return type and first line of an exception."""
    first_line = str(error).strip().partition("\n")[0]
    return (
        first_line if isinstance(error, MlbenchError) else f"{type(error).__name__}: {first_line}"
    )


def build(
    entry: LossEntry,
    params: Mapping[str, ParamValue] | None = None,
    *,
    classes: int = CLASSES,
    seed: int = 0,
    step: int = LATE,
    names: Tensor | None = None,
) -> nn.Module:
    """Build the loss under a seed, as it is in the middle of training.

    What it declares of a batch is given to it, and its buffers have seen two batches.

    Args:
        entry: the loss.
        params: other values than its declared defaults.
        classes: how many there are.
        seed: of torch.
        step: that it is told.
        names: ``(CLASSES,)`` new numbers of the classes in the batches that its buffers have seen.
    """
    torch.manual_seed(seed)
    module = entry.build(classes, DIM, entry.defaults if params is None else params)
    if entry.context:
        module.register_forward_pre_hook(partial(_with_context, entry.context, step))
    if any(True for _ in module.buffers()):
        for earlier in range(2):
            given = batch(entry, 10 + earlier, noise=0.7)
            labels = given.labels if names is None else names[given.labels]
            with torch.no_grad():
                module(given.embeddings, labels)
    return module


def _with_context(
    declared: Sequence[Context], step: int, module: nn.Module, given: tuple[Tensor, Tensor]
) -> tuple[Any, ...]:
    """Add what a loss declared of a batch, as a function of its embeddings and labels."""
    del module
    x, y = given
    mixing = torch.linspace(-1, 1, DIM * (DIM + 1), dtype=x.dtype).view(DIM, -1)
    earlier = ((y[:, None] == y) & torch.ones(len(y), len(y)).tril(-1).bool()).sum(dim=1)
    everything: dict[str, Tensor | int] = {
        "features": x @ mixing,
        "views": len(y) * y + earlier.div(2, rounding_mode="floor"),
        "step": step,
        "levels": torch.stack([y.div(n, rounding_mode="floor") for n in (2, 4)], dim=1),
    }
    return x, y, {name: everything[name] for name in declared}


def images_a_class(entry: LossEntry) -> int:
    """Return how many images of a class the batches of the suite hold."""
    return max(entry.images_per_class or 3, 2)


def prepare(entry: LossEntry, embeddings: Tensor) -> Tensor:
    """Give embeddings the length that the trainer would give them."""
    return F.normalize(embeddings) if entry.unit_length else embeddings


def batch(
    entry: LossEntry, seed: int, classes: Sequence[int] = range(CLASSES), noise: float = 1.0
) -> Batch:
    """Draw a batch in random order; ``noise`` below 1 gathers the images of a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(images_a_class(entry))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    means = torch.randn(CLASSES, DIM, generator=generator)
    images = torch.randn(len(labels), DIM, generator=generator)
    mixed = (1 - noise**2) ** 0.5 * means[labels] + noise * images
    return Batch(prepare(entry, mixed), labels)


def batches(entry: LossEntry) -> Iterator[Batch]:
    """Draw three batches without structure and two in which the classes hold together."""
    for seed, noise in enumerate((1.0, 1.0, 1.0, 0.5, 0.3)):
        yield batch(entry, seed, noise=noise)


def value(
    module: nn.Module, given: Batch, seed: int = 0, buffers: dict[str, Tensor] | None = None
) -> Tensor:
    """Return the loss, its own random draws (mining by chance) under a seed.

    Its buffers stay as they are; what it would make of them is left in ``buffers``, if given.
    """
    torch.manual_seed(seed)
    state = {} if buffers is None else buffers
    state.update((name, buffer.clone()) for name, buffer in module.named_buffers())
    return torch.func.functional_call(module, state, (given.embeddings, given.labels))


def outcome(module: nn.Module, given: Batch) -> tuple[Tensor, ...]:
    """Return the loss and its gradients: of the embeddings, then of every parameter."""
    leaf = given.embeddings.clone().requires_grad_()
    wanted = [leaf, *trained(module).values()]
    loss = value(module, Batch(leaf, given.labels))
    if not loss.requires_grad:
        fail(
            "the loss does not depend on the embeddings, so backward() raises; is something "
            "detached? (where there is nothing to learn, return embeddings.sum() * 0)"
        )
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    pairs = zip(gradients, wanted, strict=True)
    return loss.detach(), *(torch.zeros_like(p) if g is None else g for g, p in pairs)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimiser will train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def close(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> bool:
    """Tell whether two tensors differ by at most ``tolerance`` of the larger one's size."""
    if left.shape != right.shape:
        return False
    left, right = left.detach(), right.detach()
    size = max(1.0, float(left.abs().max()), float(right.abs().max())) if left.numel() else 1.0
    return bool(((left - right).abs() <= tolerance * size).all())


def same(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float = 1e-6) -> bool:
    """Tell whether two outcomes agree."""
    return len(left) == len(right) and all(map(close, left, right, [tolerance] * len(left)))


def class_axes(entry: LossEntry) -> dict[str, list[int]]:
    """Return, for each tensor of the state, the axes whose size depends on the classes."""
    state = build(entry).state_dict()
    other = build(entry, classes=OTHER_CLASSES).state_dict()
    return {
        name: [a for a, size in enumerate(tensor.shape) if size != other[name].shape[a]]
        for name, tensor in state.items()
        if name in other and tensor.dim() == other[name].dim()
    }


def draws_by_chance(entry: LossEntry) -> bool:
    """Tell whether the loss depends on random draws in its forward."""
    module, given = build(entry), batch(entry, 0)
    return not all(close(value(module, given), value(module, given, seed)) for seed in range(1, 4))


def map_state(
    module: nn.Module, axes: Mapping[str, list[int]], change: Callable[[Tensor], Tensor]
) -> None:
    """Replace every class axis of the module's state; ``change`` gets it as ``(C, K, ...)``.

    An axis of ``C K`` entries is taken as class-major: the K of class 0 come first.
    """
    state = module.state_dict()
    for name, tensor_axes in axes.items():
        for axis in tensor_axes:
            blocks = state[name].movedim(axis, 0).unflatten(0, (CLASSES, -1))
            state[name] = change(blocks).flatten(0, 1).movedim(0, axis)
    module.load_state_dict(state)
