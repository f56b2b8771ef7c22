from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK
from torch import Tensor, nn

import mlbench
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import Recipe
from mlbench.registry import LOSSES
from mlbench.training import trainer as module
from mlbench.training.batches import FeatureSource
from mlbench.training.network import Embedder
from mlbench.training.optimizer import build_optimizer, rate_factor
from mlbench.training.trainer import Batch, Trainer

pytestmark = pytest.mark.numeric

IMAGES, SIZE = 20, 8  # two full batches and an incomplete one


def recipe(precision: str = "fp32") -> Recipe:
    found = load_recipe("default")
    return replace(
        found,
        batch=replace(found.batch, size=SIZE, drop_last=False),
        schedule=replace(found.schedule, epochs=3, milestones=(2,), warmup=1),
        training=replace(found.training, precision=precision),
    )


def trainer(recipe: Recipe) -> Trainer:
    """A network with live batch norm and dropout, so that every trace of a pass would show."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    network = Embedder(trunk, nn.Linear(16, 4))
    entry = LOSSES.get("softtriple")
    loss = entry.build(5, 4, dict(entry.defaults))
    source = FeatureSource(torch.randn(IMAGES, 6))
    return Trainer(network, loss, entry, source, np.arange(IMAGES) % 5, recipe, 7)


def trained(one: Trainer) -> list[Any]:
    losses = [one.epoch(number).loss for number in range(3)]
    return [losses, *one.network.state_dict().values(), *one.loss.state_dict().values()]


def equal(left: list[Any], right: list[Any]) -> bool:
    tensors = zip(left[1:], right[1:], strict=True)
    return left[0] == right[0] and all(torch.equal(a, b) for a, b in tensors)


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile to the operations of the eager network, which round as that does."""

    def compile_network(network: nn.Module, _device: torch.device) -> Any:
        return torch.compile(network, dynamic=False, backend="aot_eager")

    torch.compiler.reset()
    monkeypatch.setattr(module, "compile_network", compile_network)


def clipped(**limits: float) -> tuple[Tensor, Tensor]:
    """Return all gradients of one step as they were and as the optimiser took them."""
    plain = recipe()
    before = trainer(plain)
    after = trainer(replace(plain, optimizer=replace(plain.optimizer, **limits)))
    grads = []
    for one in (before, after):
        inputs, labels = one.source.test_batch(np.arange(SIZE)), torch.arange(SIZE) % 5
        torch.manual_seed(3)  # of dropout
        one.step(Batch(inputs.__getitem__, labels, {}))
        parameters = [*one.network.parameters(), *one.loss.parameters()]
        grads.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    return grads[0], grads[1]


def test_gradients_are_clipped_by_value() -> None:
    usual, limited = clipped(clip_value=1e-3)
    assert usual.abs().max() > 1e-2
    assert torch.equal(limited, usual.clamp(-1e-3, 1e-3))


def test_the_gradient_of_network_and_loss_together_is_clipped_by_length() -> None:
    usual, limited = clipped(clip_norm=0.1)
    assert usual.norm() > 0.2
    torch.testing.assert_close(limited, usual * 0.1 / usual.norm(), rtol=1e-4, atol=1e-9)
    usual, unlimited = clipped(clip_norm=1e6)
    assert torch.equal(usual, unlimited)


def test_both_limits_clip_by_value_first() -> None:
    usual, limited = clipped(clip_value=1e-3, clip_norm=1e-3)
    flat = usual.clamp(-1e-3, 1e-3)
    torch.testing.assert_close(limited, flat * 1e-3 / flat.norm(), rtol=1e-4, atol=1e-9)


