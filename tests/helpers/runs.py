from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import RunSpec
from mlbench.records.migrations import SCHEMA_VERSION
from mlbench.records.provenance import Provenance
from mlbench.records.record import (
    Cost,
    DatasetFacts,
    EpochRow,
    RunRecord,
)
from mlbench.records.totals import RunTotals

PLAN = make_plan(Request(losses=("softtriple", "npairs"), seeds=3))


RUNS = PLAN.runs()


def record(spec: RunSpec, recall: float = 0.5, **changes: Any) -> RunRecord:
    made = RunRecord(
        schema_version=SCHEMA_VERSION,
        recipe_id=spec.recipe.recipe_id,
        recipe=spec.recipe,
        loss=spec.loss.name,
        loss_source="built-in",
        params=dict(spec.loss.params),
        seed=spec.seed,
        fold=spec.fold,
        dataset=DatasetFacts("glyphs", "f" * 64, 100, 10, 90, 9, ()),
        protocol_version=1,
        weights_id="none",
        status="ok",
        selected_epoch=3,
        metrics={"R@1": recall, "R@8": 0.9, "R@2": recall + 0.1, "NMI": 0.3, "MAP@R": 0.2}
        | {"R@4": recall + 0.2}
        | {"R-Precision": 0.25, "n_query": 90, "n_gallery": 90, "n_lone": 0},
        loss_report={"distinct_centers": 2.5},
        curve=(EpochRow(0, 1.5, 0.1, None),),
        cost=Cost(100, {"train": 1.0}, 100.0, 50.0, 0),
        provenance=Provenance(
            "0", "s", "", False, "3", {"torch": "2"}, "cpu", "chip", "", 2, "L", "eager"
        ),
        queries_sha256=None,
        class_totals=None,
    )
    return replace(made, **changes)


def with_hits(made: RunRecord, hits: npt.ArrayLike) -> RunRecord:
    """Give a record totals by class, with these hits at 1 and the R@1 that they make."""
    counts = np.asarray(hits, dtype=np.float64)
    metrics = made.metrics | {"R@1": float(counts.sum()) / made.metrics["n_query"]}
    made = with_totals(replace(made, metrics=metrics))
    assert made.totals is not None
    sums = {**made.totals.sums, "R@1": counts}
    return replace(made, class_totals=replace(made.totals, sums=sums).pack())


def with_totals(made: RunRecord) -> RunRecord:
    """Give a record totals by class that add up to its metrics, the same in each class."""
    count = made.dataset.test_classes
    queries = np.full(count, made.metrics["n_query"] // count)
    names = [name for name in made.metrics if name[:2] in ("R@", "MA", "R-")]
    sums = {name: made.metrics[name] * queries.astype(np.float64) for name in names}
    totals = RunTotals(count + np.arange(count), queries, sums)
    return replace(made, class_totals=totals.pack())
