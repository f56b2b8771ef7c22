"""Records of the recipe-factorial study: its script writes the recipes, the figures are drawn."""

from __future__ import annotations

import functools
import runpy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.runs import record
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import Recipe, RunSpec
from mlbench.records.record import RunRecord
from mlbench.records.totals import RunTotals

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "factorial.py"
Records = dict[str, RunRecord]


def with_recall(made: RunRecord, recall: float, rng: np.random.Generator) -> RunRecord:
    """Give a record totals by class of about this R@1, and of half of it as MAP@R."""
    shares = np.clip(recall + rng.normal(0, 0.01, 9), 0, 1)
    hits = {f"R@{k}": shares * 10 for k in (1, 2, 4, 8)}
    precision = dict.fromkeys(("MAP@R", "R-Precision"), shares * 5)
    packed = RunTotals(np.arange(9), np.full(9, 10), hits | precision).pack()
    return replace(made, class_totals=packed, metrics=made.metrics | packed.unpack().means)


def _recall(recipe: Recipe, la: object) -> float:
    share = 0.3 + 0.05 * (recipe.input.normalization == "backbone")
    return share + 0.02 * (la == 20.0) - 0.01 * (recipe.head.kind == "linear")


@functools.cache
def _made() -> Records:
    write: Callable[[Path], None] = runpy.run_path(str(SCRIPT))["main"]
    rng, records = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for path in sorted(Path(folder).glob("*.toml")):
            plan = make_plan(Request(recipe=str(path), losses=("softtriple",)))
            loss, kind = plan.losses[0], path.name[:3]
            number = int(path.stem[-2:].strip("-")) if kind != "lon" else 0
            made = record(RunSpec(plan.recipe, loss, number + 100 * (kind == "cor")))
            recall = _recall(plan.recipe, dict(loss.params)["la"])
            records[path.stem] = with_recall(made, recall, rng)
    return records


def study_records() -> Records:
    """Return the 22 runs by the name of their recipe's file.

    Input is worth 5 points of R@1, the scale of the loss 2, the linear head -1, the rest nothing.
    """
    return dict(_made())
