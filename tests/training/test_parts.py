"""Batches in parts, learning rates by parameter, and what losses declare of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.interfaces import Context, LossEntry
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import Recipe
from mlbench.training import trainer as module
from mlbench.training.batches import Draw, FeatureSource
from mlbench.training.network import Embedder
from mlbench.training.trainer import Trainer

pytestmark = pytest.mark.numeric

IMAGES, SIZE = 20, 8


class Seen(nn.Module):
    """A loss with a parameter, a memory and draws of its own, that keeps what it was given."""

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.head = nn.Linear(embedding_dim, 1)
        self.register_buffer("memory", torch.zeros(embedding_dim))
        self.given: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor, y: Tensor, context: Any = None) -> Tensor:
        self.given.append((y.clone(), context))
        noise = torch.rand(len(x), 1)
        near = (x @ x.T * (y[:, None] == y)).mean() + (self.scale[y, None] * x * noise).mean()
        loss = (x - self.get_buffer("memory")).square().mean() + self.head(x).mean() + near
        self.get_buffer("memory").lerp_(x.detach().mean(dim=0), 0.5)
        features = 0.0 if context is None else context.get("features")
        return loss if not isinstance(features, Tensor) else loss + features.square().mean()


def entry(*context: Context, **declared: Any) -> LossEntry:
    declared = {"proxies": "free", "lr": 0.01, **declared}
    return LossEntry(name="seen", target=Seen, summary="", context=context, **declared)


def recipe(**batch: Any) -> Recipe:
    found = load_recipe("default")
    return replace(
        found,
        batch=replace(found.batch, size=SIZE, drop_last=False, **batch),
        schedule=replace(found.schedule, epochs=3, milestones=(2,), warmup=1),
    )


def trainer(given: LossEntry, spec: Recipe, **options: Any) -> Trainer:
    torch.manual_seed(0)
    network = Embedder(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 4))
    source = options.pop("source", None) or FeatureSource(torch.randn(IMAGES, 6))
    labels = np.arange(IMAGES) % 5
    return Trainer(network, given.build(5, 4, {}), given, source, labels, spec, 7, **options)


def states(one: Trainer) -> list[Tensor]:
    return [*one.network.state_dict().values(), *one.loss.state_dict().values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("context", [(), ("features", "step")])
@pytest.mark.parametrize("unit_length", [True, False])
def test_parts_give_the_gradient_of_the_whole_batch(
    precision: str, context: tuple[Context, ...], unit_length: bool
) -> None:
    """Also of the loss's own parameters; with its draws; in epochs with a frozen trunk too."""
    given = entry(*context, unit_length=unit_length)
    whole, parts = (
        trainer(
            given,
            replace(spec, training=replace(spec.training, precision=precision)),
        )
        for spec in (recipe(), recipe(micro=3))
    )
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    for epoch in range(3):
        torch.manual_seed(epoch)
        expected = whole.epoch(epoch).loss
        torch.manual_seed(epoch)
        assert parts.epoch(epoch).loss == pytest.approx(expected, abs=tolerance)
    for left, right in zip(states(whole), states(parts), strict=True):
        assert (left - right).abs().max() < tolerance


def test_a_part_is_embedded_from_the_same_random_numbers_both_times() -> None:
    torch.manual_seed(1)
    one = trainer(entry(), recipe(micro=2))
    one.network.trunk = nn.Sequential(one.network.trunk, nn.Dropout(0.5))
    passes: list[Tensor] = []
    one.network.head.register_forward_pre_hook(lambda _, args: passes.append(args[0].detach()))
    one.epoch(0)
    first, second = passes[:4], passes[4:8]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any((a == 0).any() for a in first)


def test_no_more_than_a_part_is_cut_or_embedded_at_a_time() -> None:
    sizes: list[int] = []

    class Counting(FeatureSource):
        def draw(self, indices: Any, rng: np.random.Generator) -> Draw:
            made = super().draw(indices, rng)

            def counted(part: slice) -> Tensor:
                sizes.append(len(made(part)))
                return made(part)

            return counted

    one = trainer(entry(), recipe(micro=3), source=Counting(torch.randn(IMAGES, 6)))
    one.epoch(0)
    assert sizes == [3, 3, 2] * 4 + [3, 1] * 2
    assert [len(y) for y, _ in one.loss.given] == [8, 8, 4]  # type: ignore[union-attr]


