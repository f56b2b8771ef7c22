"""The sentence below a table claims what the figures support, and no more."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import record

from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, compare, merge
from mlbench.comparison.statistics import Difference
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records.record import RunRecord
from mlbench.tables.formats import render
from mlbench.tables.layout import sheets

BASELINES = ("untrained", "features", "pca")
Recalls = Mapping[str, tuple[float, ...]]


def records(recalls: Recalls, **changes: str) -> list[RunRecord]:
    """Return records of the given R@1 by loss and seed."""
    losses = tuple(name for name in recalls if name not in BASELINES) or ("npairs",)
    plan = make_plan(Request(losses=losses, settings=tuple(changes.items())))
    specs = {spec.name: spec for spec in plan.losses}
    return [
        record(RunSpec(plan.recipe, specs.get(name, LossSpec(name)), seed), recall)
        for name, values in recalls.items()
        for seed, recall in enumerate(values)
    ]


def compared(given: list[RunRecord]) -> Comparison:
    (comparison,) = compare({Path(f"{number}.json"): r for number, r in enumerate(given)})
    return comparison


def advice(recalls: Recalls) -> str:
    return advise(compared(records(recalls)))


WINS = {
    "features": (0.40, 0.41, 0.40),
    "softtriple": (0.60, 0.61, 0.60),
    "npairs": (0.50, 0.51, 0.51),
}


def test_a_winner_is_named_with_its_margin() -> None:
    text = advice(WINS)
    assert "take softtriple" in text
    assert "npairs, is 9.7 ± " in text
    assert "could show more" not in text


def test_losses_that_tie_are_named_and_the_simplest_of_them() -> None:
    noisy = {"softtriple": (0.52, 0.48, 0.55), "npairs": (0.53, 0.50, 0.49)}
    text = advice({"features": (0.1, 0.1, 0.1), **noisy})
    assert "cannot be told apart from it" in text
    assert "npairs is the simplest, with 1 parameter" in text
    assert "--seeds 5" in text
    five = {name: (*values, 0.5, 0.51) for name, values in noisy.items()}
    assert "--seeds" not in advice({"features": (0.1,) * 5, **five})


def test_training_in_vain_is_said() -> None:
    text = advice({**WINS, "pca": (0.7, 0.7, 0.71)})
    assert "training did not help here: no loss exceeds the R@1 of 'pca'" in text


def test_an_advantage_over_the_baseline_within_the_noise_is_none() -> None:
    noisy = {"softtriple": (0.60, 0.40, 0.50), "npairs": (0.45, 0.52, 0.49)}
    text = advice({"features": (0.48, 0.48, 0.48), **noisy})
    assert "training was not shown to help here: the best loss, softtriple, is 2.0 points" in text


def test_one_loss_alone_is_compared_with_what_was_not_trained() -> None:
    alone = {"softtriple": WINS["softtriple"]}
    assert "nothing to be compared with" in advise(compared(records(alone)))
    assert "+20.0 points from 'features'" in advice({"features": WINS["features"], **alone})


def test_where_all_diverged_no_loss_is_advised() -> None:
    made = [
        r if r.loss in BASELINES else replace(r, status="diverged", metrics={})
        for r in records(WINS)
    ]
    text = advise(compared(made))
    assert "every training diverged" in text
    assert "--set optimizer.lr=" in text


def test_an_epoch_chosen_on_test_classes_supports_no_advice() -> None:
    text = advise(compared(records(WINS, **{"selection.rule": "test-best"})))
    assert "rely on none" in text
    assert "softtriple" not in text


def test_no_advice_where_rows_cannot_be_compared() -> None:
    assert advice({"features": (0.4, 0.4)}) == ""
    one_seed = {name: values[:1] for name, values in WINS.items()}
    assert advice(one_seed) == ""  # a single figure each, without per-query scores


def test_a_plugin_that_is_gone_is_not_called_simple() -> None:
    made = [replace(r, loss="gone") if r.loss == "npairs" else r for r in records(WINS)]
    tied = compared(made)
    rows = tuple(
        row if row.baseline else replace(row, tied=frozenset({"R@1"})) for row in tied.rows
    )
    text = advise(replace(tied, rows=rows, unbeaten=None))
    assert "cannot be told apart" in text
    assert "simplest" not in text


def test_one_seed_is_said_to_be_one() -> None:
    comparison = compared(records(WINS))
    rows = tuple(replace(row, files=("a.json",)) for row in comparison.rows)
    text = advise(replace(comparison, rows=rows))
    assert "the noise between seeds is unknown: add --seeds 5" in text


def test_it_is_a_line_of_text_tables_only() -> None:
    comparison = compared(records(WINS))
    text = render([comparison], "text")
    assert " ".join(text.split()).endswith(advise(comparison))
    assert all("Advice" not in render([comparison], f) for f in ("markdown", "latex", "html"))
    assert "\n" not in advise(comparison)


def test_merged_tables_of_several_recipes_give_none() -> None:
    plan = make_plan(Request(losses=("npairs",), settings=(("schedule.epochs", 9),)))
    made = [*records(WINS), record(plan.runs()[0])]
    merged = merge(compare({Path(f"{number}.json"): r for number, r in enumerate(made)}))
    assert advise(merged) == sheets([merged])[0].advice == ""


def drawn(rng: np.random.Generator, means: Mapping[str, float], seeds: int = 4) -> str:
    noise = {name: rng.normal(mean, 0.02, seeds) for name, mean in means.items()}
    return advice({name: tuple(map(float, values)) for name, values in noise.items()})


@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 0, 6), (0.2, 38, 40)])
def test_equal_losses_seldom_win_and_unequal_ones_do(gap: float, least: int, most: int) -> None:
    """At 5 %, 7 or more of 40 would come up in 0.3 % of all tries."""
    rng = np.random.default_rng(0)
    means = {"features": 0.1, "softtriple": 0.4 + gap, "npairs": 0.4, "triplet": 0.4}
    wins = sum("take" in drawn(rng, means) for _ in range(40))
    assert least <= wins <= most


@pytest.mark.parametrize(("gap", "least", "most"), [(0.0, 34, 40), (0.2, 0, 2)])
def test_training_that_does_nothing_is_seldom_said_to_help(
    gap: float, least: int, most: int
) -> None:
    rng = np.random.default_rng(1)
    means = {"features": 0.4, "softtriple": 0.4 + gap, "npairs": 0.4, "triplet": 0.4}
    in_vain = sum("training" in drawn(rng, means) for _ in range(40))
    assert least <= in_vain <= most


def test_a_difference_is_what_the_table_shows() -> None:
    comparison = compared(records(WINS))
    gap = next(row for row in comparison.rows if row.label == "npairs").behind["R@1"]
    assert isinstance(gap, Difference)
    assert f"{100 * gap.mean:.1f} ± {100 * gap.half_width:.1f} points" in advise(comparison)
