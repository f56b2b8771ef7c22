"""Totals by class, drawn from a model."""

from __future__ import annotations

import numpy as np

from mlbench.comparison.crossed import ClassTotals

Rows = dict[str, ClassTotals]


def drawn(
    seed: int,
    runs: tuple[int, ...],
    classes: int,
    *,
    of_class: float = 0.05,
    of_seed: float = 0.01,
    hits: bool = False,
) -> Rows:
    rng = np.random.default_rng(seed)
    queries = rng.integers(10, 40, classes)
    rows = {}
    for number, count in enumerate(runs):
        share = rng.normal(0.5, of_class, classes) + rng.normal(0, of_seed, (count, 1))
        share = np.clip(share + rng.normal(0, 0.05, (count, classes)), 0, 1)
        totals = rng.binomial(queries, share) if hits else queries * share
        rows[f"loss{number}"] = ClassTotals(totals, queries)
    return rows
