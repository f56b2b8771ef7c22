import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK
from PIL import Image

from mlbench.comparison.comparison import compare
from mlbench.errors import MlbenchError, MlbenchWarning
from mlbench.interfaces import LossEntry
from mlbench.losses import BUILTIN
from mlbench.recipes.plan import Files, Plan, Request, make_plan
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records.trials import SearchRange, Trial, Tuned, validation_recipe
from mlbench.registry import LOSSES
from mlbench.runs.executors.dispatch import run_all
from mlbench.runs.executors.maker import Inline
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.search import distributions, parse_range, search_ranges, with_params
from mlbench.runs.tune import evaluate, final_plan, tune
from mlbench.tables.tuning import tuning_sheet

optuna = pytest.importorskip("optuna")

CPU = torch.device("cpu")
SETTINGS = {
    **QUICK,
    "schedule.epochs": 1,
    "schedule.milestones": [],
    "backbone.trunk": "frozen",
    "evaluation.ks": [1],
}


@pytest.fixture
def many(photos: Path) -> Path:
    """Ten classes, of which five train: enough for two folds."""
    rng = np.random.default_rng(1)
    for number in range(6, 10):
        (photos / f"class{number}").mkdir()
        for i in range(4):
            pixels = rng.integers(0, 255, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"class{number}" / f"{i}.png")
    return photos


def plan_of(folder: Path, *losses: str, **settings: object) -> Plan:
    given = tuple({**SETTINGS, **settings}.items())
    return make_plan(Request(dataset=f"folder:{folder}", losses=losses, settings=given))