def test_rates_fall_by_half_a_cosine() -> None:
    schedule = replace(recipe().schedule, epochs=4, milestones=(), annealing="cosine")
    half = 0.5**0.5
    expected = [1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert [rate_factor(schedule, e) for e in range(4)] == pytest.approx(expected)
    steps = replace(schedule, milestones=(2,), decay=0.1)
    assert rate_factor(steps, 2) == pytest.approx(0.05)
    assert rate_factor(replace(steps, annealing="none"), 3) == pytest.approx(0.1)


def test_every_group_follows_the_schedule() -> None:
    plain = recipe()
    one = trainer(replace(plain, schedule=replace(plain.schedule, annealing="cosine")))
    first = [group["lr"] for group in one.optimizer.param_groups]
    one.epoch(1)
    rates = [group["lr"] for group in one.optimizer.param_groups]
    assert rates == pytest.approx([0.75 * rate for rate in first])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("unfused")
def test_compiling_leaves_no_trace_in_the_training(precision: str) -> None:
    compiled = trainer(recipe(precision))
    compiled.compile()
    assert equal(trained(compiled), trained(trainer(recipe(precision))))


@pytest.mark.usefixtures("unfused")
def test_all_is_compiled_before_the_first_step() -> None:
    one = trainer(recipe())
    one.compile()
    with torch.compiler.set_stance("fail_on_recompile"):
        trained(one)


@pytest.mark.usefixtures("unfused")
def test_only_full_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    one, seen = trainer(recipe()), []
    one.compile()
    compiled = one._compiled
    assert compiled is not None

    def spy(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return compiled(inputs)

    monkeypatch.setattr(one, "_compiled", spy)
    one.epoch(0)
    assert seen == [SIZE, SIZE]


def test_too_few_images_for_a_batch_are_not_compiled() -> None:
    few = recipe()
    one = trainer(replace(few, batch=replace(few.batch, size=2 * IMAGES)))
    one.compile()
    assert one._compiled is None


@pytest.mark.parametrize(("skipped", "said"), [(0, "cuda-graph"), (1, "compile")])
def test_a_record_says_cuda_graph_only_where_one_was_captured(
    monkeypatch: pytest.MonkeyPatch, skipped: int, said: str
) -> None:
    counts = iter([3, 3 + skipped])
    monkeypatch.setattr(module, "graphs_skipped", lambda: next(counts))
    monkeypatch.setattr(module, "execution", lambda *_, **__: "cuda-graph")
    monkeypatch.setattr(module, "compile_network", lambda network, _: network)
    one = trainer(recipe())
    assert one.execution == "eager"
    one.compile()
    assert one.execution == said


@pytest.mark.parametrize("entered", ["compile", "epoch"])
def test_no_gradient_is_alive_where_a_compiled_pass_begins(
    monkeypatch: pytest.MonkeyPatch, entered: str
) -> None:
    """Gradients in the memory of a CUDA graph are gone when its next pass begins."""
    alive = []

    def compile_network(network: nn.Module, _device: torch.device) -> Any:
        def compiled(inputs: Tensor) -> Tensor:
            alive.append(sum(p.grad is not None for p in network.parameters()))
            return network(inputs)

        return compiled

    monkeypatch.setattr(module, "compile_network", compile_network)
    one = trainer(recipe())
    one.compile()
    if entered == "epoch":
        alive.clear()
        one.epoch(0)
    assert len(alive) > 1
    assert set(alive) == {0}


def test_a_lack_of_memory_while_compiling_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(network: nn.Module, _device: torch.device) -> Any:
        def fail(_inputs: Tensor) -> Tensor:
            raise torch.cuda.OutOfMemoryError("tried to allocate")

        return fail

    monkeypatch.setattr(module, "compile_network", greedy)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        trainer(recipe()).compile()


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: nn.Module, _device: torch.device) -> Any:
        def fail(_inputs: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand a long story")

        return fail

    monkeypatch.setattr(module, "compile_network", broken)
    with pytest.raises(
        mlbench.MlbenchError, match=r"^--compile is not .*\(no C\+\+ compiler\); .*out it$"
    ):
        trainer(recipe()).compile()


def test_a_compiled_run_says_so_and_repeats_itself(photos: Path) -> None:
    settings = QUICK | {"backbone.trunk": "frozen"}
    options: dict[str, Any] = {"dataset": f"folder:{photos}", "settings": settings}
    eager = mlbench.run("npairs", **options)
    first, again = (mlbench.run("npairs", compile=True, **options) for _ in range(2))
    assert eager.provenance.execution == "eager"
    assert "compile" not in eager.cost.seconds
    assert first.provenance.execution == "compile"
    assert first.cost.seconds["compile"] > 0
    assert first.metrics == again.metrics
    losses = [[row.loss for row in each.curve] for each in (first, again, eager)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "momentum", "expected"),
    [("sgd", "usual", 0.9), ("sgd", 0.5, 0.5), ("rmsprop", "usual", 0.0), ("rmsprop", 0.9, 0.9)],
)
def test_momentum_is_the_recipes(name: Any, momentum: Any, expected: float) -> None:
    spec = replace(load_recipe("default").optimizer, name=name, momentum=momentum)
    network = Embedder(nn.Identity(), nn.Linear(4, 2))
    entry = LOSSES.get("triplet")
    optimizer = build_optimizer(network, nn.Identity(), entry, spec)
    assert [group["momentum"] for group in optimizer.param_groups] == [expected]
