"""Make the results folder of a large benchmark, as ``mlbench table`` would find it.

    python benchmarks/speed/records.py FOLDER [--recipes 20] [--losses 25] [--seeds 20]

Records are drawn, not measured: each has the size and the form of a run on CUB-200-2011 (5,924
queries of 100 classes, 50 epochs), and goes through the same code to the disk. Queries have a
difficulty, losses and seeds differ a little, so that tables hold both ties and differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlbench.metrics.evaluation import QueryResults, summarize
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec
from mlbench.records import store
from mlbench.records.migrations import SCHEMA_VERSION
from mlbench.records.provenance import Provenance
from mlbench.records.record import Cost, DatasetFacts, EpochRow, RunRecord
from mlbench.records.totals import totals_by_class
from mlbench.registry import LOSSES

QUERIES, EPOCHS = 5924, 50
KS = (1, 2, 4, 8)
CLASSES = np.arange(100, 200)
LABELS = np.sort(np.arange(QUERIES) % len(CLASSES))


def recipes(count: int) -> Iterator[Recipe]:
    """Yield recipes that differ in the length of the embedding."""
    recipe = make_plan(Request(recipe="frozen", losses=("softtriple",))).recipe
    for number in range(count):
        yield replace(recipe, head=replace(recipe.head, dim=16 * (number + 1)))


def losses(count: int) -> list[LossSpec]:
    """Return the registered losses, then SoftTriple with other parameters up to ``count``."""
    named = [LossSpec.of(e, {}) for e in LOSSES.entries() if not e.prefix]
    entry = LOSSES.get("softtriple")
    more = [LossSpec.of(entry, {"centers_per_class": k}) for k in range(2, 2 + count)]
    return (named + more)[:count]


def queries(rng: np.random.Generator, quality: float) -> QueryResults:
    """Draw the per-query results of a run."""
    difficulty = np.random.default_rng(0).normal(size=QUERIES)
    ease = difficulty + quality + rng.normal(0, 0.7, QUERIES)
    return QueryResults(
        ks=KS,
        neighbors=np.empty((QUERIES, 0), dtype=np.int64),
        hits=ease[:, None] + 0.5 * np.log2(KS) > 0.3,
        ap_at_r=1 / (1 + np.exp(3 - ease)),
        r_precision=1 / (1 + np.exp(2 - ease)),
        relevant=np.full(QUERIES, 58),
        n_gallery=QUERIES,
    )


def record(spec: RunSpec, rng: np.random.Generator, found: QueryResults) -> RunRecord:
    """Return a record whose metrics are those of the drawn queries."""
    curve = tuple(
        EpochRow(epoch, float(3 * np.exp(-epoch / 10) + rng.random()), float(rng.random()), None)
        for epoch in range(EPOCHS)
    )
    versions = {"torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31", "numpy": "2.4.6"}
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        recipe_id=spec.recipe.recipe_id,
        recipe=spec.recipe,
        loss=spec.loss.name,
        loss_source="built-in",
        params=dict(spec.loss.params),
        seed=spec.seed,
        fold=None,
        dataset=DatasetFacts("cub200", "8" * 64, 5864, 100, QUERIES, 100, ()),
        protocol_version=1,
        weights_id="imagenet:579344248a93",
        status="ok",
        selected_epoch=EPOCHS - 1,
        metrics={**summarize(found), "NMI": float(rng.normal(0.6, 0.01))},
        loss_report={},
        curve=curve,
        cost=Cost(293200, {"train": 17.5, "evaluate": float(rng.random())}, 16744.7, 1275.3, 0),
        provenance=Provenance(
            *("0.1.0", "0" * 12, "0" * 40, False, "3.11.7", versions),
            *("cpu", "Intel(R) Xeon(R) Processor, 2 cores", "", 1, "Linux x86_64", "eager"),
        ),
        queries_sha256=None,
        class_totals=totals_by_class(found.scores, LABELS, CLASSES).pack(),
    )


def make(folder: Path, n_recipes: int, n_losses: int, n_seeds: int) -> None:
    """Write one record for every recipe, loss and seed."""
    for recipe in recipes(n_recipes):
        for number, loss in enumerate(losses(n_losses)):
            for seed in range(n_seeds):
                rng = np.random.default_rng([recipe.head.dim, number, seed])
                found = queries(rng, 0.02 * number + rng.normal(0, 0.02))
                spec = RunSpec(recipe, loss, seed)
                store.save(folder, record(spec, rng, found), None)


def main() -> None:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("recipes", 20), ("losses", 25), ("seeds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    make(given.folder, given.recipes, given.losses, given.seeds)


if __name__ == "__main__":
    main()
