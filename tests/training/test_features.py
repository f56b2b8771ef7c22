"""The features in the cache, and what is left of a pass that was stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mlbench.training import features
from mlbench.training.features import cached_features

VALUES = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
BATCH = 8


class Pass:
    """Computes features in batches, and raises before one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.computed = stop, list[int]()

    def __call__(self, start: int) -> Iterator[Tensor]:
        for first in range(start, len(VALUES), BATCH):
            if self.stop is not None and first >= self.stop:
                raise KeyboardInterrupt
            self.computed.append(first)
            yield VALUES[first : first + BATCH]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(features, "_BLOCK_SECONDS", 0.0)
    return tmp_path / "features" / "key.npy"


def stopped(path: Path, stop: int) -> Pass:
    halted = Pass(stop)
    with pytest.raises(KeyboardInterrupt):
        cached_features(path, len(VALUES), halted)
    return halted


def test_a_stopped_pass_goes_on_from_its_last_block(path: Path) -> None:
    assert stopped(path, 40).computed == [0, 8, 16, 24, 32]
    assert not path.exists()
    assert stopped(path, 64).computed == [40, 48, 56]
    rest = Pass()
    assert torch.equal(cached_features(path, len(VALUES), rest), VALUES)
    assert rest.computed == [64, 72, 80, 88, 96]
    assert list(path.parent.iterdir()) == [path]
    again = Pass(stop=0)
    assert torch.equal(cached_features(path, len(VALUES), again), VALUES)


def test_a_pass_of_all_blocks_computes_nothing(path: Path) -> None:
    cached_features(path, len(VALUES), Pass())
    blocks = path.with_suffix(".blocks")
    blocks.mkdir()
    np.save(blocks / "0.npy", np.load(path))
    path.unlink()
    rest = Pass(stop=0)
    assert torch.equal(cached_features(path, len(VALUES), rest), VALUES)


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "other width", "missing", "too long", "float64"]
)
def test_what_follows_a_damaged_block_is_computed_again(path: Path, damage: str) -> None:
    stopped(path, 40)
    block = path.with_suffix(".blocks") / "16.npy"
    whole = block.read_bytes()
    values = np.load(block)
    if damage == "cut":
        block.write_bytes(whole[:-5])
    elif damage == "empty":
        block.write_bytes(b"")
    elif damage == "missing":
        block.unlink()
    else:
        wrong = {"other width": values[:, :2], "too long": np.zeros((90, 3), np.float32)}
        np.save(block, wrong.get(damage, values.astype(np.float64)))
    rest = Pass()
    assert torch.equal(cached_features(path, len(VALUES), rest), VALUES)
    assert rest.computed[0] == 16


def test_blocks_left_by_a_process_that_was_killed_at_the_end_are_removed(path: Path) -> None:
    cached_features(path, len(VALUES), Pass())
    path.with_suffix(".blocks").mkdir()
    cached_features(path, len(VALUES), Pass(stop=0))
    assert list(path.parent.iterdir()) == [path]


SCRIPT = """
import functools, os, signal, sys
import mlbench
from mlbench.runs import ingredients
from mlbench.training import embed, features
features._BLOCK_SECONDS = 0.0
stop, passes = int(sys.argv[3]), [0]

def batches(network, source, *, start=0, progress=None):
    for batch in embed.embed_batches(network, source, start=start, batch_size=4):
        passes[0] += 1
        yield batch
        if passes[0] == stop:
            os.kill(os.getpid(), signal.SIGKILL)

ingredients.embed_batches = batches
settings = {"input.size": 16, "input.test_resize": 20, "backbone.trunk": "frozen",
            "backbone.weights": sys.argv[2], "schedule.epochs": 1, "schedule.milestones": [],
            "head.dim": 8, "batch.size": 16, "evaluation.nmi_restarts": 1}
record = mlbench.run("npairs", dataset="folder:" + sys.argv[1], settings=settings)
print(passes[0], record.metrics)
"""


def test_a_run_that_is_killed_in_the_feature_pass_computes_the_rest(
    photos: Path, tmp_path: Path
) -> None:
    from mlbench.registry import BACKBONES

    weights = tmp_path / "weights.pt"
    torch.save(BACKBONES.get("convnet").load()("none", None).trunk.state_dict(), weights)

    def run(cache: str, stop: int) -> tuple[int, str]:
        environment = {**os.environ, "MLBENCH_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(photos), str(weights), str(stop)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode, done.stdout

    code, whole = run("whole", 0)
    assert code == 0
    assert whole.startswith("12 ")  # 24 images a side in batches of four
    assert run("killed", 5) == (-signal.SIGKILL, "")
    code, rest = run("killed", 0)
    assert code == 0
    assert rest == "7 " + whole.removeprefix("12 ")  # the five blocks were there
