"""What plans will take, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset
from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import Recipe
from mlbench.registry import DATASETS
from mlbench.runs.ingredients import training_part
from mlbench.training.rate import images_per_second


def cost_in_words(plans: Sequence[Plan], device: torch.device) -> tuple[str, ...]:
    """Say how many images the runs of plans of one data set are trained on, and how long it takes.

    The rate is measured on this machine, for each backbone and size of images; what cannot be
    known, for lack of the data for instance, is said instead.
    """
    runs = [(plan.recipe, run.seed, run.fold) for plan in plans for run in plan.runs()]
    epochs = sum(recipe.schedule.epochs for recipe, _, _ in runs)
    counted = f"{len(runs)} runs, {epochs:,} epochs"
    try:
        dataset = DATASETS.get(plans[0].recipe.data.name).load()(plans[0].files.data_root)
    except MlbenchError as error:
        return (f"{counted}; how many images is not known: {error}",)
    images = [training_images(dataset, *run) for run in runs]
    counted += f": {sum(images):,} training images in all"
    try:
        rates = {key: images_per_second(r, device) for key, r in _kinds(plans).items()}
    except MlbenchError as error:
        return counted, f"how long it takes is not known: {error}"
    of_run = [rates[_kind(recipe)] for recipe, _, _ in runs]
    seconds = sum(n / rate for n, rate in zip(images, of_run, strict=True))
    slowest, fastest = (f"{pick(rates.values()):.3g}" for pick in (min, max))
    rate = slowest if slowest == fastest else f"{slowest} to {fastest}"
    return counted, (
        f"about {_long(seconds)} in one process of this machine, whose training steps have just "
        f"been measured: {rate} images per second ({device}); evaluation is not counted"
    )


def _long(seconds: float) -> str:
    return f"{seconds / 3600:,.3g} hours" if seconds >= 3600 else f"{seconds / 60:.2g} minutes"


def training_images(dataset: Dataset, recipe: Recipe, seed: int, fold: int | None) -> int:
    """Return how many images a run is trained on, repeats counted.

    With a frozen trunk it is the images whose features are computed.
    """
    if recipe.backbone.trunk == "frozen":
        sides = (dataset.train, dataset.test, dataset.gallery)
        return sum(len(side) for side in sides if side is not None)
    count = len(training_part(dataset.train.labels, recipe, seed, fold).members)
    size = recipe.batch.size
    whole = count - count % size if recipe.batch.drop_last and count >= size else count
    return whole * recipe.schedule.epochs


_Kind = tuple[object, ...]


def _kind(recipe: Recipe) -> _Kind:
    spec = recipe.backbone
    return spec.name, spec.trunk, recipe.input.size


def _kinds(plans: Sequence[Plan]) -> dict[_Kind, Recipe]:
    return {_kind(plan.recipe): plan.recipe for plan in plans}
