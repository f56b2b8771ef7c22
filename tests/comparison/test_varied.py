"""Rows that differ in a field of the recipe: one table, one judgement, baselines among them."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command import SET, assert_refused, mlbench
from helpers.runs import record, with_hits

from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, compare, varied_fields
from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Request, make_plan
from mlbench.records.record import RunRecord
from mlbench.tables.layout import sheet

BY = ("backbone.name",)
HITS = np.array([3, 4, 5, 6, 5, 4, 6, 3, 5])  # of 10 queries in each of 9 classes


def made(
    backbone: str, loss: str, more: int, seeds: int = 1, **settings: object
) -> list[RunRecord]:
    """Return records whose hits in each class are ``HITS`` and ``more`` in one seed."""
    plan = make_plan(
        Request(losses=(loss,), backbone=backbone, seeds=seeds, settings=tuple(settings.items()))
    )
    noise = [np.zeros(9), np.eye(9)[2], np.eye(9)[7]]
    return [
        with_hits(record(spec, weights_id=f"imagenet:{backbone}"), HITS + more + noise[number])
        for number, spec in enumerate(plan.runs())
    ]


def compared(*records: list[RunRecord], varied: tuple[str, ...] = BY) -> list[Comparison]:
    every = [each for some in records for each in some]
    return compare({Path(f"{n}.json"): each for n, each in enumerate(every)}, varied=varied)


def test_backbones_stand_in_one_table_whose_rows_are_named_by_them() -> None:
    given = [made("convnet", "features", 0), made("resnet18", "features", 3)]
    assert len(compared(*given, varied=())) == 2
    (one,) = compared(*given)
    assert [row.label for row in one.rows] == ["convnet, features", "resnet18, features"]
    assert one.title == "glyphs, 64 dimensions, by backbone.name"
    assert one.recipe_id == "merged"
    assert sheet(one).header[0] == "backbone.name, loss"
    assert sum(line.startswith("recipe ") for line in one.stamp) == 2


def test_other_fields_still_keep_tables_apart() -> None:
    longer = made("resnet18", "features", 3, **{"head.dim": 32})
    first, second = compared(made("convnet", "features", 0), longer)
    assert len(first.rows) == len(second.rows) == 1
    assert any("head.dim" in text for text in second.differences)
    assert not any("backbone.name" in text for text in second.differences)


def test_a_field_that_follows_from_another_names_no_row() -> None:
    given = [made("convnet", "features", 0), made("timm:test_vit", "features", 3)]
    assert len(compared(*given)) == 2, "images are resized otherwise"
    (one,) = compared(*given, varied=("backbone.name", "input.interpolation"))
    assert [row.label for row in one.rows] == ["convnet, features", "timm:test_vit, features"]


def test_features_of_given_weights_need_one_seed_to_be_judged() -> None:
    (one,) = compared(made("convnet", "features", 0), made("resnet18", "features", 3))
    worse, better = one.rows
    assert one.scope == "other classes and seeds"
    assert "R@1" in better.marked
    assert "R@1" not in worse.marked
    assert worse.behind["R@1"].gap == pytest.approx(0.3)
    assert advise(one).startswith("Advice: use resnet18, features; the next, convnet, features, is")


def test_features_of_random_weights_depend_on_the_seed() -> None:
    plan = make_plan(Request(losses=("features",)))
    given = [with_hits(record(spec), HITS) for spec in plan.runs()]
    (one,) = compared(given, made("resnet18", "features", 3))
    assert not one.scope.judged
    assert "--seeds 3" in advise(one)


def test_training_that_beats_every_frozen_trunk() -> None:
    (one,) = compared(
        made("convnet", "features", 0), made("resnet18", "pca", 1), made("convnet", "npairs", 3, 3)
    )
    text = advise(one)
    assert "training beats every frozen backbone here: convnet, npairs has the highest" in text
    assert "the best row without training, resnet18, pca, is" in text


def test_training_that_does_not_beat_a_better_trunk() -> None:
    (one,) = compared(made("resnet18", "features", 4), made("convnet", "npairs", 1, 3))
    text = advise(one)
    assert "does not beat a better frozen backbone here: resnet18, features, which was not" in text
    assert "the best trained row, convnet, npairs, is" in text


@pytest.mark.parametrize(("trained", "frozen"), [(1, 1), (2, 1)])
def test_training_that_cannot_be_told_from_a_frozen_trunk(trained: int, frozen: int) -> None:
    wide = made("resnet18", "features", 0)
    alternating = HITS + frozen + 3 * (-1) ** np.arange(9)
    wide = [with_hits(each, alternating) for each in wide]
    (one,) = compared(wide, made("convnet", "npairs", trained, 3))
    assert "training was not shown to beat a better frozen backbone" in advise(one)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone.nam", "--rows backbone.nam: unknown recipe field"),
        ("name", "ambiguous"),
        ("data.name", "cannot be compared"),
        ("evaluation.ks", "cannot be compared"),
        (" , ", "--rows is empty"),
    ],
)
def test_fields_that_rows_cannot_differ_in(text: str, message: str) -> None:
    with pytest.raises(MlbenchError, match=message):
        varied_fields(text)
    assert varied_fields("dim, backbone.name,head.dim") == ("head.dim", "backbone.name")


def test_baselines_of_several_backbones_in_one_command(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = ["--dataset", f"folder:{photos}", "--out", out, *SET]
    names = "convnet,timm:test_vit,timm:test_vit3"
    pooled = ["--set", "backbone.trunk=frozen", "--set", "head.pool=avg"]
    run = mlbench("run", *data, *pooled, "--losses", "features,pca", "--backbone", names)
    assert run.exit_code == 1
    assert (
        "FAILED timm:test_vit3: backbone 'timm:test_vit3' does not support head.pool" in run.stderr
    )
    assert "by backbone.name" in run.stdout
    assert {path.stem.split("-")[0] for path in out.rglob("*.json")} == {"features", "pca"}

    fields = "backbone.name,input.interpolation"
    table = mlbench("table", out, "--rows", fields)
    assert table.stdout == run.stdout
    assert mlbench("table", out, "--rows", fields).stdout == table.stdout, "from the cache"
    assert_refused(mlbench("table", out, "--rows", "head.dim"), "no two records")
    assert_refused(mlbench("table", out, "--rope", "nan"), "expected percentage points")
    assert mlbench("table", out, "--rows", fields, "--reference").exit_code == 2
    toml = tmp_path / "bench.toml"
    toml.write_text('recipe = "default"\nlosses = ["features"]\n')
    assert_refused(mlbench("run", toml, "--backbone", names), "pass one backbone")
