"""What is run: recipes, losses with their parameters, runs. Plain frozen dataclasses.

This module knows nothing of files; ``mlbench.recipes`` reads them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import LossEntry, ParamValue

T = TypeVar("T")

_KIND_NAMES: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    types.NoneType: "nothing",
}


_LARGEST_SINGLE = 3.4e38  # what losses are computed in


@dataclass(frozen=True)
class Range:
    """Bounds of a number; ``low`` itself is excluded if ``open_low``."""

    low: float
    high: float = float("inf")
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return low if self.high == float("inf") else f"{low} and at most {self.high:g}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
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
        train_resize: shorter side to which training images are resized before cropping, pixels.
        test_resize: the same for test images.
        train_crop: ``random-resized`` (Szegedy et al. 2015, as in torchvision) or ``center``.
        min_area: least share of the image's area that a random crop covers.
        flip: whether training crops are mirrored with probability 1/2.
        normalization: ``backbone`` for scale, mean and std of the backbone's weights; ``none``
            leaves pixels in 0-1.
        channels: channel order; ``backbone`` for that of its weights.
    """

    size: Count
    train_resize: Count
    test_resize: Count
    train_crop: Literal["random-resized", "center"]
    min_area: Annotated[float, Range(0, 1, open_low=True)]
    flip: bool
    normalization: Literal["backbone", "none"]
    channels: Literal["backbone", "rgb", "bgr"]


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
    """From pooled features to the embedding.

    Attributes:
        kind: ``linear``, or ``relu-bn-linear`` (ReLU, batch norm, linear).
        dim: length of the embedding.
    """

    kind: Literal["linear", "relu-bn-linear"]
    dim: Annotated[int, Range(1, 65536)]


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimiser of network and loss.

    Attributes:
        name: ``adam``, ``adamw``, ``rmsprop`` or ``sgd`` (momentum 0.9).
        lr: learning rate of the trunk.
        head_lr: learning rate of the head.
        loss_lr: learning rate of the loss's own parameters; ``declared`` takes the loss's own.
        eps: of Adam and RMSprop (no effect on ``sgd``).
        weight_decay: on all parameters, the loss's included.
    """

    name: Literal["adam", "adamw", "rmsprop", "sgd"]
    lr: NonNegative
    head_lr: Positive
    loss_lr: Positive | Literal["declared"]
    eps: Positive
    weight_decay: NonNegative


@dataclass(frozen=True)
class ScheduleSpec:
    """Length of training and decay of all learning rates.

    Attributes:
        epochs: passes over the training images.
        milestones: 0-based epochs at whose start all rates are multiplied by ``decay``.
        decay: see ``milestones``.
        warmup: number of first epochs in which the trunk is not trained.
    """

    epochs: Count
    milestones: tuple[Natural, ...]
    decay: Positive
    warmup: Natural


@dataclass(frozen=True)
class BatchSpec:
    """Batch composition; the same number of images for every loss.

    Attributes:
        size: images a batch.
        drop_last: whether an epoch's incomplete last batch is left out.
    """

    size: Annotated[int, Range(2)]
    drop_last: bool


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
            part of run k; 0 trains on all classes.
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
    """

    ks: tuple[Count, ...]
    nmi_restarts: Count


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
        if self.selection.rule == "validation" and self.selection.folds < 2:
            raise MlbenchError("recipe: selection.rule 'validation' needs selection.folds >= 2")
        if 1 not in self.evaluation.ks or len(set(self.evaluation.ks)) != len(self.evaluation.ks):
            raise MlbenchError("recipe: evaluation.ks must hold 1, and no value twice")
        if self.selection.folds == 1:
            raise MlbenchError("recipe: selection.folds must be 0 (none) or at least 2")

    @functools.cached_property
    def recipe_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical form."""
        return digest(asdict(self))

    def flat(self) -> dict[str, Any]:
        """Return all fields as ``{"section.field": value}``."""
        return {
            f"{section}.{key}": value
            for section, table in asdict(self).items()
            for key, value in table.items()
        }


@dataclass(frozen=True)
class LossSpec:
    """A loss and all its parameters, defaults included, sorted by name."""

    name: str
    params: tuple[tuple[str, ParamValue], ...] = ()

    @classmethod
    def of(cls, entry: LossEntry, params: Mapping[str, Any], where: str = "loss") -> LossSpec:
        """Check ``params`` against the loss's declared defaults and fill in the rest.

        Raises:
            MlbenchError: unknown parameter, or a value of the wrong type.
        """
        given = {}
        for key, value in params.items():
            if entry.prefix:
                given[key] = value
                continue
            if key not in entry.defaults:
                raise unknown_name(f"parameter of {entry.name}", key, entry.defaults)
            wanted = type(entry.defaults[key])
            given[key] = check_value(wanted, value, f"{where}: {entry.name}.{key}")
            if wanted is float and abs(given[key]) > _LARGEST_SINGLE:
                raise MlbenchError(f"{where}: {entry.name}.{key}: {value!r} is too large to train")
        return cls(entry.name, tuple(sorted({**entry.defaults, **given}.items())))

    def label(self, defaults: Mapping[str, ParamValue]) -> str:
        """Return the name with the parameters that differ from ``defaults``."""
        changed = [f"{k}={v}" for k, v in self.params if defaults.get(k) != v]
        return f"{self.name} ({', '.join(changed)})" if changed else self.name


@dataclass(frozen=True)
class RunSpec:
    """One cell of a benchmark: recipe, loss, seed and (if the recipe has folds) fold."""

    recipe: Recipe
    loss: LossSpec
    seed: int
    fold: int | None = None

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical form."""
        return digest(asdict(self))


