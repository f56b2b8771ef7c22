"""From what users write (recipe TOML, benchmark TOML, ``--set``) to the runs to be made."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import LossEntry, ParamValue
from mlbench.losses.baselines import BASELINES
from mlbench.recipes.reading import (
    loss_parameters,
    read_recipe_table,
    read_toml,
    with_interpolation_of_backbone,
    with_ks_of_dataset,
)
from mlbench.recipes.spec import LossSpec, Recipe, RunSpec, digest, recipe_keys
from mlbench.recipes.validation import build, check_value
from mlbench.registry import BACKBONES, DATASETS, LOSSES
from mlbench.system.files import expanded, file_sha256
from mlbench.system.regular import is_regular

DEFAULT_LOSSES = ("softtriple", "softmax_norm", "npairs", "triplet")
OnBadImage = Literal["error", "skip"]
_SOME_CLASSES = 10
_BENCHMARK_KEYS = ("recipe", "losses", "seeds", "splits")


@dataclass(frozen=True)
class Files:
    """Where this machine keeps what a recipe names by identity, and how it makes the runs.

    Attributes:
        data_root: folder of the data set's files.
        weights: file whose SHA-256 the recipe's ``backbone.weights`` is.
        on_bad_image: ``error``, or ``skip`` to leave images out that cannot be read; changes the
            fingerprint of the data, not the recipe.
        compile: whether training steps are compiled; changes rounding, not the recipe.
        keep_model: whether trained networks are kept beside their records.
        keep_baselines: whether those of baselines are.
    """

    data_root: Path | None = None
    weights: Path | None = None
    on_bad_image: OnBadImage = "error"
    compile: bool = False
    keep_model: bool = False
    keep_baselines: bool = False


@dataclass(frozen=True)
class Plan:
    """The runs of one benchmark: one recipe, every loss with every seed, fold and split.

    Attributes:
        recipe: of all runs.
        losses: with their parameters.
        seeds: number of seeds.
        files: where this machine keeps what the recipe names.
        splits: number of random splits of the classes, beside the data set's own.
        first_seed: the seeds count from here.
    """

    recipe: Recipe
    losses: tuple[LossSpec, ...]
    seeds: int
    files: Files
    splits: int = 0
    first_seed: int = 0

    @property
    def split_numbers(self) -> tuple[int | None, ...]:
        """The splits: None for the data set's own, then the numbers of the random ones."""
        return (None, *range(self.splits))

    def runs(self) -> list[RunSpec]:
        """Return all runs: for each loss, each split, seed and fold; baselines need no fold."""
        folds = list(range(self.recipe.selection.folds)) or [None]
        return [
            RunSpec(self.recipe, loss, seed, fold, split)
            for loss in self.losses
            for split in self.split_numbers
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for fold in ([None] if loss.name in BASELINES else folds)
        ]

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of all runs, whatever their order."""
        return digest(sorted(spec.run_id for spec in self.runs()))


@dataclass(frozen=True)
class Request:
    """What a user asked for; None where nothing was said.

    Attributes:
        benchmark: a benchmark TOML.
        recipe: name of a shipped recipe, or a recipe TOML.
        losses: names, of baselines too.
        dataset: a data set's name; a path may follow ``folder:`` and ``table:``.
        data_root: folder of its files.
        backbone: a backbone's name.
        seeds: number of seeds.
        splits: number of random splits of the classes, beside the data set's own.
        on_bad_image: ``error`` or ``skip``.
        compile: whether training steps are compiled.
        keep_model: whether trained networks are kept, and those of baselines that ``losses`` name.
        settings: values by key: recipe fields, or ``LOSS.parameter``; later ones win.
    """

    benchmark: Path | None = None
    recipe: str | None = None
    losses: tuple[str, ...] | None = None
    dataset: str | None = None
    data_root: Path | None = None
    backbone: str | None = None
    seeds: int | None = None
    splits: int | None = None
    on_bad_image: OnBadImage = "error"
    compile: bool = False
    keep_model: bool = False
    settings: tuple[tuple[str, Any], ...] = ()


def make_plan(request: Request) -> Plan:
    """Resolve a request: benchmark file, then options, then ``--set``, later ones winning.

    Raises:
        MlbenchError: any name, key or value that is wrong, with its near misses.
    """
    benchmark = _read_benchmark(request.benchmark) if request.benchmark else {}
    recipe_table, where = read_recipe_table(request.recipe or benchmark.get("recipe", "default"))
    table = dict(recipe_table)
    losses = _losses(request, benchmark, loss_parameters(table, where))
    if request.dataset is not None:
        table["data"] = {**table.get("data", {}), "name": request.dataset}
    if request.backbone is not None:
        table["backbone"] = {**table.get("backbone", {}), "name": request.backbone}
    for key, value in request.settings:
        _set(key, value, table, losses)
    if not any(key in ("ks", "evaluation.ks") for key, _ in request.settings):
        table = with_ks_of_dataset(table, recipe_table)
    table, files = _resolve_files(with_interpolation_of_backbone(table), request.data_root)
    policy = check_value(OnBadImage, request.on_bad_image, "on_bad_image")
    files = replace(
        files,
        on_bad_image=policy,
        compile=request.compile,
        keep_model=request.keep_model,
        keep_baselines=request.keep_model and any(e.name in BASELINES for e, _ in losses),
    )
    recipe = build(Recipe, table, where)
    DATASETS.get(recipe.data.name)
    BACKBONES.get(recipe.backbone.name)
    seeds = request.seeds if request.seeds is not None else benchmark.get("seeds", 1)
    if type(seeds) is not int or not 1 <= seeds <= 1000:
        raise MlbenchError(f"seeds: {seeds!r} must be an integer from at least 1 to 1000")
    splits = request.splits if request.splits is not None else benchmark.get("splits", 0)
    if type(splits) is not int or not (splits == 0 or 2 <= splits <= 1000):
        raise MlbenchError(f"splits: {splits!r} must be 0 (none) or an integer from 2 to 1000")
    specs = tuple(_loss_spec(entry, params, recipe) for entry, params in losses)
    return Plan(recipe, tuple(dict.fromkeys(specs)), seeds, files, splits)


def declared_digest(request: Request) -> str | None:
    """Return the digest of a benchmark file's own plan, without the options that change it.

    None if the file alone makes no plan.
    """
    own = Request(benchmark=request.benchmark, data_root=request.data_root)
    try:
        return make_plan(own).digest
    except MlbenchError:
        return None


def _read_benchmark(path: Path) -> dict[str, Any]:
    table = read_toml(path)
    for key in table:
        if key not in _BENCHMARK_KEYS:
            raise MlbenchError(f"{path}: {unknown_name('key', key, _BENCHMARK_KEYS)}")
    return table


def _losses(
    request: Request,
    benchmark: Mapping[str, Any],
    given: Mapping[str, Mapping[str, ParamValue]],
) -> list[tuple[LossEntry, dict[str, ParamValue]]]:
    """Return the losses asked for, with parameters from the recipe, then the benchmark file."""
    items = request.losses or benchmark.get("losses", DEFAULT_LOSSES)
    if not isinstance(items, list | tuple) or not items:
        raise MlbenchError(f"losses: expected a list of names or tables, got {items!r}")
    losses = []
    for item in items:
        params = {"name": item} if isinstance(item, str) else item
        if not isinstance(params, Mapping) or not isinstance(params.get("name"), str):
            raise MlbenchError(f"losses: each needs a name, got {item!r}")
        params = dict(params)
        entry = _loss_entry(params.pop("name"))
        losses.append((entry, {**given.get(entry.name, {}), **params}))
    return losses


def _loss_entry(name: str) -> LossEntry:
    if name in BASELINES:
        return LossEntry(name=name, target=name, summary=BASELINES[name])
    return LOSSES.get(name)


def _loss_spec(entry: LossEntry, params: Mapping[str, Any], recipe: Recipe) -> LossSpec:
    spec = LossSpec.of(entry, params)
    if entry.prefix:  # only its factory knows its parameters
        entry.build(_SOME_CLASSES, recipe.head.dim, spec.arguments)
    _ = RunSpec(recipe, spec, 0).trained  # its own values for fields of the recipe fit the others
    return spec


def parse_setting(text: str) -> tuple[str, Any]:
    """Split ``key=value`` and read the value as TOML; what is none (``none``) is a string.

    >>> from mlbench.recipes.plan import parse_setting
    >>> parse_setting("schedule.epochs = 2"), parse_setting("backbone.weights=none")
    (('schedule.epochs', 2), ('backbone.weights', 'none'))
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise MlbenchError(f"--set {text}: expected key=value")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key, value


