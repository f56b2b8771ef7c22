"""What is run: recipes, losses with their parameters, runs. Plain frozen dataclasses.

A recipe field that has a default was added after the first release. While it is at its default it
stays out of the canonical form that ``recipe_id`` and ``run_id`` are made of (``canonical``), and a
TOML file or record without it means the default. So recipes and records that are older than a field
keep their identity; the default must be what was done before the field was there, and never change.
So it is with parameters of losses that were declared later: ``FORMER_PARAMS``.

This module knows nothing of files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import LossEntry, ParamValue
from mlbench.recipes.validation import Range, build, check_value, field_types

_LARGEST_SINGLE = 3.4e38  # what losses and steps are computed in

FORMER_PARAMS: dict[str, dict[str, ParamValue]] = {
    "arcface": {"init": "normal-1"},
    "cosface": {"init": "normal-1"},
    "proxy_anchor": {"init": "kaiming-normal"},
    "proxy_nca": {"init": "normal-0.125"},
    "proxy_nca_pp": {"init": "normal-0.125"},
    "sphereface": {"init": "normal-1"},
    "sub_center_arcface": {"init": "normal-1"},
}
"""By loss, the values that parameters had before they were declared: those of records without."""

Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, _LARGEST_SINGLE, open_low=True)]
NonNegative = Annotated[float, Range(0, _LARGEST_SINGLE)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class DataSpec:
    """Data set and what of its training images is used.

    Attributes:
        name: a registered data set.
        holdout: share of the training images left out of training, drawn with the run's seed.
    """

    name: str
    holdout: Annotated[float, Range(0, 0.5)]


@dataclass(frozen=True)
class InputSpec:
    """The way from an image file to the network's input.

    Attributes:
        size: side of the square crop, pixels.
        train_resize: shorter side to which training images are resized before cropping, pixels; 0
            cuts random-resized crops from the original pixels, which are kept on disk for it.
        test_resize: the same for test images.
        train_crop: ``random-resized`` (Szegedy et al. 2015, as in torchvision) or ``center``.
        min_area: least share of the image's area that a random crop covers.
        flip: whether training crops are mirrored with probability 1/2.
        normalization: ``backbone`` for scale, mean and std of the backbone's weights; ``none``
            leaves pixels in 0-1.
        channels: channel order; ``backbone`` for that of its weights.
        interpolation: by which images are resized; ``backbone`` for that of its weights, which is
            what recipes that do not say it get with a backbone of timm.
    """

    size: Count
    train_resize: Natural
    test_resize: Count
    train_crop: Literal["random-resized", "center"]
    min_area: Annotated[float, Range(0, 1, open_low=True)]
    flip: bool
    normalization: Literal["backbone", "none"]
    channels: Literal["backbone", "rgb", "bgr"]
    interpolation: Literal["bilinear", "bicubic", "backbone"] = "bilinear"


@dataclass(frozen=True)
class BackboneSpec:
    """The network below the head.

    Attributes:
        name: a registered backbone.
        weights: ``imagenet``, ``none``, or the SHA-256 of a weights file (users give its path).
        trunk: ``train``, or ``frozen``: features are computed once and only the head learns.
        bn_stats: ``live`` batch statistics in training, or ``frozen`` running statistics.
        bn_affine: whether batch norm's scale and shift are ``train``-ed or ``frozen``.
    """

    name: str
    weights: str
    trunk: Literal["train", "frozen"]
    bn_stats: Literal["live", "frozen"]
    bn_affine: Literal["train", "frozen"]


@dataclass(frozen=True)
class HeadSpec:
    """From the trunk's last feature map, or tokens, to the embedding.

    Attributes:
        kind: ``linear``, or ``relu-bn-linear`` (ReLU, batch norm, linear).
        dim: length of the embedding.
        pool: over all positions: ``backbone`` for the network's own way (global average, but of
            some timm models, such as the class token of transformers); ``avg``, ``max``; their sum
            ``avg+max`` (Kim et al. 2020, code); ``gem``, the generalised mean with exponent 3
            (Radenovic et al. 2019).
        norm: of the pooled features: ``none``, or ``layer`` norm without scale and shift (Zhai &
            Wu 2019).
    """

    kind: Literal["linear", "relu-bn-linear"]
    dim: Annotated[int, Range(1, 65536)]
    pool: Literal["backbone", "avg", "max", "avg+max", "gem"] = "backbone"
    norm: Literal["none", "layer"] = "none"


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimiser of network and loss.

    Attributes:
        name: ``adam``, ``adamw``, ``rmsprop`` or ``sgd``.
        lr: learning rate of the trunk.
        head_lr: learning rate of the head.
        loss_lr: learning rate of the loss's own parameters; ``declared`` takes the loss's own.
        eps: of Adam and RMSprop (no effect on ``sgd``).
        weight_decay: on all parameters, the loss's included.
        momentum: of ``sgd`` and ``rmsprop``; ``usual`` is 0.9 for ``sgd`` and 0 for ``rmsprop``.
        clip_value: each entry of a gradient is kept within plus and minus this; 0 does not clip.
        clip_norm: after that, the gradient of all parameters together, the loss's included, is
            scaled down to this length if it is longer; 0 does not clip.
    """

    name: Literal["adam", "adamw", "rmsprop", "sgd"]
    lr: NonNegative
    head_lr: Positive
    loss_lr: Positive | Literal["declared"]
    eps: Positive
    weight_decay: NonNegative
    momentum: Annotated[float, Range(0, 1)] | Literal["usual"] = "usual"
    clip_value: NonNegative = 0.0
    clip_norm: NonNegative = 0.0


