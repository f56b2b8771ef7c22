import os
import signal
from pathlib import Path

import numpy as np
import pytest

# Tests demand equal bits, which holds on a CPU. Torch looks for GPUs when it is imported.
if not os.environ.get("MLBENCH_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from PIL import Image

# Tests are small: on a busy machine, threads that wait for each other cost ten times the work.
torch.set_num_threads(1)
# A shell ignores Ctrl-C in what it starts in the background; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, cache_folder: str) -> None:
    """Keep the user's cache out of the tests; one cache for all, as glyphs take seconds to draw."""
    monkeypatch.setenv("MLBENCH_CACHE", cache_folder)


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as where there is no terminal; processes of pytest-xdist are told that of one."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six classes of eight small images, told apart by colour; the first three train."""
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "photos" / f"class{number}"
        folder.mkdir(parents=True)
        colour = rng.integers(40, 215, 3)
        for i in range(8):
            noise = rng.integers(-30, 30, (36, 40, 3))
            pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"
