"""What a recipe is identified by, and that fields of later versions leave old identities alone."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

from mlbench.errors import MlbenchError
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import Recipe, canonical, digest
from mlbench.recipes.validation import build, field_types
from mlbench.records.record import RunRecord
from mlbench.runs.ingredients import training_part

FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"
AS_RELEASED = {"default": "c1b233dbcb67", "frozen": "8c30d91a3aac", "cpu": "d7be82755433"}
"""Ids of shipped recipes since the first release; only a change of the TOML may change one."""


@dataclass(frozen=True)
class Head:
    dim: int
    pool: str = "avg"
    clip: float | None = None


@dataclass(frozen=True)
class Whole:
    head: Head
    name: str
    tag: str = ""


def test_a_later_field_counts_only_away_from_its_default() -> None:
    before = {"head": {"dim": 64}, "name": "a"}
    assert canonical(Whole(Head(64), "a")) == before
    assert canonical(Whole(Head(64, "avg", None), "a", "")) == before
    assert canonical(Whole(Head(64, "max"), "a")) == {
        "head": {"dim": 64, "pool": "max"},
        "name": "a",
    }
    assert canonical(Whole(Head(64, clip=0.0), "a", "b")) == {
        "head": {"dim": 64, "clip": 0.0},
        "name": "a",
        "tag": "b",
    }


def test_a_table_without_a_later_field_means_its_default() -> None:
    assert build(Whole, {"head": {"dim": 64}, "name": "a"}, "x.toml") == Whole(Head(64), "a")
    with pytest.raises(MlbenchError, match="missing name"):
        build(Whole, {"head": {"dim": 64}}, "x.toml")


@pytest.mark.parametrize(("name", "recipe_id"), AS_RELEASED.items())
def test_shipped_recipes_keep_their_id(name: str, recipe_id: str) -> None:
    assert load_recipe(name).recipe_id == recipe_id


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.json")), ids=lambda path: path.stem)
def test_records_of_the_first_release_keep_their_ids(path: Path) -> None:
    record = RunRecord.from_json(path.read_text(), path.name)
    assert path.parent.name.endswith(f"-{record.spec.recipe.recipe_id}")
    assert path.stem.endswith(f"-{record.spec.run_id}")


def test_a_recipe_written_in_full_is_the_same_recipe() -> None:
    recipe = load_recipe("frozen")
    table = {
        section: {
            field.name: getattr(getattr(recipe, section), field.name) for field in fields(kind)
        }
        for section, kind in field_types(Recipe).items()
    }
    assert build(Recipe, table, "full").recipe_id == recipe.recipe_id == digest(canonical(recipe))


def test_the_reproductions_hold_out_leaves_out_58_images() -> None:
    labels = np.repeat(np.arange(100), 59)[:5864]  # as many as CUB-200-2011's training images
    for name in ("blog", "blog-code"):
        assert len(training_part(labels, load_recipe(name), 0, None).members) == 5864 - 58


def test_the_reality_check_is_that_of_its_configurations() -> None:
    recipe = load_recipe("reality-check")
    assert (recipe.input.min_area, recipe.backbone.bn_affine) == (0.16, "train")
    assert (recipe.optimizer.name, recipe.optimizer.momentum) == ("rmsprop", 0.9)
