"""What is to hold on every device: on a GPU each is compared with the CPU."""

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.devices import DEVICES, no_waits
from helpers.settings import QUICK
from torch import Tensor, nn

import mlbench
from mlbench.recipes.reading import load_recipe
from mlbench.records import store
from mlbench.registry import LOSSES
from mlbench.training.batches import FeatureSource
from mlbench.training.embed import embed, embed_batches
from mlbench.training.features import cached_features
from mlbench.training.network import Embedder
from mlbench.training.trainer import Trainer

CPU = torch.device("cpu")
IMAGES, CLASSES, WIDTH, DIM = 24, 6, 16, 8
NAMES = [entry.name for entry in LOSSES.entries() if not entry.prefix]
EXACT, CLOSE = 0.0, 1e-4

pytestmark = pytest.mark.parametrize("device", DEVICES, ids=str)


def trainer(device: torch.device, *, dropout: float = 0.0, precision: str = "fp32") -> Trainer:
    """A softtriple run on features, with a trunk that draws random numbers if asked to."""
    found = load_recipe("default")
    recipe = replace(
        found,
        batch=replace(found.batch, size=8, drop_last=True),
        schedule=replace(found.schedule, epochs=2, milestones=(), warmup=0),
        training=replace(found.training, precision=precision),
    )
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(dropout))
    network = Embedder(trunk, nn.Linear(WIDTH, DIM)).to(device)
    entry = LOSSES.get("softtriple")
    loss = entry.build(CLASSES, DIM, dict(entry.defaults)).to(device)
    source = FeatureSource(features().to(device))
    return Trainer(network, loss, entry, source, np.arange(IMAGES) % CLASSES, recipe, 3)


def features() -> Tensor:
    return torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_softtriple_waits_for_nothing(device: torch.device, precision: str) -> None:
    one = trainer(device, precision=precision)
    first, second = np.arange(8), np.arange(8, 16)
    one.step(one._batch(first))  # libraries are loaded and the optimiser's moments made here
    with no_waits(device):
        loss = one.step(one._batch(second))
    assert loss.device.type == device.type
    assert torch.isfinite(loss).item()


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_their_gradients_are_the_cpus(device: torch.device, name: str) -> None:
    """Losses that draw random numbers are asked to be finite, as each device draws its own."""
    entry = LOSSES.get(name)
    torch.manual_seed(0)
    original = entry.build(CLASSES, DIM, dict(entry.defaults))
    values, gradients = [], []
    for seed, place in ((0, CPU), (1, CPU), (0, device)):
        torch.manual_seed(seed)
        value, gradient = evaluated(copy.deepcopy(original).to(place), entry, place)
        values.append(value)
        gradients.append(gradient)
    assert torch.isfinite(values[2])
    assert torch.isfinite(gradients[2]).all()
    if values[0] == values[1]:
        tolerance = EXACT if device.type == "cpu" else CLOSE
        torch.testing.assert_close(values[2], values[0], rtol=tolerance, atol=tolerance / 10)
        torch.testing.assert_close(gradients[2], gradients[0], rtol=tolerance, atol=tolerance)


def evaluated(loss: nn.Module, entry: Any, place: torch.device) -> tuple[Tensor, Tensor]:
    """Return a loss's value and its gradient for the embeddings, on the CPU."""
    x = torch.randn(IMAGES, DIM, generator=torch.Generator().manual_seed(2))
    x = torch.nn.functional.normalize(x).to(place).requires_grad_()
    y = torch.arange(CLASSES).repeat_interleave(IMAGES // CLASSES).to(place)
    everything: dict[str, Tensor | int] = {
        "features": x @ torch.linspace(-1, 1, DIM * DIM, device=place).view(DIM, DIM),
        "views": torch.arange(IMAGES, device=place) // 2,
        "step": 1000,
        "levels": torch.stack([y // 2, y // 4], dim=1),
    }
    given = {key: everything[key] for key in entry.context}
    value = loss(x, y, given) if given else loss(x, y)
    value.backward()
    assert x.grad is not None
    return value.detach().cpu(), x.grad.cpu()


def test_a_checkpoint_holds_what_dropout_draws_next(device: torch.device) -> None:
    whole = trainer(device, dropout=0.5)
    first = whole.epoch(0).loss
    buffer = io.BytesIO()
    torch.save(whole.state(), buffer)
    expected = whole.epoch(1).loss
    torch.manual_seed(99)
    again = trainer(device, dropout=0.5)
    assert again.epoch(0).loss == pytest.approx(first, rel=1e-5)
    torch.rand(5, device=device)  # the generator's place comes from the checkpoint
    buffer.seek(0)
    again.restore(torch.load(buffer, map_location="cpu", weights_only=True))
    assert again.epoch(1).loss == pytest.approx(expected, rel=1e-5)


def test_embedding_and_cached_features_are_the_cpus(device: torch.device, tmp_path: Path) -> None:
    network = trainer(CPU).network
    expected = embed(network, FeatureSource(features()))
    there, source = copy.deepcopy(network).to(device), FeatureSource(features().to(device))
    found = embed(there, source, batch_size=10)
    kept = cached_features(
        tmp_path / "key.npy",
        IMAGES,
        lambda start: embed_batches(there, source, start=start, batch_size=10),
    )
    assert found.device.type == kept.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(kept, found)


def test_a_frozen_run_and_its_loaded_model_agree(
    device: torch.device, photos: Path, tmp_path: Path
) -> None:
    frozen = {"backbone.trunk": "frozen", "optimizer.lr": 0.0}
    record = mlbench.run(
        "softtriple",
        dataset=f"folder:{photos}",
        settings={**QUICK, **frozen},
        out=tmp_path,
        keep_model=True,
        device=device.type,
    )
    model = mlbench.load_model(store.record_path(tmp_path, record.spec), device=device.type)
    paths = [path for number in (3, 4, 5) for path in sorted((photos / f"class{number}").iterdir())]
    embeddings = model.embed(paths)
    found = mlbench.evaluate(embeddings, np.repeat([0, 1, 2], 8))
    close = EXACT if device.type == "cpu" else 0.05  # one of 24 queries may change sides
    for name in ("R@1", "MAP@R"):
        assert found[name] == pytest.approx(record.metrics[name], abs=close or 1e-12)
