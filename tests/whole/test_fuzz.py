"""Damaged input of every kind ends in a valid result or one line; a loss may turn NaN."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.settings import QUICK

from mlbench.records import store

ROOT = Path(__file__).parents[2]


def test_a_few_hundred_damaged_inputs() -> None:
    """The whole of it: ``python stress/fuzz``, 10,000 inputs."""
    command = [sys.executable, str(ROOT / "stress" / "fuzz"), "--count", "300", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "records" in done.stdout


PLUGIN = """
import mlbench, torch

@mlbench.register_loss("turns_nan", images_per_class=2)
def turns_nan(num_classes, embedding_dim, *, after: int = 2):
    \"\"\"Becomes NaN after some steps.\"\"\"
    return TurnsNan(after)

class TurnsNan(torch.nn.Module):
    def __init__(self, after):
        super().__init__()
        self.left = after

    def forward(self, embeddings, labels):
        self.left -= 1
        return embeddings.square().sum() * (float("nan") if self.left < 0 else 1.0)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder that is a whole installed plugin."""
    facts = tmp_path / "site" / "turns_nan-2.5.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: turns-nan\nVersion: 2.5\n")
    (facts / "entry_points.txt").write_text("[mlbench.losses]\nturns_nan = turns_nan_loss\n")
    (facts.parent / "turns_nan_loss.py").write_text(PLUGIN)
    return facts.parent


def test_a_loss_that_turns_nan_is_recorded_and_the_others_go_on(
    photos: Path, plugin: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    sets = [f"--set={key}={value}" for key, value in QUICK.items()]
    command = [sys.executable, "-m", "mlbench", "run", "--losses", "turns_nan,npairs", *sets]
    command += ["--dataset", f"folder:{photos}", "--device", "cpu", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(plugin), "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    made = {record.loss: record for record in store.read_results(out).records.values()}
    assert made["npairs"].status == "ok"
    bad = made["turns_nan"]
    assert (bad.status, bad.metrics, bad.loss_source) == ("diverged", {}, "turns-nan 2.5")
    assert [row.loss for row in bad.curve][-1] is None
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("turns_nan"))
    assert "(1 diverged)" in line