@dataclass(frozen=True)
class ScheduleSpec:
    """Length of training and decay of all learning rates.

    Attributes:
        epochs: passes over the training images.
        milestones: 0-based epochs at whose start all rates are multiplied by ``decay``.
        decay: see ``milestones``.
        warmup: number of first epochs in which the trunk is not trained.
        annealing: ``cosine`` multiplies all rates of 0-based epoch e of E by (1 + cos(pi e/E)) / 2
            as well (Loshchilov & Hutter 2017, without restarts).
    """

    epochs: Count
    milestones: tuple[Natural, ...]
    decay: Positive
    warmup: Natural
    annealing: Literal["none", "cosine"] = "none"


@dataclass(frozen=True)
class BatchSpec:
    """Batch composition; the same number of images for every loss.

    Attributes:
        size: images a batch.
        drop_last: whether an epoch's incomplete last batch is left out.
        micro: images that are embedded at a time, so that memory is bounded by as many; the
            gradient is that of the whole batch, computed in parts (gradient caching, Gao et al.
            2021). 0 embeds the whole batch at once.
    """

    size: Annotated[int, Range(2)]
    drop_last: bool
    micro: Natural = 0


@dataclass(frozen=True)
class TrainingSpec:
    """Arithmetic of training.

    Attributes:
        precision: ``fp32``, ``tf32`` (CUDA) or ``bf16`` (autocast).
    """

    precision: Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class SelectionSpec:
    """Which epoch's network is evaluated.

    Attributes:
        rule: ``last`` epoch; the best MAP@R on the ``validation`` classes; or ``test-best``, the
            best R@1 on the test classes: dishonest, there to measure by how much it inflates, and
            marked wherever it is shown.
        folds: class-disjoint parts of the training classes, of which fold k is the validation
            part of run k; 1 validates on the data set's own validation images; 0 on none.
        patience: unless ``last``, stop after so many epochs without improvement; 0 never.
    """

    rule: Literal["last", "validation", "test-best"]
    folds: Natural
    patience: Natural


@dataclass(frozen=True)
class EvaluationSpec:
    """The protocol of the evaluator.

    Attributes:
        ks: the k of R@k.
        nmi_restarts: k-means restarts, of which the one of lowest inertia gives the NMI.
        depths: the k of P@k and mAP@k.
        verification: whether all pairs of test images are compared too: TAR at FAR, EER.
    """

    ks: tuple[Count, ...]
    nmi_restarts: Count
    depths: tuple[Count, ...] = ()
    verification: bool = False


