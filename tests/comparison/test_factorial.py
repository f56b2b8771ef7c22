from dataclasses import replace

import pytest
from helpers.factorial import Records, study_records

from mlbench.comparison.effects import effects
from mlbench.comparison.factorial import factorials, the_factorials
from mlbench.errors import MlbenchError


@pytest.fixture(scope="module")
def study() -> Records:
    return study_records()


def test_the_study_is_found_by_its_recipes(study: Records) -> None:
    assert study["row-00"].recipe_id == "c2f5954dcdd4"  # as when the study was begun
    (found,) = factorials(study.values())
    assert [factor.name for factor in found.factors] == [
        "input",
        "batch norm",
        "loss.init",
        "loss.la",
        "eps and decay",
        "head",
        "schedule and crop",
    ]
    assert found.factors[0].changes == {"input.normalization": ("none", "backbone")}
    assert found.factors[6].changes == {
        "input.test_resize": (128, 146),
        "batch.drop_last": (True, False),
    }
    assert len(found.design) == len(found.runs) == 16
    start, end = found.ends
    assert [run.seed for run in found.runs[start]] == [0, 101, 102]
    assert [run.seed for run in found.runs[end]] == [15, 101, 102]
    (longer,) = found.elsewhere
    assert longer.changes["schedule.epochs"] == (8, 20)
    assert (longer.start, longer.end) == ((study["long-foot"],), (study["long-top"],))


def test_its_effects_are_of_the_right_sign_and_size(study: Records) -> None:
    (found,) = factorials(study.values())
    result = effects(found.design, found.totals("R@1"))
    values = [100 * each.value for each in result.factors]
    assert values == pytest.approx([5, 0, 0, 2, 0, -1, 0], abs=0.5)
    assert result.gap.value == pytest.approx(0.06, abs=0.01)
    assert (result.residual.freedom, result.pure.freedom) == (8, 4)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["row-03"], "1 settings have no finished run: input.normalization=none"),
        (["row-00", "corner-foot-1", "corner-foot-2"], "loss.la=5.0"),
        ([f"row-{n:02}" for n in range(8, 15)], "input.normalization=backbone"),
        ([f"row-{n:02}" for n in range(6)], "not complete"),
    ],
)
def test_an_incomplete_one_is_refused_by_name(study: Records, gone: list[str], named: str) -> None:
    some = [run for name, run in study.items() if name not in gone]
    with pytest.raises(MlbenchError, match=named) as problem:
        the_factorials(some)
    assert "7 factors (input, batch norm, loss.init" in str(problem.value)


def test_a_run_that_diverged_is_missing(study: Records) -> None:
    some = {**study, "row-05": replace(study["row-05"], status="diverged")}
    with pytest.raises(MlbenchError, match="1 settings have no finished run, and 1 runs diverged"):
        the_factorials(some.values())


def test_few_records_are_no_design(study: Records) -> None:
    with pytest.raises(MlbenchError, match="no two-level design among 2 records"):
        the_factorials([study["row-00"], study["row-15"]])


def test_records_without_totals_are_refused(study: Records) -> None:
    (found,) = factorials(replace(run, class_totals=None) for run in study.values())
    with pytest.raises(MlbenchError, match="seed 0 has no totals by test class of R@1: add them"):
        found.totals("R@1")
