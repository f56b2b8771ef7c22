from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.runs import record
from helpers.settings import QUICK
from matplotlib.patches import Rectangle
from PIL import Image

from mlbench.cli import main
from mlbench.comparison.estimates import Estimate
from mlbench.comparison.factors import FACTORS, factor_of
from mlbench.comparison.judgement import Scope
from mlbench.comparison.ladder import Gain, RungResult, climb, ladder
from mlbench.errors import MlbenchError
from mlbench.metrics.evaluation import evaluate_queries, summarize
from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.recipes.reading import load_recipe
from mlbench.records import store
from mlbench.report.drawings import save_picture, waterfall
from mlbench.tables.layout import ladder_sheet


def plan(recipe: str, **request: Any) -> Plan:
    return make_plan(Request(recipe=recipe, losses=("softtriple",), **request))


def test_every_field_belongs_to_a_factor() -> None:
    keys = [*load_recipe("paper").flat(), "loss.la"]
    assert {factor_of(key) for key in keys} == set(FACTORS)
    assert factor_of("input.normalization") == "input"
    assert factor_of("input.test_resize") == "schedule and crop"
    assert factor_of("loss.la") == "loss parameters"


def test_a_cumulative_ladder_ends_at_the_top() -> None:
    start, end = plan("blog"), plan("paper")
    rungs = ladder(start, end)
    assert [rung.factor for rung in rungs] == [
        "",
        "input",
        "batch norm",
        "learning rates",
        "loss parameters",
        "eps and decay",
        "head",
        "schedule and crop",
        "backbone",
    ]
    assert rungs[0].plan == start
    assert (rungs[-1].plan.recipe, rungs[-1].plan.losses) == (end.recipe, end.losses)
    assert rungs[1].changes["input.normalization"] == ("none", "backbone")
    assert rungs[4].changes["loss.la"] == (30.0, 20.0)
    assert len({rung.plan.recipe.recipe_id for rung in rungs}) == 8  # loss parameters: no recipe


def test_a_parameter_that_only_the_start_sets_is_left_out_at_the_top() -> None:
    loss = "pml:TripletMarginLoss"
    start = make_plan(Request(losses=(loss,), settings=((f"{loss}.margin", 0.1),)))
    end = make_plan(Request(losses=(loss,)))
    assert ladder(start, end)[-1].plan.losses == end.losses


def test_recipes_of_two_data_sets_are_refused() -> None:
    with pytest.raises(MlbenchError, match="two data sets, cub200 and glyphs: choose one"):
        ladder(plan("blog"), plan("default"))


def test_single_mode_changes_one_factor_of_the_start() -> None:
    start = plan("blog")
    for rung in ladder(start, plan("paper"), "single")[1:]:
        before = {**start.recipe.flat(), **{f"loss.{k}": v for k, v in start.losses[0].params}}
        after = rung.plan.recipe.flat() | {f"loss.{k}": v for k, v in rung.plan.losses[0].params}
        changed = {key for key in after if after[key] != before[key]}
        assert changed == set(rung.changes)
        assert {factor_of(key) for key in changed} == {rung.factor}


def test_what_cannot_run_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    rungs = ladder(plan("blog"), plan("paper"))

    def run(given: Plan) -> Any:
        if given.recipe.backbone.name == "bn_inception":
            raise MlbenchError("no weights here")
        return {}

    results = climb(rungs, run)
    assert len(results) == len(rungs)
    assert results[-1].problem == "no weights here"
    assert results[0].problem == "every run failed"
    save_picture(waterfall(results, "title"), tmp_path / "w.png")
    with pytest.raises(MlbenchError, match="cannot write the picture"):
        save_picture(waterfall(results), tmp_path / "w.nonsense")


def test_no_gain_is_measured_across_a_rung_that_did_not_run(tmp_path: Path) -> None:
    rungs = ladder(plan("blog"), plan("paper"))
    made = iter(range(len(rungs)))

    def run(given: Plan) -> Any:
        number = next(made)
        if number == 1:
            raise MlbenchError("no")
        rng = np.random.default_rng(number)
        queries = evaluate_queries(rng.normal(size=(40, 4)), np.arange(40) % 5)
        figures = {**summarize(queries), "NMI": 0.5}
        path = store.save(tmp_path, record(given.runs()[0], metrics=figures), queries)
        return {path: store.load(path)}

    gains = [result.gain is not None for result in climb(rungs, run)]
    assert gains == [False, False, False, *[True] * (len(rungs) - 3)]


def test_ablate_prints_the_gains_and_draws_them(photos: Path, tmp_path: Path) -> None:
    settings = QUICK | {"backbone.name": "convnet", "backbone.weights": "none"}
    arguments = ["ablate", "--from", "blog", "--to", "cpu", "--dataset", f"folder:{photos}"]
    arguments += [f"--set={key}={value}" for key, value in settings.items()]
    arguments += ["--seeds", "2", "--out", str(tmp_path), "--picture", str(tmp_path / "w.png")]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    for text in ("start", "input", "batch norm", "input.normalization none", "gain", "±"):
        assert text in first.stdout
    with Image.open(tmp_path / "w.png") as picture:
        assert picture.width > 500
    again = CliRunner().invoke(main, arguments)
    assert again.stdout == first.stdout
    assert "already there" in again.stderr


def test_plans_keep_their_seeds() -> None:
    start = replace(plan("blog"), seeds=3)
    assert {rung.plan.seeds for rung in ladder(start, plan("paper"))} == {3}


def test_the_waterfall_labels_gains_and_ends_in_the_target() -> None:
    rungs = ladder(plan("blog"), plan("paper"))[:4]
    recalls = [0.5, 0.6, None, 0.55]
    gains = [None, Gain(0.1, 0.02, Scope.CLASSES_AND_SEEDS), None, None]
    results = [
        RungResult(rung, recall and Estimate(recall, None, 1), gain, "" if recall else "no")
        for rung, recall, gain in zip(rungs, recalls, gains, strict=True)
    ]
    (axes,) = waterfall(results).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["start", "input", "batch norm", "learning rates", "target"]
    labels = {text.get_text() for text in axes.texts}
    assert labels == {"50.0", "+10.0 ± 2.0", "not run", "55.0"}  # no gain across what was not run
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [pytest.approx((50, 10))]

    (single,) = waterfall(results, mode="single").axes
    assert [label.get_text() for label in single.get_yticklabels()] == names[:-1]


def test_a_reason_is_told_once() -> None:
    results = [
        RungResult(rung, None, None, "no weights") for rung in ladder(plan("blog"), plan("paper"))
    ]
    notes = ladder_sheet(results, "title").notes
    assert notes[0].startswith("start, input, batch norm")
    assert notes[0].endswith("backbone not run: no weights")
    assert sum("no weights" in note for note in notes) == 1