@dataclass(frozen=True)
class Recipe:
    """All that must be equal in a comparison."""

    data: DataSpec
    input: InputSpec
    backbone: BackboneSpec
    head: HeadSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    batch: BatchSpec
    training: TrainingSpec
    selection: SelectionSpec
    evaluation: EvaluationSpec

    def __post_init__(self) -> None:
        if self.input.test_resize < self.input.size:
            raise MlbenchError(
                f"recipe: input.test_resize ({self.input.test_resize}) is below input.size "
                f"({self.input.size}); the crop must fit"
            )
        if self.input.train_crop == "center" and self.input.train_resize < self.input.size:
            raise MlbenchError("recipe: input.train_resize is below input.size; the crop must fit")
        if self.optimizer.momentum != "usual" and self.optimizer.name not in ("sgd", "rmsprop"):
            raise MlbenchError(
                f"recipe: optimizer {self.optimizer.name} has no momentum to set; omit "
                "optimizer.momentum or set it to usual"
            )
        if self.selection.rule == "validation" and not self.selection.folds:
            raise MlbenchError(
                "recipe: selection.rule 'validation' needs selection.folds: 2 or more, or 1 for "
                "the data set's own validation images"
            )
        if 1 not in self.evaluation.ks or len(set(self.evaluation.ks)) != len(self.evaluation.ks):
            raise MlbenchError("recipe: evaluation.ks must contain 1, and no value twice")
        if len(set(self.evaluation.depths)) != len(self.evaluation.depths):
            raise MlbenchError("recipe: evaluation.depths contains a value twice")
        if self._largest_rate() > math.log(_LARGEST_SINGLE):
            raise MlbenchError(
                f"recipe: schedule.decay {self.schedule.decay:g} raises a learning rate above "
                f"{_LARGEST_SINGLE:g}; lower it or use fewer schedule.milestones"
            )

    def _largest_rate(self) -> float:
        """Return the logarithm of the largest rate of any epoch; a declared one counts as 1."""
        optimizer, schedule = self.optimizer, self.schedule
        declared = 1.0 if optimizer.loss_lr == "declared" else optimizer.loss_lr
        rises = sum(start < schedule.epochs for start in schedule.milestones)
        first = math.log(max(optimizer.lr, optimizer.head_lr, declared))
        return first + rises * max(math.log(schedule.decay), 0.0)

    @functools.cached_property
    def recipe_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical form."""
        return digest(canonical(self))

    def flat(self) -> dict[str, Any]:
        """Return all fields as ``{"section.field": value}``."""
        return {
            f"{section}.{key}": value
            for section, table in asdict(self).items()
            for key, value in table.items()
        }


FIELDS_OF_LOSSES = ("schedule.epochs", "optimizer.lr", "optimizer.head_lr", "optimizer.loss_lr")
"""Fields of the recipe for which a loss may have a value of its own, among its parameters."""


@dataclass(frozen=True)
class LossSpec:
    """A loss and all its parameters, defaults included, sorted by name.

    Among them may be values of its own for ``FIELDS_OF_LOSSES``, by their full keys.
    """

    name: str
    params: tuple[tuple[str, ParamValue], ...] = ()

    @property
    def arguments(self) -> dict[str, ParamValue]:
        """The parameters that its factory takes."""
        return {key: value for key, value in self.params if key not in FIELDS_OF_LOSSES}

    @property
    def fields(self) -> dict[str, ParamValue]:
        """Its own values for fields of the recipe."""
        return {key: value for key, value in self.params if key in FIELDS_OF_LOSSES}

    @classmethod
    def of(cls, entry: LossEntry, params: Mapping[str, Any], where: str = "loss") -> LossSpec:
        """Check ``params`` against the loss's declared defaults and fill in the rest.

        Raises:
            MlbenchError: unknown parameter, or a value of the wrong type.
        """
        given = {}
        for key, value in params.items():
            checked = check_value(_kind(entry, key), value, f"{where}: {entry.name}.{key}")
            if isinstance(checked, int | float) and abs(checked) > _LARGEST_SINGLE:
                raise MlbenchError(f"{where}: {entry.name}.{key}: {value!r} is too large to train")
            given[key] = checked
        return cls(entry.name, tuple(sorted({**entry.defaults, **given}.items())))

    def label(self, defaults: Mapping[str, ParamValue]) -> str:
        """Return the name with the parameters that differ from ``defaults``."""
        changed = [f"{k}={v}" for k, v in self.params if defaults.get(k) != v]
        return f"{self.name} ({', '.join(changed)})" if changed else self.name


@dataclass(frozen=True)
class RunSpec:
    """One cell of a benchmark: recipe, loss, seed and (if the recipe has folds) fold.

    The recipe is that of the comparison; ``trained`` has the loss's own values in it. ``split`` is
    the number of a random split of the classes; None is the data set's own.
    """

    recipe: Recipe
    loss: LossSpec
    seed: int
    fold: int | None = None
    split: int | None = None

    @property
    def trained(self) -> Recipe:
        """The recipe by which the loss is trained; MlbenchError if a value of its own is wrong."""
        table = asdict(self.recipe)
        for key, value in self.loss.fields.items():
            section, _, name = key.partition(".")
            table[section][name] = value
        return build(Recipe, table, self.loss.name) if self.loss.fields else self.recipe

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical form."""
        table = {**asdict(self), "recipe": canonical(self.recipe)}
        former = FORMER_PARAMS.get(self.loss.name, {}).items()
        table["loss"]["params"] = [pair for pair in self.loss.params if pair not in former]
        if self.split is None:  # which no run had before there were random splits
            del table["split"]
        return digest(table)


def canonical(part: Any) -> dict[str, Any]:
    """Return the table that a recipe, or a section of one, is identified by.

    It holds every field but those that have a default and are at it.
    """
    table = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if value != field.default:
            table[field.name] = canonical(value) if is_dataclass(value) else value
    return table


def _kind(entry: LossEntry, key: str) -> Any:
    """Return the type of a loss's parameter, or of its own value for a field of the recipe."""
    if key in FIELDS_OF_LOSSES:
        section, _, name = key.partition(".")
        return field_types(field_types(Recipe)[section])[name]
    if not entry.prefix and key not in entry.defaults:
        raise unknown_name(f"parameter of {entry.name}", key, entry.defaults)
    return ParamValue if entry.prefix else type(entry.defaults[key])


def digest(value: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def recipe_keys() -> dict[str, list[str]]:
    """Return the full keys of a recipe by their last part: ``{"epochs": ["schedule.epochs"]}``."""
    keys: dict[str, list[str]] = {}
    for section, kind in field_types(Recipe).items():
        for name in field_types(kind):
            keys.setdefault(name, []).append(f"{section}.{name}")
    return keys
