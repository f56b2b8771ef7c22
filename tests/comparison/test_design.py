from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.factorial import with_recall
from helpers.runs import record

from mlbench.comparison.design import (
    as_factorial,
    carry_out,
    factorial_design,
    resolution,
    two_level,
)
from mlbench.comparison.effects import effects
from mlbench.comparison.factorial import factorials
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.records.record import RunRecord


def plan(recipe: str, **request: Any) -> Plan:
    return make_plan(Request(recipe=recipe, losses=("softtriple",), **request))


@pytest.mark.parametrize(
    ("factors", "runs", "size", "expected"),
    [
        (3, 8, 8, None),
        (4, 8, 8, 4),
        (5, 16, 16, 5),
        (7, 8, 8, 3),
        (7, 16, 16, 4),
        (7, 63, 16, 4),
        (7, 64, 64, 7),
        (8, 16, 16, 4),
        (9, 16, 16, 3),
        (9, 32, 32, 4),
        (15, 16, 16, 3),
    ],
)
def test_a_design_has_the_highest_resolution_that_the_runs_allow(
    factors: int, runs: int, size: int, expected: int | None
) -> None:
    design = two_level([str(n) for n in range(factors)], runs)
    assert (len(design), resolution(design)) == (size, expected)
    signs = np.array(design)
    np.testing.assert_array_equal(signs.T @ signs, size * np.eye(factors))  # orthogonal
    assert (signs.sum(axis=0) == 0).all()


@pytest.mark.parametrize(
    ("factors", "runs", "message"),
    [
        ([], 16, "differ in nothing"),
        (["head"], 16, r"only in one factor \(head\)"),
        (["a", "b", "c", "d", "e", "f", "g"], 6, "7 factors .* take 8 runs or more: raise --runs"),
        ([str(n) for n in range(16)], 16, "take 32 runs or more"),
    ],
)
def test_what_is_no_design_is_refused(factors: list[str], runs: int, message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        two_level(factors, runs)


def test_the_design_between_two_recipes() -> None:
    start, end = (plan(name, seeds=3) for name in ("blog-code", "paper"))
    design = factorial_design(start, end)
    assert [factor.name for factor in design.factors] == [
        "input",
        "batch norm",
        "loss parameters",
        "eps and decay",
        "head",
        "schedule and crop",
        "backbone",
    ]
    seeds = [[run.seed for each in row.plans for run in each.runs()] for row in design.rows]
    assert seeds == [[0, 101, 102], *([n] for n in range(1, 15)), [15, 101, 102]]
    first, last = design.rows[0].plans[0], design.rows[-1].plans[0]
    assert (first.recipe, first.losses) == (start.recipe, start.losses)
    assert (last.recipe, last.losses) == (end.recipe, end.losses)
    assert len({each.recipe.recipe_id for each in design.plans}) == 2**6 / 4  # loss: no recipe


def test_fields_can_be_grouped() -> None:
    start, end = plan("blog-code"), plan("paper")
    groups = {"norms": ("input.", "backbone.bn_stats"), "scale": ("loss.la",)}
    names = {f.name: set(f.changes) for f in factorial_design(start, end, 16, groups).factors}
    assert names["norms"] == {
        "input.normalization",
        "input.channels",
        "input.test_resize",
        "backbone.bn_stats",
    }
    assert names["scale"] == {"loss.la"}
    assert names["loss parameters"] == {"loss.init"}
    with pytest.raises(MlbenchError, match=r"group x: unknown field that differs 'head.dim'"):
        factorial_design(start, end, 16, {"x": ("head.dim",)})


def test_fields_that_only_go_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "end.toml").write_text(
        'base = "default"\n[optimizer]\nname = "sgd"\nmomentum = 0.5\n[head]\ndim = 32\n'
    )
    start, end = plan("default"), plan(str(tmp_path / "end.toml"))
    assert len(factorial_design(start, end).rows) == 4
    with pytest.raises(MlbenchError, match=r"setting 4 .* no momentum.*--group NAME=FIELD"):
        factorial_design(start, end, 16, {"momentum": ("optimizer.momentum",)})


def finished(made: Plan) -> dict[Path, RunRecord]:
    rng = np.random.default_rng(made.first_seed)
    return {
        Path(f"{run.run_id}.json"): with_recall(
            record(run), 0.5 + 0.1 * (run.recipe.head.kind == "linear"), rng
        )
        for run in made.runs()
    }


@pytest.mark.parametrize("runs", [8, 16, 32])
def test_what_was_run_is_found_again_among_the_records(runs: int) -> None:
    """With 8 runs the design has resolution III and the start is none of its settings."""
    start, end = (plan(name, seeds=3) for name in ("blog-code", "paper"))
    design = factorial_design(start, end, runs)
    study = as_factorial(design, carry_out(design, finished))
    assert study is not None
    (found,) = factorials(record for each in design.plans for record in finished(each).values())
    assert {f.name: f.changes for f in found.factors} == {f.name: f.changes for f in study.factors}
    values = [
        {
            f.name: e.value
            for f, e in zip(s.factors, effects(s.design, s.totals("R@1")).factors, strict=True)
        }
        for s in (study, found)
    ]
    assert values[0] == pytest.approx(values[1])
    assert values[0]["head"] == pytest.approx(0.1, abs=0.01)
    assert sum(len(each) for each in found.runs.values()) == len(found.design) + 4 + 1 * (runs == 8)


def test_rows_that_cannot_run_say_why() -> None:
    design = factorial_design(plan("blog-code"), plan("paper"))

    def run(made: Plan) -> dict[Path, RunRecord]:
        if made.recipe.backbone.name == "bn_inception":
            raise MlbenchError("no weights here")
        return finished(made)

    results = carry_out(design, run)
    assert [bool(each.problem) for each in results].count(True) == 8
    assert {each.problem for each in results} == {"", "no weights here"}
    assert as_factorial(design, results) is None


def test_a_plan_may_count_its_seeds_from_elsewhere() -> None:
    made = replace(plan("default", seeds=2), first_seed=7)
    assert [run.seed for run in made.runs()] == [7, 8]
