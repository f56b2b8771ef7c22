"""The simulation of the intervals, its quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "stress" / "intervals.py"


def test_the_quick_simulation_prints_every_case_and_covers(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rates = json.loads(file.read_text())
    assert done.stdout.count("drawn") == len(rates) == 3
    for each in rates:
        assert f"{each['pair']:.3f}".removeprefix("0")[:4] in done.stdout
        assert each["pair"] >= 0.9
        assert each["error"] <= 0.15  # 40 trials: a rate of 0.05 has a standard error of 0.034
    assert [each["power"] is None for each in rates] == [True, True, False]
    assert rates[2]["power"] > 0.2
