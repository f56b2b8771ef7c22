import csv
import io
import json
from dataclasses import replace

import pytest
from helpers.factorial import study_records

from mlbench.comparison.design import RowResult, factorial_design
from mlbench.comparison.factorial import the_factorials
from mlbench.recipes.plan import Request, make_plan
from mlbench.tables.effects import (
    Study,
    design_sheet,
    effects_sheet,
    render,
    rows_sheet,
)
from mlbench.tables.formats import to_text


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.of(the_factorials(study_records().values())[0])


def test_the_table_has_the_largest_effect_first_and_the_gap_below(study: Study) -> None:
    sheet = effects_sheet(study)
    names = [line.cells[0] for line in sheet.lines]
    assert names[:3] == ["input", "loss.la", "head"]
    assert names[7:12] == [
        "sum of the effects",
        "gap between the ends",
        "sum less gap",
        "middle of the ends less mean of all",
        "gap elsewhere",
    ]
    first = sheet.lines[0]
    assert first.cells[1] == "input.normalization none -> backbone"
    assert first.cells[2].startswith("+4.9 ± ")
    assert first.cells[3] == "< 0.001"
    assert first.bold == (False, False, True, False, True, False)
    assert sheet.lines[6].ends_section
    assert "schedule.epochs 8 -> 20" in sheet.lines[11].cells[1]
    text = " ".join(sheet.notes)
    assert "input × batch norm" in text
    assert "(8 and 8 runs); p by Holm over the 7 factors" in text
    assert "(8 degrees of freedom)" in text
    assert "end: R@1 35.9" in text


def test_interactions_are_shown_where_the_effects_do_not_add_up(study: Study) -> None:
    assert effects_sheet(study).lines[-1].cells[0] == "gap elsewhere"
    found = study.effects["R@1"]
    missed = replace(found, misfit=replace(found.misfit, value=0.2, half_width=0.1))
    shown = effects_sheet(replace(study, effects={**study.effects, "R@1": missed}))
    assert [line.cells[0] for line in shown.lines].count("interaction") == 7
    assert any("input × batch norm = " in line.cells[1] for line in shown.lines)


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html", "csv", "json"])
def test_every_format_has_every_factor(study: Study, form: str) -> None:
    text = render([study], form)
    for factor in study.factorial.factors:
        assert factor.name in text


def test_csv_and_json_are_unrounded(study: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(render([study], "csv"))))
    assert len(rows) == 2 * (7 + 4 + 1 + 7)
    first = study.effects["R@1"].factors[0]
    assert float(rows[0]["value"]) == first.value
    assert float(rows[0]["p_holm"]) == study.effects["R@1"].adjusted[0]
    (plain,) = json.loads(render([study], "json"))
    assert plain["metrics"]["R@1"]["contrasts"][0]["half_width"] == first.half_width
    assert plain["metrics"]["MAP@R"]["pure_error"]["freedom"] == 4


def test_the_plan_names_levels_aliases_and_cost() -> None:
    plans = [
        make_plan(Request(recipe=r, losses=("softtriple",), seeds=3))
        for r in ("blog-code", "paper")
    ]
    design = factorial_design(plans[0], plans[1])
    text = to_text([design_sheet(design, "title", ("20 runs",))], 300)
    assert "2^(7-3), resolution IV" in text
    assert "input × batch norm = loss parameters × head" in text
    assert "head: head.kind relu-bn-linear -> linear" in text
    assert text.count("101, 102") == 2
    assert text.rstrip().endswith("20 runs")

    results = [
        RowResult(row, (), "no weights" if n % 2 else "") for n, row in enumerate(design.rows)
    ]
    notes = rows_sheet(design, results, "title").notes
    assert notes[0] == f"{', '.join(f'row {n}' for n in range(1, 16, 2))} not run: no weights"


def test_a_saturated_design_names_what_hides_in_its_effects() -> None:
    plans = [make_plan(Request(recipe=r, losses=("softtriple",))) for r in ("blog-code", "paper")]
    sheet = design_sheet(factorial_design(plans[0], plans[1], 8), "title")
    assert len(sheet.lines) == 9  # the start is none of the eight
    assert any(note.startswith("effects aliased with") for note in sheet.notes)
