"""Random class-disjoint splits: who is dealt where, and what runs on them read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import record
from helpers.settings import QUICK

from mlbench.datasets.checks import check_dataset
from mlbench.datasets.resplit import resplit
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import RunSpec
from mlbench.records.record import RunRecord
from mlbench.records.store import record_path
from mlbench.runs.ingredients import Ingredients, Side
from mlbench.runs.run import run_one


def images_of(first: int, classes: int) -> ImageSet:
    """Three images a class, each filled with the number of its class."""
    labels = np.repeat(np.arange(classes), 3)
    return ImageSet(
        tuple(f"{first + label}-{n}" for n, label in enumerate(labels)),
        labels,
        tuple(f"class{first + c}" for c in range(classes)),
        lambda i: np.full((4, 4, 3), first + labels[i], np.uint8),
        levels=((first + labels) // 3)[:, None],
    )


@pytest.fixture
def dataset() -> Dataset:
    return Dataset("ten", images_of(0, 6), images_of(6, 4), "f" * 64)


def test_classes_are_dealt_anew_and_keep_their_numbers(dataset: Dataset) -> None:
    seen = set()
    for split in range(5):
        dealt, members = resplit(dataset, split)
        check_dataset(dealt)
        assert (len(dealt.train.class_names), len(dealt.test.class_names)) == (6, 4)
        assert sorted(np.concatenate([*members.values()])) == list(range(30))
        assert dealt.fingerprint == dataset.fingerprint, "the images are the same"
        for part in (dealt.train, dealt.test):
            for i, name in enumerate(part.names):
                number = int(name.partition("-")[0])
                assert part.class_names[part.labels[i]] == f"class{number}"
                assert int(part.read(i)[0, 0, 0]) == number
                assert part.levels is not None
                assert part.levels[i].tolist() == [number // 3]
        numbers = [int(name.removeprefix("class")) for name in dealt.test.class_names]
        assert dealt.test_numbers.tolist() == numbers
        seen.add(tuple(numbers))
    assert len(seen) == 5
    assert resplit(dataset, 3)[0].test.names == resplit(dataset, 3)[0].test.names


def test_a_split_is_the_same_for_ever(dataset: Dataset) -> None:
    # numpy.random.RandomState([0, 10]).permutation(10)[6:], sorted; its numbers are frozen (NEP 19)
    assert resplit(dataset, 0)[0].test_numbers.tolist() == [1, 3, 7, 9]


def test_a_data_set_with_a_gallery_is_refused(dataset: Dataset) -> None:
    with pytest.raises(MlbenchError, match="'ten': no random splits, as its test images"):
        resplit(replace(dataset, gallery=dataset.test), 0)


@pytest.mark.parametrize("trunk", ["frozen", "train"])
def test_runs_read_the_same_pixels_and_features_in_every_split(photos: Path, trunk: str) -> None:
    settings = {**QUICK, "backbone.trunk": trunk, "schedule.epochs": 1, "schedule.milestones": []}
    request = Request(
        dataset=f"folder:{photos}", losses=("npairs",), settings=tuple(settings.items()), splits=2
    )
    plan = make_plan(request)
    whole = Ingredients(plan.recipe, plan.files, torch.device("cpu"), lambda *_: None)
    sides: tuple[Side, ...] = ("train", "test")
    where: dict[str, tuple[Side, int]] = {
        name: (side, i) for side in sides for i, name in enumerate(whole.images(side).names)
    }
    dealt = whole.of_split(1)
    assert {where[name][0] for name in dealt.images("test").names} == {"train", "test"}
    for side in sides:
        indices = np.array([7, 0, 20, 3])
        found = dealt.inputs(side, 0).test_batch(indices)
        for row, i in zip(found, indices, strict=True):
            own, at = where[dealt.images(side).names[i]]
            assert torch.equal(row, whole.inputs(own, 0).test_batch(np.array([at]))[0])
        drawn = dealt.inputs(side, 0, augmented=True).draw(indices, np.random.default_rng(3))
        batch = drawn(slice(None))
        assert batch.shape == found.shape
        parts = [drawn(slice(0, 1)), drawn(slice(1, 3)), drawn(slice(3, None))]
        assert torch.equal(batch, torch.cat(parts)), "as parts of a batch are cut"

    specs = plan.runs()
    assert [spec.split for spec in specs] == [None, 0, 1]
    standard, first, _ = (run_one(spec, whole)[0] for spec in specs)
    assert (standard.split, first.split) == (None, 0)
    assert first.totals is not None
    assert first.totals.classes.tolist() == resplit(whole.dataset, 0)[0].test_numbers.tolist()
    assert first.dataset == standard.dataset, "as many classes and images, and one fingerprint"


def test_a_split_is_part_of_a_run_and_of_its_record_and_none_changes_neither() -> None:
    plan = make_plan(Request(losses=("npairs",), splits=2))
    standard, first, second = plan.runs()
    assert standard == RunSpec(plan.recipe, plan.losses[0], 0)
    assert len({standard.run_id, first.run_id, second.run_id}) == 3
    assert record_path(Path(), second).name.startswith("npairs-seed0-split1-")
    of_second = record(second, split=1)
    assert of_second.spec == second
    assert RunRecord.from_json(of_second.to_json(), "x") == of_second
    text = record(standard).to_json()
    assert "split" not in text, "as it was before there were splits"
    assert RunRecord.from_json(text, "x") == record(standard)


@pytest.mark.parametrize("splits", [1, -1, 1001, True, "2"])
def test_numbers_of_splits_that_say_nothing_are_refused(splits: object) -> None:
    with pytest.raises(MlbenchError, match=r"splits: .* must be 0"):
        make_plan(Request(splits=splits))  # type: ignore[arg-type]