def digest(value: object) -> str:
    """Return the first 12 hex digits of the SHA-256 of ``value``'s canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(cls: type[T], table: object, where: str) -> T:
    """Build the (nested) dataclass ``cls`` from plain ``table``, every key and value checked.

    Args:
        cls: the dataclass.
        table: nested dictionaries, as TOML or JSON give them.
        where: the file, for messages.

    Raises:
        MlbenchError: a key is unknown (near misses are named) or missing, or a value is wrong.
    """
    if not isinstance(table, Mapping):
        raise MlbenchError(f"{where}: expected a table, got {table!r}")
    hints = _hints(cls)
    for key in table:
        if key not in hints:
            error = unknown_name("key", str(key), hints)
            raise MlbenchError(f"{where}: {error}")
    missing = [name for name in hints if name not in table]
    if missing:
        raise MlbenchError(f"{where}: missing {', '.join(missing)}")
    return cls(**{k: check_value(hints[k], v, _join(where, k)) for k, v in table.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def check_value(kind: Any, value: object, where: str) -> Any:
    """Return ``value`` as ``kind`` (a field's type); MlbenchError if it does not fit."""
    return _checker(kind)(value, where)


_Checker = Callable[[Any, str], Any]


@functools.cache
def _checker(kind: Any) -> _Checker:
    """Return the check of a type, taken apart once for all values."""
    if is_dataclass(kind):
        return functools.partial(build, kind)  # type: ignore[arg-type]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return functools.partial(_check_range, _checker(args[0]), args[1])
    if origin is Literal:
        return functools.partial(_check_choice, args)
    if origin in (Union, types.UnionType):
        return functools.partial(_check_union, {each: _checker(each) for each in args})
    if origin is tuple:
        return functools.partial(_check_list, _checker(args[0]))
    if origin is dict:
        return functools.partial(_check_table, _checker(args[1]))
    return functools.partial(_check_scalar, kind)


def _check_range(check: _Checker, allowed: Range, value: object, where: str) -> Any:
    checked = check(value, where)
    if checked not in allowed:
        raise MlbenchError(f"{where}: {value!r} must be {allowed}")
    return checked


def _check_choice(choices: tuple[object, ...], value: object, where: str) -> Any:
    if value not in choices:
        raise MlbenchError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")
    return value


def _check_union(checks: Mapping[Any, _Checker], value: object, where: str) -> Any:
    exact = checks.get(type(value))
    if exact is not None:
        return exact(value, where)
    problems = []
    for check in checks.values():
        try:
            return check(value, where)
        except MlbenchError as error:
            problems.append(str(error).removeprefix(f"{where}: "))
    raise MlbenchError(f"{where}: {'; '.join(problems)}")


def _check_list(check: _Checker, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise MlbenchError(f"{where}: expected a list, got {value!r}")
    return tuple(check(item, where) for item in value)


def _check_table(check: _Checker, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise MlbenchError(f"{where}: expected a table, got {value!r}")
    return {str(k): check(v, _join(where, str(k))) for k, v in value.items()}


def _check_scalar(kind: type, value: object, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else float("inf")
    if kind is float and isinstance(value, float) and value - value != 0:
        raise MlbenchError(f"{where}: {value!r} is not a finite number")
    if type(value) is not kind:
        raise MlbenchError(f"{where}: expected {_KIND_NAMES[kind]}, got {value!r}")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"


def recipe_keys() -> dict[str, list[str]]:
    """Return the full keys of a recipe by their last part: ``{"epochs": ["schedule.epochs"]}``."""
    keys: dict[str, list[str]] = {}
    for section, kind in _hints(Recipe).items():
        for name in _hints(kind):
            keys.setdefault(name, []).append(f"{section}.{name}")
    return keys
