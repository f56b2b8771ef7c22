"""What is printed around the values of a comparison: labels of rows, footer, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from mlbench.errors import MlbenchError
from mlbench.losses.baselines import BASELINES
from mlbench.recipes.reading import shipped_name
from mlbench.recipes.spec import LossSpec
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES

_TRUNK = {"train": "trained", "frozen": "frozen"}


def labels(records: Mapping[Path, RunRecord]) -> dict[Path, str]:
    """Return the label of each record's row; other hardware or other code of a loss has its own."""
    several_places = len({_place(r) for r in records.values()}) > 1
    made = {(r.loss, r.loss_source) for r in records.values()}
    versions = Counter(loss for loss, _ in made)
    label = {key: _label(r) for key, r in _by_loss(records.values()).items()}
    return {
        path: label[_loss_key(r)]
        + (f" [{r.loss_source}]" if versions[r.loss] > 1 else "")
        + (f" [{_place(r)}]" if several_places else "")
        for path, r in records.items()
    }


def naming_fields(records: Iterable[RunRecord], varied: Sequence[str]) -> tuple[str, ...]:
    """Return the varied fields that records are told apart by: the first, if that is enough."""
    if not varied:
        return ()
    flat = [record.recipe.flat() for record in records]
    values = {tuple(each[name] for name in varied) for each in flat}
    enough = len({each[:1] for each in values}) == len(values)
    return tuple(varied[:1]) if enough else tuple(varied)


def values_of(record: RunRecord, fields: Sequence[str]) -> str:
    """Return the values that a record's recipe has in some fields; "" if there are none."""
    if not fields:
        return ""
    flat = record.recipe.flat()
    return ", ".join(str(flat[name]) for name in fields)


def _by_loss(records: Iterable[RunRecord]) -> dict[Hashable, RunRecord]:
    """Return one record of each loss with its parameters."""
    return {_loss_key(record): record for record in records}


def _loss_key(record: RunRecord) -> Hashable:
    # 1, 1.0 and True are equal, but not the same.
    return record.loss, repr(sorted(record.params.items()))


def _label(record: RunRecord) -> str:
    if record.loss in BASELINES:
        return record.loss
    spec = LossSpec(record.loss, tuple(sorted(record.params.items())))
    try:
        return spec.label(LOSSES.get(record.loss).defaults)
    except MlbenchError:  # a plugin's record, read where the plugin is not installed
        return spec.label({})


def _place(record: RunRecord) -> str:
    """Return the hardware of a record, whose figures no other hardware's are mixed with."""
    return f"{record.provenance.device}: {record.provenance.hardware}"


def stamp(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Return what a reader must know to judge the values of a comparison, a line each."""
    first, facts = records[0], records[0].dataset
    versions = first.provenance
    images = sorted({r.cost.images_seen for r in records if r.cost.images_seen})
    tested = sorted({r.dataset.test_images for r in records})
    sources = sorted({r.provenance.source for r in records})
    packages = ", ".join(f"{k} {v}" for k, v in versions.packages.items())
    lone = max((int(r.metrics.get("n_lone", 0)) for r in records), default=0)
    skipped = f"; {len(facts.skipped)} unreadable images skipped" if facts.skipped else ""
    return (
        *dict.fromkeys(map(_of_recipe, records)),
        f"data {facts.name} {facts.fingerprint[:12]}: {_training_counts(records)}; "
        f"test {_span(tested)} images of {facts.test_classes} classes ({lone} lone queries)"
        f"{skipped}",
        *_random_splits(records),
        f"seeds {_span(sorted({r.seed for r in records}))}; images seen per run: "
        f"{', '.join(map(str, images)) or 'none'}",
        f"hardware {'; '.join(sorted({_place(r) for r in records}))}",
        f"mlbench {versions.mlbench}, source hash {', '.join(sources)}; {packages}",
    )


def _random_splits(records: Sequence[RunRecord]) -> tuple[str, ...]:
    numbers = sorted({r.split for r in records if r.split is not None})
    if not numbers:
        return ()
    return (
        f"random splits {_span(numbers)}: each divides all classes into training and test at "
        "random; the training classes of two splits overlap",
    )


def _of_recipe(record: RunRecord) -> str:
    recipe = record.recipe
    name = shipped_name(recipe)
    return (
        f"recipe {f'{name} ' if name else ''}{record.recipe_id}: "
        f"{recipe.schedule.epochs} epochs, batch {recipe.batch.size}, "
        f"{recipe.input.size} px, backbone {_TRUNK[recipe.backbone.trunk]}, weights "
        f"{record.weights_id}, epoch: {recipe.selection.rule}, "
        f"folds: {recipe.selection.folds or 'none'}"
    )


def settings(records: Iterable[RunRecord]) -> dict[str, str]:
    """Return, by loss, what it may choose: kind of batch, form of embeddings, hyperparameters."""
    own = {}
    for record in _by_loss(r for r in records if r.loss not in BASELINES).values():
        params = ", ".join(f"{name} {value}" for name, value in sorted(record.params.items()))
        own[_label(record)] = f"{_needs(record)}{'; ' if params else ''}{params}"
    return dict(sorted(own.items()))


def _needs(record: RunRecord) -> str:
    try:
        return record.needs or LOSSES.get(record.loss).needs
    except MlbenchError:  # a plugin's record, read where the plugin is not installed
        return "requirements not known here"


def _training_counts(records: Sequence[RunRecord]) -> str:
    trained = [r.dataset for r in records if r.loss not in BASELINES] or [records[0].dataset]
    images = sorted({facts.train_images for facts in trained})
    classes = sorted({facts.train_classes for facts in trained})
    return f"train {_span(images)} images of {_span(classes)} classes"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
