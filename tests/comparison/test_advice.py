"""The sentence below a table claims what the figures support, and no more."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import record, with_hits

from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, compare, merge
from mlbench.comparison.planning import Design, Sources, detectable_gap
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records.record import RunRecord
from mlbench.tables.formats import render
from mlbench.tables.layout import distance, sheets

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
    assert "use softtriple, the best in R@1 for other seeds on these test classes" in text
    assert "npairs, is 9.7 points (" in text
    assert "would narrow" not in text


def test_losses_that_tie_are_named_and_the_simplest_of_them() -> None:
    noisy = {"softtriple": (0.52, 0.48, 0.55), "npairs": (0.53, 0.50, 0.49)}
    text = advice({"features": (0.1, 0.1, 0.1), **noisy})
    assert "npairs is not significantly different from it" in text
    assert "npairs has the fewest hyperparameters (1)" in text
    assert "--seeds 5" in text
    many = {name: (*values, 0.5, 0.51) * 2 for name, values in noisy.items()}
    assert "--seeds" not in advice({"features": (0.1,) * 10, **many})


def test_training_in_vain_is_said_with_who_leads() -> None:
    text = advice({**WINS, "pca": (0.7, 0.7, 0.71)})
    assert "training did not help here: no loss exceeds the R@1 of 'pca'" in text
    assert (
        "among the losses, softtriple has the highest R@1; the next, npairs, is 9.7 points ("
        in text
    )
    tied = {"softtriple": (0.52, 0.48, 0.55), "npairs": (0.53, 0.50, 0.49)}
    text = advice({**tied, "pca": (0.7, 0.7, 0.71)})
    assert "softtriple has the highest R@1, but npairs is not significantly different" in text


def test_an_advantage_over_the_baseline_within_the_noise_is_none() -> None:
    noisy = {"softtriple": (0.60, 0.40, 0.50), "npairs": (0.45, 0.52, 0.49)}
    text = advice({"features": (0.48, 0.48, 0.48), **noisy})
    assert "training was not shown to help here: the best loss, softtriple, is 2.0 points" in text


def test_features_of_another_length_are_named_with_it() -> None:
    """The convnet's features have 128 dimensions; its embeddings 64."""
    noisy = {"features": (0.7, 0.7, 0.7), **{k: WINS[k] for k in ("softtriple", "npairs")}}
    text = advice(noisy)
    assert "the R@1 of 'features' (128 dimensions against 64), which was not trained" in text
    made = records(noisy, **{"head.dim": 128})  # pyright: ignore[reportArgumentType]
    assert "'features', which" in advise(compared(made))


def test_one_loss_alone_is_compared_with_what_was_not_trained() -> None:
    alone = {"softtriple": WINS["softtriple"]}
    assert "is the only row" in advise(compared(records(alone)))
    text = advice({"features": WINS["features"], **alone})
    assert "the R@1 of softtriple is 20.0 points above that of 'features'" in text


def test_where_all_diverged_no_loss_is_advised() -> None:
    made = [
        r if r.loss in BASELINES else replace(r, status="diverged", metrics={})
        for r in records(WINS)
    ]
    text = advise(compared(made))
    assert "every run diverged" in text
    assert "--set optimizer.lr=" in text


def test_an_epoch_chosen_on_test_classes_supports_no_advice() -> None:
    text = advise(compared(records(WINS, **{"selection.rule": "test-best"})))
    assert "do not rely on these values" in text
    assert "softtriple" not in text


def test_one_seed_recommends_nothing_and_says_who_leads() -> None:
    one_seed = {name: values[:1] for name, values in WINS.items()}
    text = advice(one_seed)
    assert "softtriple has the highest R@1 on this seed, 10.0 points above npairs" in text
    assert "no loss is recommended" in text
    assert "re-run the same command with --seeds 3" in text
    assert "use" not in text
    assert "features" not in text
    lost = advice({**one_seed, "pca": (0.7,)})
    assert "'pca', which was not trained, is 10.0 points above it" in lost
    alone = advice({name: one_seed[name] for name in ("features", "softtriple")})
    assert "20.0 points above that of 'features'" in alone
    assert "--seeds 3" in alone


def test_a_plugin_that_is_gone_is_not_called_simple() -> None:
    made = [replace(r, loss="gone") if r.loss == "npairs" else r for r in records(WINS)]
    tied = compared(made)
    rows = tuple(
        row if row.baseline else replace(row, marked=frozenset({"R@1"})) for row in tied.rows
    )
    text = advise(replace(tied, rows=rows, unbeaten=None))
    assert "not significantly different" in text
    assert "fewest" not in text


def test_it_is_a_line_of_text_tables_and_a_comment_in_latex() -> None:
    comparison = compared(records(WINS))
    text = render([comparison], "text")
    assert advise(comparison) in " ".join(text.split())
    assert all("Advice" not in render([comparison], form) for form in ("markdown", "html"))
    (comment,) = (line for line in render([comparison], "latex").splitlines() if "Advice" in line)
    assert comment == f"% {advise(comparison)}"
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
    wins = sum("Advice: use" in drawn(rng, means) for _ in range(40))
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
    behind = next(row for row in comparison.rows if row.label == "npairs").behind["R@1"]
    printed = distance(behind).replace(" (", " points (")
    assert f"{printed} below it" in advise(comparison)


def by_class(rates: Mapping[str, float], seeds: int, spread: float) -> list[RunRecord]:
    """Return runs whose R@1 varies over classes by ``spread``, in its own way for each loss."""
    rng = np.random.default_rng(0)
    plan = make_plan(Request(losses=tuple(rates), seeds=seeds))
    effects = {name: rng.normal(0, spread, 9) for name in rates}
    made = []
    for spec in plan.runs():
        name = spec.loss.name
        hits = rng.binomial(10, np.clip(rates[name] + effects[name], 0, 1))
        made.append(with_hits(record(spec), hits))
    return made


def test_a_test_set_that_limits_is_said_to() -> None:
    comparison = compared(by_class({"softtriple": 0.4, "npairs": 0.6}, 3, 0.2))
    assert comparison.sources is not None
    limit = detectable_gap(comparison.sources, Design(2, math.inf, 9))
    assert limit is not None
    text = advise(comparison)
    wanted = f"gaps below {100 * limit:.2g} points cannot be detected with any number of seeds"
    assert f"on 90 images of 9 classes, {wanted}" in text
    assert "could" not in text


def test_where_seeds_limit_more_of_them_are_advised() -> None:
    comparison = compared(by_class({"softtriple": 0.5, "npairs": 0.5}, 3, 0.0))
    noisy = replace(comparison, sources=Sources(classes=0.0, both=0.01, seeds=0.01))
    told = detectable_gap(Sources(0.0, 0.01, 0.01), Design(2, 5, 9))
    assert told is not None
    assert f"with --seeds 5, gaps from {100 * told:.2g} points on could" in advise(noisy)


def test_the_chance_of_a_run_is_said_where_it_is_known_well() -> None:
    comparison = compared(by_class({"softtriple": 0.9, "npairs": 0.2}, 5, 0.0))
    better = next(r for r in comparison.rows if r.label == "softtriple").better["R@1"]
    assert better.high - better.low < 0.3
    assert f"with probability {better.chance:.2f} (" in advise(comparison)
    wide = replace(better, low=0.6, high=0.95)
    rows = tuple(replace(row, better={"R@1": wide}) for row in comparison.rows)
    assert "probability" not in advise(replace(comparison, rows=rows))