def _set(
    key: str,
    value: object,
    table: dict[str, Any],
    losses: Sequence[tuple[LossEntry, dict[str, Any]]],
) -> None:
    """Carry out one setting: a parameter of losses, or a recipe field."""
    owner, _, param = key.rpartition(".")
    takers = _takers(key, owner, param, losses)
    for _, params in takers:
        params[param] = value
    if not takers:
        section, _, field = full_field(key, f"--set {key}").partition(".")
        table[section] = {**table.get(section, {}), field: value}


def _takers(
    key: str, owner: str, param: str, losses: Sequence[tuple[LossEntry, dict[str, Any]]]
) -> list[tuple[LossEntry, dict[str, Any]]]:
    """Return the losses that a key is for: one by name, or with ``loss.`` all that have it."""
    if owner != "loss":
        return [(entry, params) for entry, params in losses if entry.name == owner]
    takers = [(e, params) for e, params in losses if e.prefix or param in e.defaults]
    if not takers:
        known = {name for entry, _ in losses for name in entry.defaults}
        raise MlbenchError(f"--set {key}: {unknown_name('loss parameter', param, known)}")
    return takers


def full_field(key: str, where: str) -> str:
    """Return the full name of a recipe field; its last part is enough where it is unique.

    Args:
        key: as ``backbone.name`` or ``dim``.
        where: the option, for messages.
    """
    by_leaf = recipe_keys()
    full = [name for names in by_leaf.values() for name in names]
    matches = [key] if key in full else by_leaf.get(key, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise MlbenchError(f"{where}: ambiguous; one of {', '.join(matches)}")
    raise MlbenchError(f"{where}: {unknown_name('recipe field', key, [*full, *by_leaf])}")


def _resolve_files(table: dict[str, Any], root: Path | None) -> tuple[dict[str, Any], Files]:
    """Replace paths in the recipe by what they identify, so that it means the same anywhere.

    Those of files become absolute, as workers of a cluster run in folders of their own.
    """
    files = Files(data_root=None if root is None else root.absolute())
    data, backbone = dict(table.get("data", {})), dict(table.get("backbone", {}))
    name, weights = data.get("name"), backbone.get("weights")
    kind, colon, given = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon and kind in ("folder", "table"):
        # Unlike Path.resolve, this raises nothing where links go in a circle.
        path = Path(os.path.realpath(expanded(Path(root or "", given))))
        data["name"] = f"{kind}:{path.name}"
        files = replace(files, data_root=path.parent)
    if isinstance(weights, str) and not _is_weights_name(weights):
        path = expanded(weights).absolute()
        if not is_regular(path):
            raise MlbenchError(
                f"backbone.weights: no file '{weights}'; use 'imagenet', 'none' or a weights file"
            )
        backbone["weights"] = _sha256(path)
        files = replace(files, weights=path)
    return {**table, "data": data, "backbone": backbone}, files


def _sha256(weights: Path) -> str:
    try:
        return file_sha256(weights)
    except OSError as error:
        raise MlbenchError(
            f"backbone.weights: cannot read {weights}: {error.strerror or error}"
        ) from error


def _is_weights_name(weights: str) -> bool:
    return weights in ("imagenet", "none") or bool(re.fullmatch("[0-9a-f]{64}", weights))
