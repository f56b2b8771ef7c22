"""The checks of the suite: what a loss must do to be compared fairly with others.

Each takes the entry, returns if the loss passes, and otherwise says what was expected and what
came out. Any other exception counts as a failure too: the loss is foreign code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mlbench.contract.subject import (
    CLASSES,
    LATE,
    OTHER_CLASSES,
    Batch,
    CheckSkipped,
    batch,
    batches,
    brief,
    build,
    class_axes,
    close,
    draws_by_chance,
    fail,
    map_state,
    outcome,
    same,
    trained,
    value,
)
from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry, ParamValue


def finite_scalar(entry: LossEntry) -> None:
    """Require one finite number."""
    module = build(entry)
    inner = range(1, CLASSES - 1)  # what happens at the ends of the range is the next check's
    loss = value(module, batch(entry, 0, inner))
    if not isinstance(loss, Tensor) or loss.shape != ():
        what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        fail(f"expected a scalar tensor of shape (), got {what}; take the mean over the batch")
    if not loss.isfinite():
        fail(f"expected a finite loss, got {loss.item()}")


def labels_from_zero(entry: LossEntry) -> None:
    """Require that labels 0 .. C - 1 all count, and that nothing is sized for C + 1."""
    module = build(entry)
    for label, classes in ((0, (0, 1, 2)), (CLASSES - 1, (CLASSES - 3, CLASSES - 2, CLASSES - 1))):
        try:
            value(module, batch(entry, 0, classes))
        except Exception as error:
            fail(f"label {label} of 0 .. {CLASSES - 1} raised {brief(error)}; labels start at 0")
    _sizes_are_multiples_of_classes(entry)
    gradients = [(outcome(module, given)[1], given.labels) for given in batches(entry)]
    for label in range(CLASSES):
        if not any(gradient[labels == label].any() for gradient, labels in gradients):
            fail(f"images of class {label} of 0 .. {CLASSES - 1} get no gradient in any batch")


def _sizes_are_multiples_of_classes(entry: LossEntry) -> None:
    sizes = {c: build(entry, classes=c).state_dict() for c in (CLASSES, OTHER_CLASSES)}
    for name, axes in class_axes(entry).items():
        for axis in axes:
            for classes, state in sizes.items():
                if state[name].shape[axis] % classes:
                    shape = tuple(state[name].shape)
                    fail(
                        f"'{name}' has shape {shape} for {classes} classes: axis {axis} is no "
                        f"multiple of {classes}; labels start at 0, no row is left over"
                    )


def deterministic(entry: LossEntry) -> None:
    """Require the same loss and gradients when built and called twice under one torch seed."""
    for given in batches(entry):
        first, second = (outcome(build(entry), given) for _ in range(2))
        if not same(first, second):
            fail(
                f"built and called twice under one torch.manual_seed it gives {first[0]:.6g} and "
                f"{second[0]:.6g} (or other gradients); draw random numbers only from torch"
            )
        module = build(entry)
        first, second = (outcome(module, given) for _ in range(2))
        if not same(first, second):
            fail(
                f"called twice from the same buffers it gives {first[0]:.6g} and {second[0]:.6g}: "
                "it keeps state outside of its buffers, which a checkpoint would not contain; "
                "use register_buffer"
            )


def batch_order(entry: LossEntry) -> None:
    """Require that the order of the batch does not matter, that within a class apart.

    Losses on pairs may tell anchor and positive by their order, so that one is kept.
    """
    _needs_no_chance(entry)
    for seed, given in enumerate(batches(entry)):
        module = build(entry)
        before = value(module, given)
        after = value(build(entry), _reordered(given, seed))
        if not close(before, after):
            fail(f"expected {before:.6g} when the batch is reordered, got {after:.6g}")


def _reordered(given: Batch, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = given.labels[torch.randperm(len(given.labels), generator=generator)]
    order = torch.empty_like(labels)
    order[labels.argsort(stable=True)] = given.labels.argsort(stable=True)
    return Batch(given.embeddings[order], labels)


def _needs_no_chance(entry: LossEntry) -> None:
    if draws_by_chance(entry):
        raise CheckSkipped(
            "it draws random numbers, so one seed selects others from a changed batch"
        )


def label_renaming(entry: LossEntry) -> None:
    """Require that renaming the classes, in the labels and in the state, changes nothing."""
    _needs_no_chance(entry)
    if "levels" in entry.context:
        raise CheckSkipped("its levels group the classes by their numbers here")
    axes = class_axes(entry)
    for seed, given in enumerate(batches(entry)):
        new_names = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
        module = build(entry)
        before = value(module, given)
        renamed = build(entry, names=new_names)
        map_state(renamed, axes, partial(torch.index_select, dim=0, index=new_names.argsort()))
        after = value(renamed, Batch(given.embeddings, new_names[given.labels]))
        if not close(before, after):
            fail(
                f"expected {before:.6g} when classes change their numbers (and rows), got "
                f"{after:.6g}; is a label used with the wrong row?"
            )


def declared_length(entry: LossEntry) -> None:
    """Require that declared raw embeddings are felt by length, not only through a penalty."""
    if entry.unit_length:
        raise CheckSkipped("unit_length=True: the trainer normalises")
    module = build(entry)
    for given in batches(entry):
        short, long = (_turning(module, factor, given) for factor in (1.0, 2.0))
        if not close(short, long):
            return
    fail(
        "declares unit_length=False but, except for a penalty on the norm, ignores the "
        "embeddings' norm: it normalises; declare unit_length=True or do not normalise"
    )


def _turning(module: nn.Module, factor: float, given: Batch) -> Tensor:
    """Return how the loss changes as each embedding turns: gradient across it, by angle.

    A penalty on the length pulls along an embedding, never across it.
    """
    x = factor * given.embeddings
    gradient = outcome(module, Batch(x, given.labels))[1]
    along = (gradient * x).sum(dim=1, keepdim=True) / x.square().sum(dim=1, keepdim=True)
    return (gradient - along * x) * x.norm(dim=1, keepdim=True)


def parameters_matter(entry: LossEntry) -> None:
    """Require that every declared number or switch changes loss or gradients somewhere."""
    steps = _telling_steps(entry)
    samples = list(batches(entry))

    def outcomes(params: Mapping[str, ParamValue]) -> list[tuple[Tensor, ...]]:
        modules = [build(entry, params, step=step) for step in steps]
        return [outcome(module, given) for module in modules for given in samples]

    usual = outcomes(entry.defaults)
    for name, default in entry.defaults.items():
        variants = list(_variants(entry, name, default))
        if isinstance(default, str):
            continue  # its other values are not known
        if not variants:
            fail(f"'{name}' can be set to no other value than {default}")
        sizes = [_sizes(entry, params) for params in (entry.defaults, *variants)]
        if sizes.count(sizes[0]) < len(sizes):
            continue  # it says how much is kept, which may show only once that is full
        changed = map(outcomes, variants)
        if all(all(map(same, usual, results)) for results in changed):
            fail(
                f"changing '{name}' from {default} changes neither loss nor gradients in "
                f"{len(samples)} batches; is its term missing?"
            )


def _sizes(entry: LossEntry, params: Mapping[str, ParamValue]) -> list[torch.Size]:
    """Return the shapes of what the loss keeps from batch to batch."""
    return [buffer.shape for buffer in build(entry, params).buffers()]


def _telling_steps(entry: LossEntry) -> list[int]:
    """Return the steps at which a whole number among the parameters may make a difference."""
    numbers = [v for v in entry.defaults.values() if type(v) is int]
    return [*numbers, LATE] if "step" in entry.context else [LATE]


def _variants(entry: LossEntry, name: str, default: ParamValue) -> Iterator[dict[str, ParamValue]]:
    for other in _others(default):
        params = {**entry.defaults, name: other}
        try:
            build(entry, params)
        except MlbenchError:
            continue  # out of its range
        yield params


def _others(default: ParamValue) -> tuple[ParamValue, ...]:
    if isinstance(default, bool):
        return (not default,)
    if isinstance(default, int):
        return default + 1, default - 1, 2 * default
    if isinstance(default, float):
        return 1.5 * default, 0.5 * default, default + 0.1
    return ()


def declared_proxies(entry: LossEntry) -> None:
    """Require true ``proxies`` and ``lr``; of unit proxies only the direction may count."""
    if entry.prefix:
        raise CheckSkipped(f"'{entry.name}' is one declaration for several losses")
    names = ", ".join(trained(build(entry)))
    if entry.proxies == "none" and names:
        fail(f"declares proxies='none' but trains {names}; declare proxies and lr")
    if entry.proxies != "none" and not names:
        fail(f"declares proxies='{entry.proxies}' but has no learnable parameters")
    if (entry.lr is None) != (entry.proxies == "none"):
        fail(f"declares proxies='{entry.proxies}' with lr={entry.lr}; proxies need a rate")
    without = [name for name in trained(build(entry)) if entry.rate_of(name) is None]
    if entry.lr is not None and without:
        fail(f"declares no learning rate (lr) of {', '.join(without)}")
    if entry.proxies == "unit":
        _only_directions_count(entry)


def _only_directions_count(entry: LossEntry) -> None:
    trained_names = trained(build(entry))
    axes = {name: a for name, a in class_axes(entry).items() if name in trained_names and a}
    if not axes:
        fail("declares proxies='unit' but no parameter has an axis of num_classes")
    for given in batches(entry):
        module, stretched = build(entry), build(entry)
        map_state(stretched, axes, _stretch_one_class)
        before, after = value(module, given), value(stretched, given)
        if not close(before, after):
            fail(
                f"expected {before:.6g} when one class's proxies are made 3 times as long, got "
                f"{after:.6g}; are they normalised along the wrong axis?"
            )


def _stretch_one_class(blocks: Tensor) -> Tensor:
    stretched = blocks.clone()
    stretched[CLASSES // 2] *= 3
    return stretched


def edge_batches(entry: LossEntry) -> None:
    """Require a finite loss and finite gradients of batches that are rare but occur."""
    module = build(entry)
    for what, given in _edge_batches(entry):
        try:
            loss, *gradients = outcome(module, given)
        except Exception as error:
            fail(f"a batch {what}: {brief(error)}")
        if not loss.isfinite():
            fail(f"a batch {what} gives the loss {loss.item()}")
        if not all(bool(g.isfinite().all()) for g in gradients):
            fail(f"a batch {what} gives a gradient that is not finite")


def _edge_batches(entry: LossEntry) -> Iterator[tuple[str, Batch]]:
    usual = batch(entry, 0)
    first = torch.stack([(usual.labels == c).nonzero()[0, 0] for c in range(CLASSES)])
    yield "without positives", Batch(usual.embeddings[first], usual.labels[first])
    yield "with one class", batch(entry, 0, classes=[2])
    yield "of one image", Batch(usual.embeddings[:1], usual.labels[:1])
    half_zero = usual.embeddings.clone()
    half_zero[::2] = 0
    for what, embeddings in (
        ("with equal embeddings in each class", usual.embeddings[first][usual.labels]),
        ("with all embeddings equal", usual.embeddings[:1].expand_as(usual.embeddings)),
        ("with zero vectors", half_zero),
        ("with zero vectors only", torch.zeros_like(usual.embeddings)),
    ):
        yield what, Batch(embeddings, usual.labels)


def half_precision(entry: LossEntry) -> None:
    """Require a finite loss near its float32 value under autocast to float16 and bfloat16."""
    for dtype in (torch.float16, torch.bfloat16):
        for given in batches(entry):
            exact = outcome(build(entry), given)[0]
            with torch.autocast("cpu", dtype):
                loss, *gradients = outcome(build(entry), given)
            if not all(bool(t.isfinite().all()) for t in (loss, *gradients)):
                fail(f"under autocast to {dtype} the loss ({loss:.4g}) or a gradient is not finite")
            if abs(loss.float() - exact) > 0.05 + 0.1 * abs(exact):
                fail(f"under autocast to {dtype} it gives {loss:.4g}, in float32 {exact:.4g}")
