"""From records to comparisons and printed tables."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.runs import PLAN, RUNS, record, with_hits, with_totals

from mlbench.cli import main
from mlbench.comparison.best import Behind
from mlbench.comparison.comparison import Comparison, compare, differences, merge
from mlbench.comparison.judgement import Scope
from mlbench.comparison.published import LOSS_OF, published
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES
from mlbench.tables.formats import render
from mlbench.tables.layout import distance, sheet


def records() -> list[RunRecord]:
    recalls = {"softtriple": (0.60, 0.62, 0.64), "npairs": (0.5, 0.52, 0.51)}
    made = [record(r, recalls[r.loss.name][r.seed]) for r in RUNS]
    baseline = RunSpec(PLAN.recipe, LossSpec("untrained"), 0)
    return [*made, record(baseline, 0.7, curve=(), loss_report={})]


def compared(given: list[RunRecord]) -> list[Comparison]:
    return compare({Path(f"{number}.json"): r for number, r in enumerate(given)})


def test_baselines_come_first_and_the_best_is_a_trained_loss() -> None:
    (comparison,) = compared(records())
    assert [row.label for row in comparison.rows] == ["untrained", "npairs", "softtriple"]
    assert comparison.metrics == ("R@1", "R@2", "R@4", "R@8", "NMI", "MAP@R", "R-Precision")
    best = comparison.rows[2]
    assert best.behind["R@1"].gap == 0
    assert best.estimates["R@1"].mean == pytest.approx(0.62)
    # 2.77645 is Student's t for 4 degrees of freedom at 97.5 %; the variances of both are pooled.
    pooled = ((0.02**2 + 0.01**2) / 2) ** 0.5
    assert best.estimates["R@1"].half_width == pytest.approx(2.77645 * pooled / 3**0.5, rel=1e-5)
    assert comparison.rows[0].behind == {}


def test_recipes_never_share_a_table_and_their_differences_are_named() -> None:
    other = make_plan(Request(losses=("npairs",), settings=(("schedule.epochs", 9),)))
    first, second = compared([*records(), record(other.runs()[0])])
    assert first.differences == ()
    assert len(second.differences) == 1
    assert "schedule.epochs" in second.differences[0]
    moved = replace(records()[0].dataset, fingerprint="0" * 64)
    assert len(compared([*records(), record(RUNS[0], dataset=moved)])) == 2


def test_merged_rows_say_why_they_are_not_comparable() -> None:
    other = make_plan(Request(losses=("npairs",), settings=(("schedule.epochs", 9),)))
    merged = merge(compared([*records(), record(other.runs()[0])]))
    noted = [row for row in merged.rows if row.notes]
    assert len(noted) in (1, 3)  # the order of comparisons is that of their recipe ids
    assert all("schedule.epochs" in row.notes[0] for row in noted)
    assert merged.recipe_id == "merged"
    printed = sheet(merged)
    assert sum("[1]" in line.cells[0] for line in printed.lines) == len(noted)
    assert printed.notes[0].startswith("[1] not comparable: schedule.epochs")


def test_a_copied_record_is_no_second_seed() -> None:
    (comparison,) = compared([*records(), *records()])
    assert [row.runs for row in comparison.rows] == [1, 3, 3]
    assert not any(row.notes for row in comparison.rows)


def test_a_repeated_run_is_no_second_seed_and_is_noted() -> None:
    again = [replace(r, metrics=r.metrics | {"R@1": 0.01}) for r in records()[:2]]
    (comparison,) = compared([*records(), *again])
    assert [row.runs for row in comparison.rows] == [1, 3, 3]
    assert comparison.rows[2].estimates["R@1"].mean == pytest.approx(0.62)
    assert [row.notes for row in comparison.rows[:2]] == [(), ()]
    assert "2 repeated run(s) skipped" in comparison.rows[2].notes[0]


def test_hardware_is_kept_apart_in_rows() -> None:
    gpu = replace(records()[0].provenance, device="cuda", hardware="H100")
    (comparison,) = compared([*records(), record(RUNS[0], provenance=gpu)])
    labels = [row.label for row in comparison.rows]
    assert "softtriple [cuda: H100]" in labels
    assert "softtriple [cpu: chip]" in labels


def test_changed_parameters_are_in_the_label() -> None:
    plan = make_plan(Request(losses=("softtriple",), settings=(("softtriple.tau", 0.0),)))
    (comparison,) = compared([record(plan.runs()[0])])
    assert comparison.rows[0].label == "softtriple (tau=0.0)"


def test_parameters_that_are_equal_but_not_the_same_have_rows_of_their_own() -> None:
    first = replace(records()[0], loss="pml:TripletMarginLoss", params={"margin": 1})
    other = replace(first, params={"margin": 1.0})
    (comparison,) = compared([first, other])
    assert [(row.label, row.runs) for row in comparison.rows] == [
        ("pml:TripletMarginLoss (margin=1)", 1),
        ("pml:TripletMarginLoss (margin=1.0)", 1),
    ]


def test_an_unequal_budget_is_noted() -> None:
    more = replace(records()[0].cost, images_seen=999)
    (comparison,) = compared([*records()[:4], record(RUNS[4], cost=more)])
    assert any("budgets differ" in note for row in comparison.rows for note in row.notes)
    (equal,) = compared(records())
    assert not any(row.notes for row in equal.rows)


def test_unequal_folds_and_diverged_runs_are_no_unequal_budget() -> None:
    folds = [
        replace(r, fold=r.seed, cost=replace(r.cost, images_seen=900 + r.seed)) for r in records()
    ]
    (comparison,) = compared(folds)
    assert not any(row.notes for row in comparison.rows)
    short = replace(records()[0].cost, images_seen=5)
    (comparison,) = compared(
        [*records()[1:], record(RUNS[0], status="diverged", metrics={}, cost=short)]
    )
    assert not any(row.notes for row in comparison.rows)


def test_one_seed_without_totals_says_nothing_of_differences() -> None:
    (comparison,) = compared([r for r in records() if r.seed == 0])
    assert not any(row.marked or row.behind for row in comparison.rows)
    printed = sheet(comparison)
    assert printed.legend == ""
    assert not any("gap" in name for name in printed.header)
    assert any("mlbench results upgrade FOLDER" in note for note in printed.notes)


def test_one_seed_shows_the_part_of_the_classes_and_marks_nothing() -> None:
    (comparison,) = compared([with_totals(r) for r in records() if r.seed == 0])
    assert comparison.scope is Scope.CLASSES
    printed = sheet(comparison)
    assert printed.legend == ""
    assert not any(any(line.bold) for line in printed.lines)
    # The totals are alike in all classes, so that nothing but the gap is left.
    assert [line.cells[-2] for line in printed.lines] == ["-", "10.0 (10.0 to 10.0)", "0 (0 to 0)"]
    assert any(note.startswith("one seed: ") for note in printed.notes)


@pytest.mark.parametrize(
    ("behind", "printed"),
    [
        ((0.024, 0.011, 0.036), "2.4 (1.1 to 3.6)"),
        ((0.007, 0.0, 0.0234), "0.7 (0 to 2.3)"),
        ((0.0, 0.0, 0.01), "0 (0 to 1.0)"),
        ((0.00003, 0.0, 0.01), "0.0 (0 to 1.0)"),
        ((0.012, 0.0003, 0.03), "1.2 (0.03 to 3.0)"),  # unmarked, and it shows
        ((0.0, 0.0, 0.0), "0 (0 to 0)"),
    ],
)
def test_a_distance_shows_whether_its_row_is_marked(
    behind: tuple[float, float, float], printed: str
) -> None:
    assert distance(Behind(*behind)) == printed


def test_what_is_practically_equal_is_said_where_it_is_asked_for() -> None:
    (comparison,) = compared([with_totals(r) for r in records()])
    assert "practically" not in sheet(comparison).header
    printed = sheet(comparison, 20.0)
    assert printed.header[-2:] == ("practically", "n")
    assert [line.cells[-2] for line in printed.lines] == ["-", "equal", "equal"]
    assert [line.cells[-2] for line in sheet(comparison, 1.0).lines] == ["-", "behind", "equal"]
    assert any("is at most 1 points" in note for note in sheet(comparison, 1.0).notes)
    (plain,) = json.loads(render([comparison], "json", width=1.0))
    metrics = [row["metrics"]["R@1"] for row in plain["rows"]]
    assert [each["practically"] for each in metrics] == [None, "behind", "equal"]


def test_published_results_stand_beside_one_recipe(tmp_path: Path) -> None:
    saved(tmp_path, {"softtriple": 0.6})
    result = CliRunner().invoke(main, ["table", str(tmp_path), "--merge", "--reference"])
    assert result.exit_code == 2
    assert "omit --merge and --rows" in result.stderr


def test_versions_of_a_loss_have_rows_of_their_own() -> None:
    first, *rest = records()
    (comparison,) = compared([replace(first, loss_source="mine 2.0"), *rest])
    labels = [row.label for row in comparison.rows if row.loss == first.loss]
    assert labels == [f"{first.loss} [built-in]", f"{first.loss} [mine 2.0]"]


def test_diverged_runs_are_counted_not_averaged() -> None:
    bad = record(RUNS[2], status="diverged", metrics={})
    (comparison,) = compared([*records()[:2], bad])
    row = comparison.rows[0]
    assert (row.runs, row.diverged) == (2, 1)
    assert row.estimates["R@1"].mean == pytest.approx(0.61)
    assert "(1 diverged)" in render([comparison], "markdown")
    (alone,) = compared([bad])
    assert alone.rows[0].estimates == {}
    for form in ("text", "markdown", "latex", "html", "csv", "json"):
        assert render([alone], form)


def saved(folder: Path, hit_rates: dict[str, float]) -> list[Comparison]:
    """Save records whose hits are drawn at the given rates; compare them."""
    rng = np.random.default_rng(1)
    for run in make_plan(Request(losses=tuple(hit_rates), seeds=3)).runs():
        hits = rng.binomial(10, hit_rates[run.loss.name], 9)
        store.save(folder, with_hits(record(run), hits), None)
    return compare(store.read_results(folder).records)


def test_losses_that_do_not_differ_significantly_share_the_bold(tmp_path: Path) -> None:
    (comparison,) = saved(tmp_path, {"softtriple": 0.6, "npairs": 0.6, "triplet": 0.2})
    marked = {row.label: "R@1" in row.marked for row in comparison.rows}
    assert marked == {"softtriple": True, "npairs": True, "triplet": False}
    behind = {row.label: row.behind["R@1"] for row in comparison.rows}["triplet"]
    assert behind.gap == pytest.approx(0.4, abs=0.05)
    assert behind.low > 0
    text = render([comparison], "text")
    assert "*: not significantly different from the best, for other classes and seeds" in text
    markdown = render([comparison], "markdown")
    assert markdown.count("**") >= 4
    assert (
        "bold: not significantly different from the best, for other classes and seeds" in markdown
    )


def test_the_narrower_statement_is_named_as_such(tmp_path: Path) -> None:
    saved(tmp_path, {"softtriple": 0.6, "npairs": 0.6})
    result = CliRunner().invoke(main, ["table", str(tmp_path), "--for", "these-classes"])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert (
        "not significantly different from the best, for other seeds on these test classes" in text
    )
    assert "other classes" not in text
    wider = " ".join(CliRunner().invoke(main, ["table", str(tmp_path)]).stdout.split())
    assert (
        "NMI: compared for other seeds on these test classes only, so no value is marked" in wider
    )


def test_the_settings_of_each_loss_have_a_line_and_are_folded_where_a_format_can() -> None:
    comparisons = compared(records())
    given = dict(sheet(comparisons[0]).settings)
    assert list(given) == ["npairs", "softtriple"]
    assert given["npairs"] == "2 images per class; unnormalised embeddings; l2_reg 0.005"
    text = render(comparisons, "text").splitlines()
    start = text.index("settings per loss")
    assert text[start + 1] == f"  npairs      {given['npairs']}"
    assert text[start + 2].startswith("  softtriple  random batches; L2-normalised embeddings; ")
    assert text[start + 3].startswith(" " * 14)
    folded = "<details><summary>Settings per loss</summary>"
    assert f"- npairs: {given['npairs']}".replace("_", r"\_") in render(comparisons, "markdown")
    assert f"<dt>npairs</dt><dd>{given['npairs']}</dd>" in render(comparisons, "html")
    assert all(folded in render(comparisons, name) for name in ("markdown", "html"))
    assert f"% npairs: {given['npairs']}\n" in render(comparisons, "latex")
    (row, *_) = csv.DictReader(io.StringIO(render(comparisons, "csv")))
    assert f"npairs: {given['npairs']}" in row["stamp"]
    assert json.loads(render(comparisons, "json"))[0]["settings"] == given


def test_formats_say_the_same() -> None:
    comparisons = compared(records())
    for name in ("text", "markdown", "latex", "html"):
        text = render(comparisons, name)
        assert "62.0" in text, name
        assert "2.5" in text, name
        assert "recipe" in text, name
        assert "hardware" in text, name
    assert "**62.0 ± 2.5**" in render(comparisons, "markdown")
    latex = render(comparisons, "latex")
    assert r"\textbf{62.0 $\pm$ 2.5}" in latex
    assert r"\usepackage{booktabs}" in latex.splitlines()[0]
    assert "\n% Advice: " in latex
    lines = render(comparisons, "text").splitlines()
    under = next(n for n, line in enumerate(lines) if line.startswith("softtriple")) + 1
    assert lines[under].startswith("Advice: ")
    assert latex.count(r"\midrule") == 2
    rows = list(csv.DictReader(io.StringIO(render(comparisons, "csv"))))
    assert float(rows[2]["R@1"]) == pytest.approx(0.62)
    (plain,) = json.loads(render(comparisons, "json"))
    assert plain["rows"][2]["metrics"]["R@1"]["mean"] == pytest.approx(0.62)
    figures = plain["rows"][1]["metrics"]["R@1"]
    behind = figures["behind_best"]
    assert behind["gap"] == pytest.approx(0.11)
    assert float(rows[1]["R@1 behind_low"]) == behind["low"] > 0
    assert (figures["marked"], rows[1]["R@1 marked"]) == (False, "False")
    assert plain["holds_for"]["R@1"] == rows[1]["holds for"] == "other seeds on these test classes"
    (pair,) = plain["pairs"]["R@1"]
    assert (pair["a"], pair["b"]) == ("npairs", "softtriple")
    assert pair["difference"] == pytest.approx(-0.11)
    assert pair["half_width"] < 0.11
    assert pair["p"] < 0.05
    assert plain["stamp"]


def test_only_the_columns_that_are_asked_for_are_shown() -> None:
    comparisons = compared(records())
    latex = render(comparisons, "latex", columns=("MAP@R", "R@1"))
    assert "loss & MAP@R & R@1 \\\\" in latex
    assert "gap to best" not in latex
    text = render(comparisons, "text", columns=("R@1", "gap", "n"))
    assert text.splitlines()[1].split() == ["loss", "R@1", "gap", "to", "best,", "R@1", "n"]
    with pytest.raises(MlbenchError, match=r"no column 'R@3'; there are: R@1, .*, gap, n"):
        render(comparisons, "latex", columns=("R@3",))


def test_names_cannot_inject_markup() -> None:
    facts = replace(records()[0].dataset, name="=1+1_\\input{x}|[red]<b>\x1b[31m")
    comparisons = compared([record(RUNS[0], dataset=facts)])
    assert r"\|" in render(comparisons, "markdown")
    assert render(comparisons, "csv").splitlines()[1].startswith("\"'=1+1")
    body = render(comparisons, "latex")
    assert all(line.startswith("%") for line in body.splitlines() if "input{x}" in line)
    assert "[red]" in render(comparisons, "text")
    assert "\x1b" not in render(comparisons, "text")
    assert "<b>" not in render(comparisons, "html")


def test_published_rows_stand_beside_ours_with_marks() -> None:
    facts = replace(records()[0].dataset, name="cub200")
    comparisons = compared([replace(r, dataset=facts) for r in records()])
    text = render(comparisons, "markdown", reference=True)
    assert "| SoftTriple " in text
    assert "60.1†" in text  # recalls of this row are quoted by another table
    assert "52.6 " in text  # confirmed first-hand: no mark
    assert "softtriple +1.9" in text  # ours 62.0, published 60.1
    assert "cub200" in text
    assert "not yet checked" in text
    assert "reference" not in render(compared(records()), "markdown", reference=True)


@pytest.mark.parametrize("dataset", ["cub200", "cars196", "sop"])
def test_published_recalls_rise_with_k(dataset: str) -> None:
    rows = published(dataset)
    assert rows
    for row in rows:
        recalls = [v for k, v in row.values.items() if k.startswith("R@")]
        assert recalls == sorted(set(recalls)), row
        assert all(0 < value < 100 for value in row.values.values())
        assert row.source


def test_published_rows_are_as_corrected() -> None:
    rows = {(row.method, row.dim): row for row in published("cub200")}
    assert rows["Npairs", 64].backbone == "GoogLeNet"
    assert rows["Proxy-Anchor", 64].values["R@1"] == 61.7
    assert rows["Proxy-Anchor", 512].marks["R@8"] == ""
    assert rows["SoftMax_norm", 64].marks["R@1"] == "?"


def test_published_methods_name_losses_that_exist() -> None:
    methods = {row.method for name in ("cub200", "cars196", "sop") for row in published(name)}
    assert set(LOSS_OF) <= methods
    for loss in LOSS_OF.values():
        assert LOSSES.get(loss).name == loss


def test_differences_name_both_values() -> None:
    a, b = load_recipe("paper").flat(), load_recipe("blog").flat()
    changed = differences(a, b)
    assert changed["backbone.bn_stats"] == ("frozen", "live")
    assert "input.size" not in changed
    assert differences(a, a) == {}
