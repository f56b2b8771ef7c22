"""Runs on a table of images: its groups, its gallery and its validation images take effect."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK

import mlbench
from mlbench.metrics.evaluation import QueryResults, evaluate_queries, summarize
from mlbench.recipes.plan import Request, make_plan
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import run_one


def table_of(photos: Path, header: str, cells: Any, splits: str = "train train test test") -> Path:
    """Write a table of the photographs: a class to each split, and further cells."""
    images = [(split, number, i) for number, split in enumerate(splits.split()) for i in range(8)]
    lines = [f"class{k}/{i}.png,class{k},{split}{cells(split, i)}" for split, k, i in images]
    (photos / "all.csv").write_text("\n".join([f"path,label,split{header}", *lines]))
    return photos / "all.csv"


def run_with_embeddings(table: Path) -> tuple[mlbench.RunRecord, torch.Tensor, QueryResults]:
    request = Request(
        losses=("softtriple",), dataset=f"table:{table}", settings=tuple(QUICK.items())
    )
    plan = make_plan(request)
    made = Ingredients(plan.recipe, plan.files, torch.device("cpu"), lambda *_: None)
    kept = []
    record, queries = run_one(
        plan.runs()[0], made, keep=lambda *arguments: kept.append(arguments[-1])
    )
    assert queries is not None
    return record, kept[0], queries


def test_groups_are_left_out_of_what_a_query_finds(photos: Path) -> None:
    record, rows, queries = run_with_embeddings(
        table_of(photos, ",group", lambda split, i: f",{split}{i // 6}")
    )
    labels, groups = np.arange(16) // 8, np.arange(16) % 8 // 6
    expected = summarize(
        evaluate_queries(rows, labels, groups=groups, ks=record.recipe.evaluation.ks)
    )
    assert {name: record.metrics[name] for name in expected} == expected
    assert queries.relevant.tolist() == [2 if i < 6 else 6 for i in np.arange(16) % 8]


def test_a_gallery_that_holds_the_queries_does_not_give_them_back(photos: Path) -> None:
    record, rows, _ = run_with_embeddings(
        table_of(
            photos,
            ",is_query,is_gallery",
            lambda split, i: f",{int(split == 'test' and i < 3)},{int(split == 'test')}",
        )
    )
    labels, asking = np.arange(16) // 8, np.flatnonzero(np.arange(16) % 8 < 3)
    assert (record.metrics["n_query"], record.metrics["n_gallery"]) == (6, 16)
    assert len(rows) == 22
    expected = summarize(
        evaluate_queries(
            rows[:6],
            labels[asking],
            gallery=rows[6:],
            gallery_labels=labels,
            groups=asking,
            gallery_groups=np.arange(16),
            ks=record.recipe.evaluation.ks,
        )
    )
    assert {name: record.metrics[name] for name in expected} == expected


def test_validation_images_of_the_table_choose_the_epoch(photos: Path) -> None:
    splits = "train train validation validation test test"
    table = table_of(photos, "", lambda *_: "", splits)
    settings = QUICK | {"selection.rule": "validation", "selection.folds": 1}
    record = mlbench.run("softtriple", dataset=f"table:{table}", settings=settings, fold=0)
    assert (record.dataset.train_images, record.dataset.test_images) == (16, 16)
    scores = [row.score for row in record.curve]
    assert None not in scores
    assert record.selected_epoch == int(np.argmax(np.array(scores, float)))

    plain = mlbench.run("softtriple", dataset=f"table:{table}", settings=QUICK)
    assert [row.loss for row in plain.curve] == [row.loss for row in record.curve]


@pytest.mark.parametrize(
    ("splits", "folds", "message"),
    [
        ("train train test test", 1, "table:all.csv has none; use 2 or more"),
        (
            "train train validation validation test test",
            2,
            "so 2 folds are not drawn; use --folds 1",
        ),
    ],
)
def test_folds_that_do_not_go_with_the_table_are_refused(
    photos: Path, splits: str, folds: int, message: str
) -> None:
    table = table_of(photos, "", lambda *_: "", splits)
    with pytest.raises(mlbench.MlbenchError, match=message):
        mlbench.run(
            "softtriple",
            dataset=f"table:{table}",
            settings=QUICK | {"selection.folds": folds},
            fold=0,
        )
