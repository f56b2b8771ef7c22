"""The overview of a folder with many comparisons."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command import assert_refused, mlbench
from helpers.runs import record

from mlbench.recipes.plan import Request, make_plan
from mlbench.records import store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ladder of two factors more than its start, the newest last, and one of two losses."""
    steps: list[tuple[str, object]] = [
        ("schedule.epochs", 7), ("head.dim", 32), ("optimizer.lr", 0.5)
    ]  # fmt: skip
    for number in range(len(steps) + 1):
        losses = ("softtriple",)
        plan = make_plan(Request(losses=losses, settings=tuple(steps[:number])))
        path = store.save(tmp_path / "out", record(plan.runs()[0], 0.5 + number / 100), None)
        os.utime(path, (number, number))
    plan = make_plan(Request(recipe="frozen", losses=("softtriple", "npairs"), dataset="glyphs"))
    for spec, recall in zip(plan.runs(), (0.6, 0.65), strict=True):
        os.utime(store.save(tmp_path / "out", record(spec, recall), None), (9, 9))
    return tmp_path / "out"


def test_many_comparisons_have_a_line_each_the_newest_first(folder: Path) -> None:
    shown = mlbench("table", folder)
    text = shown.stdout
    lines = text[text.index("\n", text.index("───")) + 1 :].splitlines()
    assert " ".join(shown.stdout.split()).startswith(f"5 comparisons in {folder}, the newest first")
    assert "frozen" in lines[0]
    assert "65.0 npairs" in lines[0]
    assert [line.split()[-1] for line in lines[1:5]] == ["53.0", "52.0", "51.0", "50.0"]
    assert "default" in lines[4]
    assert "ladder 1" not in "\n".join(lines[:5])
    assert shown.stdout.count("Advice") == 0
    assert "--all" in shown.stderr
    every = mlbench("table", folder, "--all").stdout
    assert every.startswith(shown.stdout)
    assert every.count("settings per loss") == 5


def test_steps_of_an_ablation_are_a_ladder(folder: Path) -> None:
    shown = mlbench("table", folder).stdout
    assert "softtriple, ladder 1" in shown
    assert "schedule.epochs" in shown
    assert shown.count("-1.0  1") + shown.count("+1.0  1") == 3


def test_a_table_is_had_by_name_id_or_folder(folder: Path) -> None:
    default = make_plan(Request(losses=("softtriple",))).recipe
    by_name = mlbench("table", f"{folder}:default").stdout
    assert by_name == mlbench("table", f"{folder}:{default.recipe_id}").stdout
    assert by_name == mlbench("table", f"{folder}:glyphs-{default.recipe_id}").stdout
    assert f"recipe default {default.recipe_id}: " in by_name
    assert by_name.count("settings per loss") == 1
    assert_refused(mlbench("table", f"{folder}:nothing"), "no comparison 'nothing'; there are: ")
    assert replace(default, data=replace(default.data, name="cub200")).recipe_id not in by_name
