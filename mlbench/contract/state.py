"""Checks of what a loss keeps from one batch to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from mlbench.contract.subject import (
    CheckSkipped,
    batch,
    batches,
    build,
    close,
    fail,
    outcome,
    trained,
    value,
)
from mlbench.interfaces import LossEntry


def memory(entry: LossEntry) -> None:
    """Require of buffers that evaluation leaves them alone and no batch meets itself in them.

    A batch that is put into a memory before the loss is computed gives every image a copy of
    itself as a positive. In evaluation mode nothing is put there, so that the loss is another.
    """
    for given in batches(entry):
        module = build(entry)
        before = dict(module.named_buffers())
        after: dict[str, Tensor] = {}
        training = value(module, given, buffers=after)
        if not any(not torch.equal(before[name], after[name]) for name in before):
            continue
        kept: dict[str, Tensor] = {}
        evaluation = value(module.eval(), given, buffers=kept)
        for name, buffer in before.items():
            if not torch.equal(buffer, kept[name]):
                fail(f"changes its buffer '{name}' in evaluation mode; change it only in training")
        held = [name for name, buffer in after.items() if _holds(buffer, given.embeddings)]
        if held and not close(training, evaluation):
            fail(
                f"gives {training:.6g} with the batch itself in its memory '{held[0]}', "
                f"{evaluation:.6g} without: put a batch there after its loss is computed"
            )
        return
    raise CheckSkipped("it has no buffers that batches change")


def _holds(buffer: Tensor, rows: Tensor) -> bool:
    """Tell whether the last axis of a buffer holds every row."""
    if buffer.dim() < 2 or buffer.shape[-1] != rows.shape[1]:
        return False
    differences = (buffer.flatten(0, -2)[:, None] - rows).abs().amax(dim=2)
    return bool((differences < 1e-6).any(dim=0).all())


def state_round_trip(entry: LossEntry) -> None:
    """Require that a state dict carries the loss over into a module of another seed."""
    given = batch(entry, 0)
    module, other = build(entry), build(entry, seed=1)
    # A step away from the start: constants there would hide what is not saved.
    gradients = outcome(module, given)[2:]
    with torch.no_grad():
        for parameter, gradient in zip(trained(module).values(), gradients, strict=True):
            parameter -= 0.1 * gradient
    other.load_state_dict(module.state_dict())
    saved, loaded = value(module, given), value(other, given)
    if not close(saved, loaded, 1e-6):
        fail(f"expected {saved:.6g} after loading the state dict, got {loaded:.6g}")