def test_live_batch_norm_is_refused_in_parts_alone() -> None:
    torch.manual_seed(0)
    network = Embedder(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4))
    rest = (FeatureSource(torch.randn(IMAGES, 6)), np.arange(IMAGES) % 5)
    loss = Seen(5, 4)
    with pytest.raises(MlbenchError, match=r"batch.micro: trunk.1 is a batch norm of live"):
        Trainer(network, loss, entry(), *rest, recipe(micro=4), 7)
    Trainer(network, loss, entry(), *rest, recipe(micro=8), 7)
    Trainer(network, loss, entry(), *rest, recipe(), 7)


def test_parts_are_compiled_as_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def compile_network(network: nn.Module, _device: torch.device) -> Any:
        def compiled(inputs: Tensor) -> Any:
            seen.append(len(inputs))
            return network(inputs)

        return compiled

    monkeypatch.setattr(module, "compile_network", compile_network)
    one = trainer(entry("features"), recipe(micro=3))
    one.compile()
    assert set(seen) == {3}
    seen.clear()
    one.epoch(0)
    assert seen == [3] * (4 * 2 + 2)


def test_micro_is_part_of_the_recipe_unless_it_is_0() -> None:
    assert recipe(micro=0).recipe_id == recipe().recipe_id
    assert recipe(micro=4).recipe_id != recipe().recipe_id


def test_a_loss_gets_what_it_declared_and_nothing_else() -> None:
    one = trainer(entry(), recipe())
    one.epoch(0)
    assert {context is None for _, context in one.loss.given} == {True}  # type: ignore[union-attr]

    levels = np.stack([np.arange(IMAGES) % 5 // 2, np.arange(IMAGES) % 5 // 4], axis=1)
    one = trainer(entry("step", "levels", "features"), recipe(), levels=levels)
    for epoch in range(2):
        one.epoch(epoch)
    given: Any = one.loss.given
    assert [context["step"] for _, context in given] == list(range(6))
    for labels, context in given:
        assert context.keys() == {"step", "levels", "features"}
        assert torch.equal(context["levels"], torch.stack([labels // 2, labels // 4], dim=1))
        assert context["features"].shape == (len(labels), 16)


def test_the_step_goes_on_after_a_checkpoint() -> None:
    one = trainer(entry("step"), recipe())
    one.epoch(0)
    other = trainer(entry("step"), recipe())
    other.restore(one.state())
    assert torch.equal(other.loss.get_buffer("memory"), one.loss.get_buffer("memory"))
    other.epoch(1)
    given: Any = other.loss.given
    assert given[0][1] == {"step": 3}


def test_views_are_two_crops_of_half_as_many_images() -> None:
    spec = recipe()
    spec = replace(spec, input=replace(spec.input, train_crop="random-resized"))
    one = trainer(entry("views"), spec)
    one.epoch(0)
    given: Any = one.loss.given
    for labels, context in given:
        half = len(labels) // 2
        assert torch.equal(context["views"][:half], context["views"][half:])
        assert len(context["views"].unique()) == half
        assert torch.equal(labels, context["views"] % 5)


@pytest.mark.parametrize(
    ("context", "changes", "message"),
    [
        ("levels", {}, "'seen' declares levels.*'glyphs' has none"),
        ("views", {"train_crop": "center", "flip": False}, "'seen' declares views"),
    ],
)
def test_what_cannot_be_given_is_refused(context: Context, changes: Any, message: str) -> None:
    spec = recipe()
    with pytest.raises(MlbenchError, match=message):
        trainer(entry(context), replace(spec, input=replace(spec.input, **changes)))


def test_rates_by_parameter() -> None:
    one = trainer(entry(lr={"scale": 0.5, "head": 0.25, "head.bias": 0.125}), recipe())
    rates = {id(p): group["lr"] for group in one.optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in one.loss.named_parameters()}
    assert found == {"scale": 0.5, "head.weight": 0.25, "head.bias": 0.125}
    assert entry(lr={"scale": 0.5, "head": 0.25}).needs.endswith(
        "lr 0.5 (scale); loss lr 0.25 (head)"
    )
    with pytest.raises(MlbenchError, match=r"declares no learning rate .* of 'head.weight'"):
        trainer(entry(lr={"scale": 0.5, "head.bias": 0.1}), recipe())
