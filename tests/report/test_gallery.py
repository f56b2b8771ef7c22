"""Runs whose queries are searched in a gallery, and the k of R@k of each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import trees
from helpers.settings import QUICK
from torch import Tensor

import mlbench
from mlbench.cli import main
from mlbench.datasets import inshop, sop
from mlbench.recipes.plan import Request, make_plan, parse_setting
from mlbench.recipes.reading import load_recipe
from mlbench.runs import evaluation
from mlbench.runs import run as run_module
from mlbench.runs.ingredients import Ingredients

SETTINGS = QUICK | {"schedule.epochs": 1, "schedule.milestones": []}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, side in zip(("_TRAIN", "_QUERY", "_GALLERY"), trees.INSHOP_SIDES, strict=True):
        monkeypatch.setattr(inshop, name, side)
    trees.inshop(tmp_path / "data" / "inshop")
    return tmp_path / "data"


def run(shop: Path, loss: str = "softtriple", **options: Any) -> mlbench.RunRecord:
    settings = SETTINGS | options.pop("settings", {})
    return mlbench.run(loss, dataset="inshop", data_root=shop, settings=settings, **options)


def test_queries_are_searched_in_the_gallery(shop: Path) -> None:
    record = run(shop)
    metrics = record.metrics
    assert (metrics["n_query"], metrics["n_gallery"], metrics["n_lone"]) == (8, 12, 0)
    assert [name for name in metrics if name.startswith("R@")] == ["R@1", "R@10", "R@20", "R@30"]
    assert metrics["R@20"] == 1  # only 12 can be found, all of them
    assert (record.dataset.train_images, record.dataset.test_images) == (16, 8)


def test_metrics_are_those_of_a_search_by_hand(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []

    def keep(embeddings: Tensor, ingredients: Ingredients, seed: int) -> evaluation.Evaluation:
        kept.append(embeddings)
        return evaluate(embeddings, ingredients, seed)

    evaluate = evaluation.evaluate_run
    monkeypatch.setattr(run_module, "evaluate_run", keep)
    metrics = run(shop).metrics
    unit = torch.nn.functional.normalize(kept[0].double()).numpy()
    queries, gallery = unit[:8], unit[8:]
    order = np.argsort(-queries @ gallery.T, axis=1, kind="stable")
    right = np.repeat(np.arange(4), 3)[order] == np.repeat(np.arange(4), 2)[:, None]
    assert metrics["R@1"] == pytest.approx(right[:, 0].mean())
    assert metrics["R@10"] == pytest.approx(right[:, :10].any(axis=1).mean())
    ranked = [hits[:3] * np.cumsum(hits[:3]) / np.arange(1, 4) for hits in right]
    assert metrics["MAP@R"] == pytest.approx(np.mean([precision.sum() / 3 for precision in ranked]))
    by_api = mlbench.evaluate(
        unit[:8],
        np.repeat(np.arange(4), 2),
        gallery=unit[8:],
        gallery_labels=np.repeat(np.arange(4), 3),
        ks=(1, 10, 20, 30),
        nmi_restarts=1,
    )
    assert metrics["NMI"] == pytest.approx(by_api["NMI"])


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone.trunk": "frozen"},
        {"selection.rule": "test-best", "schedule.epochs": 2},
        {"selection.rule": "validation", "selection.folds": 2},
        {"backbone.trunk": "frozen", "selection.rule": "validation", "selection.folds": 2},
        {"backbone.trunk": "frozen", "selection.rule": "test-best"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_way_of_training_and_selecting(shop: Path, settings: dict[str, Any]) -> None:
    record = run(shop, settings=settings, fold=0 if "selection.folds" in settings else None)
    assert record.status == "ok"
    assert (record.metrics["n_query"], record.metrics["n_gallery"]) == (8, 12)
    if record.recipe.selection.rule == "test-best":
        scores = [row.score for row in record.curve if row.score is not None]
        assert record.metrics["R@1"] == max(scores)


def mlbench_cli(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_the_command_line_to_the_table(shop: Path, tmp_path: Path) -> None:
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    out = tmp_path / "out"
    options = ("--dataset", "inshop", "--data-root", shop, "--out", out, "--losses", "npairs")
    table = mlbench_cli("run", *options, *settings)
    for text in ("R@1 ", "R@10", "R@20", "R@30", "untrained", "features", "pca", "npairs"):
        assert text in table
    assert "R@2 " not in table
    again = mlbench_cli("table", out, "--reference")
    assert again == table  # nothing is published for it here, so nothing is added


def test_products_have_their_own_ks_and_published_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sop, "_TRAIN", trees.SOP_TRAIN)
    monkeypatch.setattr(sop, "_TEST", trees.SOP_TEST)
    trees.sop(tmp_path)
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    out = tmp_path / "out"
    options = ("--dataset", "sop", "--data-root", tmp_path, "--out", out)
    mlbench_cli("run", *options, "--losses", "softmax_norm", *settings)
    table = mlbench_cli("table", out, "--reference", "--format", "markdown")
    assert table.count("R@1000") == 2
    assert "published for sop" in table
    assert "R@4" not in table


def ks_of(*settings: str, **request: Any) -> tuple[int, ...]:
    plan = make_plan(Request(settings=tuple(parse_setting(s) for s in settings), **request))
    return plan.recipe.evaluation.ks


USUAL, PRODUCTS, SHOP = (1, 2, 4, 8), (1, 10, 100, 1000), (1, 10, 20, 30)


def test_ks_follow_the_data_set_unless_they_are_chosen(tmp_path: Path) -> None:
    assert ks_of(recipe="frozen") == ks_of(dataset="cars196") == USUAL
    assert ks_of(recipe="frozen", dataset="sop") == ks_of("data.name=sop") == PRODUCTS
    assert ks_of(recipe="paper", dataset="inshop") == SHOP
    assert ks_of("ks=[1, 5]", dataset="sop") == (1, 5)
    assert ks_of("evaluation.ks=[1, 2, 4, 8]", dataset="sop") == USUAL
    assert ks_of(dataset=f"folder:{tmp_path}") == USUAL


@pytest.mark.parametrize(
    ("text", "dataset", "expected"),
    [
        ("data.name = 'sop'", None, PRODUCTS),
        ("data.name = 'sop'", "inshop", SHOP),
        ("data.name = 'sop'", "cub200", USUAL),
        ("data.name = 'sop'\nevaluation.ks = [1, 2, 4, 8]", None, USUAL),
        ("evaluation.ks = [1, 3]", "sop", (1, 3)),
        ("schedule.epochs = 3", "sop", PRODUCTS),
    ],
)
def test_ks_of_recipes_that_change_another(
    tmp_path: Path, text: str, dataset: str | None, expected: tuple[int, ...]
) -> None:
    (tmp_path / "mine.toml").write_text(f'base = "frozen"\n{text}\n')
    assert ks_of(recipe=str(tmp_path / "mine.toml"), dataset=dataset) == expected


def test_recipes_of_older_records_keep_their_identity() -> None:
    known = {"default": "c1b233dbcb67", "frozen": "8c30d91a3aac"}
    assert {name: load_recipe(name).recipe_id for name in known} == known
    chosen = make_plan(Request(recipe="frozen", dataset="cub200")).recipe
    assert chosen.recipe_id == known["frozen"]