class Reports(list[tuple[Trial, int, int]]):
    """Collects what is reported, and can break off as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after

    def __call__(self, trial: Trial, number: int, budget: int) -> None:
        self.append((trial, number, budget))
        if len(self) == self.stop_after:
            raise KeyboardInterrupt


def run_tune(
    plan: Plan, trials: int, out: Path, reports: Reports | None = None, ranges: tuple[str, ...] = ()
) -> list[Tuned]:
    told = Reports() if reports is None else reports
    given = tuple(map(parse_range, ranges))
    return tune(plan, trials, out, CPU, lambda *_: None, told, given)


def states(out: Path) -> list[str]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'tune.sqlite3'}")
    trials = [
        trial.state.name
        for summary in storage.get_all_studies()
        for trial in storage.get_all_trials(summary._study_id)
    ]
    storage.remove_session()
    storage.engine.dispose()
    return trials


def test_baselines_cannot_be_tuned(tmp_path: Path) -> None:
    plan = make_plan(Request(losses=("triplet", "features")))
    with pytest.raises(MlbenchError, match="baselines have nothing to tune: features"):
        tune(plan, 1, tmp_path, CPU, lambda *_: None, lambda *_: None)


def test_every_loss_gets_the_same_budget_and_starts_with_its_default(
    many: Path, tmp_path: Path
) -> None:
    plan = plan_of(many, "softmax_norm", "npairs", "proxy_anchor")
    reports = Reports()
    tuned = run_tune(plan, 3, tmp_path / "out", reports)
    assert [len(each.trials) for each in tuned] == [3, 3, 3]
    assert [number for _, number, _ in reports] == [1, 2, 3] * 3
    assert [trial for trial, _, _ in reports] == [t for each in tuned for t in each.trials]
    # With two folds every training image is trained on in one of them.
    assert {trial.images_seen for trial, _, _ in reports} == {training_images(plan)}
    assert [each.default.loss for each in tuned] == list(plan.losses)
    for each in tuned:
        assert len({trial.loss for trial in each.trials}) == 3
        assert each.chosen.score == max(trial.score for trial in each.trials)
        for trial in each.trials:
            entry = LOSSES.get(trial.loss.name)
            assert LossSpec.of(entry, dict(trial.loss.params)) == trial.loss
            for name, (low, high) in entry.search.items():
                assert low <= float(dict(trial.loss.params)[name]) <= high


def training_images(plan: Plan) -> int:
    return len(spec_and_ingredients(plan).images("train"))


def spec_and_ingredients(plan: Plan) -> Ingredients:
    return Ingredients(validation_recipe(plan.recipe), plan.files, CPU, lambda *_: None)


def test_more_trials_go_on_from_those_there_are(many: Path, tmp_path: Path) -> None:
    plan = plan_of(many, "softmax_norm")
    run_tune(plan, 2, tmp_path / "out")
    reports = Reports()
    (resumed,) = run_tune(plan, 4, tmp_path / "out", reports)
    assert [(number, budget) for _, number, budget in reports] == [(3, 4), (4, 4)]
    (at_once,) = run_tune(plan, 4, tmp_path / "other")
    assert resumed == at_once


def test_a_smaller_budget_uses_only_its_share_of_the_store(many: Path, tmp_path: Path) -> None:
    plan = plan_of(many, "softmax_norm")
    (long,) = run_tune(plan, 3, tmp_path)
    reports = Reports()
    (short,) = run_tune(plan, 2, tmp_path, reports)
    assert reports == []
    assert short.trials == long.trials[:2]


@pytest.mark.parametrize("stopped_at", [0, 1])
def test_a_killed_trial_does_not_count(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    plan = plan_of(many, "softmax_norm")
    seen: list[LossSpec] = []

    def killed(loss: LossSpec, ingredients: Ingredients) -> Trial:
        if len(seen) == stopped_at:
            raise KeyboardInterrupt
        seen.append(loss)
        return evaluate(loss, ingredients)

    with monkeypatch.context() as patch:
        patch.setattr("mlbench.runs.tune.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_tune(plan, 3, tmp_path / "out")
    assert states(tmp_path / "out") == ["COMPLETE"] * stopped_at + ["RUNNING"]
    (resumed,) = run_tune(plan, 3, tmp_path / "out")
    assert sorted(states(tmp_path / "out")) == ["COMPLETE"] * 3 + ["FAIL"]
    (at_once,) = run_tune(plan, 3, tmp_path / "other")
    assert resumed == at_once


def test_ctrl_c_between_trials_keeps_them(many: Path, tmp_path: Path) -> None:
    plan = plan_of(many, "softmax_norm")
    with pytest.raises(KeyboardInterrupt):
        run_tune(plan, 3, tmp_path, Reports(stop_after=2))
    assert states(tmp_path) == ["COMPLETE", "COMPLETE"]


def test_another_recipe_or_other_data_start_anew(many: Path, tmp_path: Path) -> None:
    run_tune(plan_of(many, "softmax_norm"), 1, tmp_path)
    next(many.rglob("7.png")).unlink()
    run_tune(plan_of(many, "softmax_norm"), 1, tmp_path)
    run_tune(plan_of(many, "softmax_norm", **{"head.dim": 4}), 1, tmp_path)
    run_tune(plan_of(many, "softmax_norm", **{"selection.folds": 2}), 1, tmp_path)
    assert states(tmp_path) == ["COMPLETE"] * 3, "two folds are the default"


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_trials_need_no_test_side(many: Path, tmp_path: Path, trunk: str) -> None:
    ingredients = spec_and_ingredients(plan_of(many, "softmax_norm", **{"backbone.trunk": trunk}))
    # Whatever is asked of the test side now, labels included, is an AttributeError.
    ingredients.__dict__["dataset"] = replace(ingredients.dataset, test=None)  # type: ignore[arg-type]
    trial = evaluate(
        LossSpec("softmax_norm", (("init", "kaiming-uniform"), ("la", 20.0))), ingredients
    )
    assert 0 < trial.score <= 1


def test_tuning_asks_for_no_test_inputs(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[str] = []
    images = Ingredients.images
    monkeypatch.setattr(
        Ingredients,
        "images",
        lambda ingredients, side: sides.append(side) or images(ingredients, side),
    )
    run_tune(plan_of(many, "npairs"), 2, tmp_path)
    assert set(sides) == {"train"}


def test_a_diverged_trial_counts_as_zero(many: Path, tmp_path: Path) -> None:
    (tuned,) = run_tune(plan_of(many, "npairs", head_lr=1e30), 2, tmp_path)
    assert [(t.score, t.diverged) for t in tuned.trials] == [(0.0, True)] * 2
    assert tuned.chosen is tuned.default


def test_what_was_set_is_not_searched(many: Path, tmp_path: Path) -> None:
    plan = plan_of(many, "proxy_anchor", **{"proxy_anchor.alpha": 500.0})
    (tuned,) = run_tune(plan, 3, tmp_path)
    assert [each.name for each in tuned.searched] == ["margin"]
    assert {dict(t.loss.params)["alpha"] for t in tuned.trials} == {500.0}


def test_a_loss_without_a_search_range_gets_one_trial(many: Path, tmp_path: Path) -> None:
    plan, reports = plan_of(many, "softmax_norm", "pml:ContrastiveLoss"), Reports(stop_after=1)
    with (
        pytest.warns(MlbenchWarning, match="unchanged: pml:ContrastiveLoss; declare"),
        pytest.raises(KeyboardInterrupt),
    ):
        run_tune(plan, 2, tmp_path, reports)  # it is named before the first trial is at its end
    with pytest.warns(MlbenchWarning):
        tuned = run_tune(plan, 2, tmp_path)
    assert [len(each.trials) for each in tuned] == [2, 1]
    assert any(
        "pml:ContrastiveLoss: nothing to search" in n for n in tuning_sheet(tuned, plan, []).notes
    )


def test_the_final_runs_and_their_sheet(many: Path, tmp_path: Path) -> None:
    plan = replace(plan_of(many, "softmax_norm", "npairs", **{"selection.folds": 2}), seeds=2)
    tuned = run_tune(plan, 3, tmp_path)
    final = final_plan(plan, tuned)
    assert final.recipe.selection.folds == 0
    assert set(final.losses) == {t.loss for each in tuned for t in (each.default, each.chosen)}
    outcomes = run_all(final, final.runs(), tmp_path, Inline(), lambda _: None, "cpu")
    records = {o.path: o.record for o in outcomes if o.record is not None}
    assert len(compare(records)) == 1

    sheet = tuning_sheet(tuned, plan, records.values())
    for each, line in zip(tuned, sheet.lines, strict=True):
        loss, trials, _, val_default, val_chosen, _, test_chosen, recalls, gap = line.cells
        found = [r.metrics for r in records.values() if r.spec.loss == each.chosen.loss]
        assert len(found) == 2
        mapr = 50 * sum(m["MAP@R"] for m in found)
        recall = 50 * sum(m["R@1"] for m in found)
        assert (loss, trials) == (each.default.loss.name, "3")
        assert val_default == f"{100 * each.default.score:.1f}"
        assert val_chosen == f"{100 * each.chosen.score:.1f}"
        assert test_chosen.startswith(f"{mapr:.1f} ± ")
        assert f"-> {recall:.1f} ± " in recalls
        assert float(gap) == pytest.approx(100 * each.chosen.score - mapr, abs=0.051)
    (budget,) = [note for note in sheet.notes if "3 trials, trained on" in note]
    assert budget == (
        f"softmax_norm, npairs: 3 trials, trained on {3 * training_images(plan)} images in all"
    )


def test_the_best_trial_is_the_earliest_of_equals() -> None:
    scores = (0.2, 0.5, 0.5)
    trials = [Trial(LossSpec("x", (("a", n),)), s, False, 1) for n, s in enumerate(scores)]
    tuned = Tuned(tuple(trials), (SearchRange("a", 0, 2),))
    assert tuned.chosen is trials[1]


@pytest.mark.parametrize("entry", [e for e in BUILTIN if not e.prefix], ids=lambda e: e.name)
def test_builtin_ranges_hold_the_default_and_can_be_built(entry: LossEntry) -> None:
    spec, recipe = LossSpec.of(entry, {}), load_recipe("default")
    space = distributions(spec, recipe, search_ranges(spec, recipe))
    numbers = [name for name, value in entry.defaults.items() if type(value) in (int, float)]
    assert space or not numbers, "every built-in loss that has numbers has something to tune"
    for name, each in space.items():
        assert each._contains(each.to_internal_repr(entry.defaults[name]))
    for end in (0, 1):
        chosen = with_params(spec, recipe, {name: whole(entry, name, end) for name in space})
        loss = entry.build(4, 8, dict(chosen.params))
        context = ({"step": 10**6},) if entry.context else ()
        x = torch.nn.functional.normalize(torch.randn(16, 8))
        value = loss(x, torch.arange(16) % 4, *context)
        assert torch.isfinite(value)


def whole(entry: LossEntry, name: str, end: int) -> int | float:
    kind = type(entry.defaults[name])
    assert kind in (int, float)
    return int(entry.search[name][end]) if kind is int else float(entry.search[name][end])


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LossSpec]:
    """Declare a loss for one test."""

    def declare(**fields: Any) -> LossSpec:
        entry = LossEntry(name="mine", target="x:y", summary="", **fields)
        monkeypatch.setitem(LOSSES._entries, "mine", entry)
        return LossSpec.of(entry, {})

    return declare


def test_ranges_are_tried_by_their_span(declared: Callable[..., LossSpec]) -> None:
    loss = declared(
        defaults={"a": 1.0, "b": 1.0, "c": 0.0, "d": 4},
        search={"a": (0.5, 5), "b": (0.5, 4.9), "c": (0, 10), "d": (1, 20)},
    )
    kinds, recipe = optuna.distributions, load_recipe("default")
    assert distributions(loss, recipe, search_ranges(loss, recipe)) == {
        "a": kinds.FloatDistribution(0.5, 5, log=True),
        "b": kinds.FloatDistribution(0.5, 4.9),
        "c": kinds.FloatDistribution(0, 10),
        "d": kinds.IntDistribution(1, 20, log=True),
    }


@pytest.mark.parametrize(
    ("defaults", "search"),
    [
        ({"a": 1.0}, {"a": (2, 3)}),
        ({"a": 1.0}, {"b": (0, 3)}),
        ({"a": True}, {"a": (0, 3)}),
        ({"a": "x"}, {"a": (0, 3)}),
        ({"a": 1.0}, {"schedule.milestones": (0, 3)}),
        ({"a": 1.0}, {"schedule.epochs": (90, 100)}),
    ],
)
def test_a_wrong_range_is_named(
    declared: Callable[..., LossSpec],
    defaults: dict[str, float | str],
    search: dict[str, tuple[float, float]],
) -> None:
    loss = declared(defaults=defaults, search=search)
    with pytest.raises(MlbenchError, match=f"loss 'mine': search range {next(iter(search))} = "):
        search_ranges(loss, load_recipe("default"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("schedule.epochs=0:50", "at least 1"),
        ("schedule.epochs=1.5:50", "expected an integer, got 1.5"),
        ("optimizer.lr=-1:2", "at least 0"),
        ("mine.a=0:1e300", "too large"),
    ],
)
def test_a_range_whose_end_is_no_value_is_named(
    declared: Callable[..., LossSpec], text: str, problem: str
) -> None:
    loss = declared(defaults={"a": 1.0})
    name = parse_range(text).name.removeprefix("mine.")
    with pytest.raises(MlbenchError, match=rf"search range: .*\.{name}: .*{problem}"):
        search_ranges(loss, load_recipe("default"), [parse_range(text)])


def test_epochs_and_rates_may_be_searched(declared: Callable[..., LossSpec]) -> None:
    loss = declared(defaults={"a": 1.0}, lr=0.02, search={"optimizer.loss_lr": (1e-3, 0.1)})
    kinds, recipe = optuna.distributions, load_recipe("default")
    given = [
        parse_range(f"schedule.epochs=1:{recipe.schedule.epochs + 20}"),
        parse_range("x.a=0:2"),
    ]
    ranges = search_ranges(loss, recipe, given)
    assert distributions(loss, recipe, ranges) == {
        "optimizer.loss_lr": kinds.FloatDistribution(1e-3, 0.1, log=True),
        "schedule.epochs": kinds.IntDistribution(1, recipe.schedule.epochs + 20, log=True),
    }
    sampled = {"optimizer.loss_lr": 0.03125, "schedule.epochs": 7}
    tuned = with_params(loss, recipe, sampled)
    assert tuned.fields == {"optimizer.loss_lr": 0.0312, "schedule.epochs": 7}
    assert tuned.arguments == {"a": 1.0}, "what its factory takes"
    trained = RunSpec(recipe, tuned, 0).trained
    assert (trained.schedule.epochs, trained.optimizer.loss_lr) == (7, 0.0312)
    assert RunSpec(recipe, tuned, 0).recipe == recipe, "that of the comparison"
    as_it_was = {"optimizer.loss_lr": 0.02, "schedule.epochs": recipe.schedule.epochs}
    assert with_params(loss, recipe, as_it_was) == loss, "the recipe's values stay the recipe's"
    assert search_ranges(tuned, recipe, given) == (), "what was set is not searched"


def test_tuned_epochs_are_those_that_are_trained(many: Path, tmp_path: Path) -> None:
    plan = plan_of(many, "softmax_norm")
    ranges = ("schedule.epochs=1:4", "softmax_norm.la=1:21")
    (tuned,) = run_tune(plan, 3, tmp_path, ranges=ranges)
    images = training_images(plan)
    epochs = [trial.loss.fields.get("schedule.epochs", 1) for trial in tuned.trials]
    assert len(set(epochs)) > 1
    assert [trial.images_seen for trial in tuned.trials] == [n * images for n in epochs]
    notes = "\n".join(tuning_sheet([tuned], plan, []).notes)
    assert (
        "softmax_norm searched la 1 to 21 (log), schedule.epochs 1 to 4: "
        "3 trials, 1.5 per dimension"
    ) in notes
    assert "softmax_norm la=20.0" in notes, "the default is in the outer 5 % of this range"


@pytest.mark.parametrize(
    ("low", "high", "inside", "outside"),
    [(0, 1, [0.051, 0.949], [0, 0.05, 0.95, 1]), (1, 100, [1.26, 79], [1, 1.25, 80, 100])],
)
def test_a_value_at_a_bound(
    low: float, high: float, inside: list[float], outside: list[float]
) -> None:
    searched = SearchRange("a", low, high)
    assert not any(map(searched.ends_at, inside))
    assert all(map(searched.ends_at, outside))


@pytest.mark.parametrize("text", ["la", "la=1", "la=2:1", "la=1:1", "=1:2", "la=nan:2", "la=1:inf"])
def test_a_range_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(MlbenchError, match="expected KEY=LOW:HIGH"):
        parse_range(text)


def test_a_range_for_none_of_the_losses_is_named(many: Path, tmp_path: Path) -> None:
    with pytest.raises(MlbenchError, match=r"'softmax_norm\.lo'; did you mean softmax_norm\.la"):
        run_tune(plan_of(many, "softmax_norm"), 1, tmp_path, ranges=("softmax_norm.lo=1:2",))


def test_new_values_are_rounded_and_the_default_is_not() -> None:
    spec, recipe = LossSpec.of(LOSSES.get("proxy_nca_pp"), {}), load_recipe("default")
    assert with_params(spec, recipe, {"temperature": 1 / 9}) == spec
    tuned = with_params(spec, recipe, {"temperature": 0.0312468})
    assert dict(tuned.params)["temperature"] == 0.0312


@pytest.mark.parametrize("rule", ["validation", "test-best"])
def test_a_recipe_that_selects_epochs_is_refused(many: Path, tmp_path: Path, rule: str) -> None:
    plan = plan_of(many, "npairs", **{"selection.rule": rule, "selection.folds": 2})
    with pytest.raises(MlbenchError, match=r"--set selection\.rule=last"):
        run_tune(plan, 1, tmp_path)


def test_without_optuna_the_extra_is_named(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MlbenchError, match=r"pip install 'dmlbench\[tune\]'"):
        run_tune(plan_of(many, "npairs"), 1, tmp_path)


def test_a_damaged_store_is_named(many: Path, tmp_path: Path) -> None:
    (tmp_path / "tune.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(MlbenchError, match=r"tune\.sqlite3: no usable store") as caught:
        run_tune(plan_of(many, "npairs"), 1, tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_data_are_named_before_there_is_a_store(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path / "x", "npairs"), files=Files(tmp_path))
    with pytest.raises(MlbenchError, match="is not a folder"):
        run_tune(plan, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        "delete from trial_user_attributes",
        "update trial_user_attributes set value_json = '\"x\"'",
        "update trial_user_attributes set value_json = '{'",
        "update trial_values set value = 7",
        "delete from trial_values",
        "update trials set state = 'COMPLET'",
        "delete from trial_params",
        "update trial_params set distribution_json = '{}'",
        "update study_directions set direction = 'UP'",
    ],
)
def test_a_damaged_store_is_one_line(many: Path, tmp_path: Path, damage: str) -> None:
    plan = plan_of(many, "npairs")
    run_tune(plan, 1, tmp_path)
    base = sqlite3.connect(tmp_path / "tune.sqlite3")
    with base:
        base.execute(damage)
    base.close()
    with pytest.raises(MlbenchError, match=r"tune\.sqlite3: no usable store of trials") as error:
        run_tune(plan, 1, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(6))
def test_a_store_with_flipped_bytes_is_one_line_or_right(
    many: Path, tmp_path: Path, seed: int
) -> None:
    plan, path = plan_of(many, "npairs"), tmp_path / "tune.sqlite3"
    run_tune(plan, 1, tmp_path)
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(seed).integers(len(content), size=200):
        content[position] ^= 0x55
    path.write_bytes(content)
    with suppress(MlbenchError):
        run_tune(plan, 1, tmp_path)
