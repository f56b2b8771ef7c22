"""Recipes from TOML: shipped ones by name, others by path."""

from __future__ import annotations

import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import ParamValue
from mlbench.recipes.spec import Recipe
from mlbench.recipes.validation import build, check_value
from mlbench.registry import BACKBONES, DATASETS
from mlbench.system.files import check_path
from mlbench.system.regular import read_regular

_TOML_BYTES = 1 << 24


def recipe_names() -> list[str]:
    """Return the names of the recipes that are shipped with mlbench."""
    folder = resources.files("mlbench") / "recipes"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def recipe_text(name: str) -> str:
    """Return the TOML of a shipped recipe; MlbenchError if there is none of that name."""
    if name not in recipe_names():
        raise unknown_name("recipe", name, recipe_names())
    return (resources.files("mlbench") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name_or_path: str) -> Recipe:
    """Return a shipped recipe by name, or one from a TOML file by path.

    Raises:
        MlbenchError: unknown name, no such file, or a key or value that is wrong.

    >>> from mlbench.recipes import load_recipe
    >>> recipe = load_recipe("default")
    >>> recipe.data.name, recipe.head.dim
    ('glyphs', 64)
    """
    table, where = read_recipe_table(name_or_path)
    table.pop("losses", None)
    return build(Recipe, with_interpolation_of_backbone(table), where)


def shipped_name(recipe: Recipe) -> str:
    """Return the name of the shipped recipe that this is, on whatever data set; "" if of none.

    >>> from mlbench.recipes.reading import load_recipe, shipped_name
    >>> shipped_name(load_recipe("frozen"))
    'frozen'
    """
    return _shipped().get(_without_data(recipe), "")


@functools.cache
def _shipped() -> dict[Recipe, str]:
    return {_without_data(load_recipe(name)): name for name in recipe_names()}


def _without_data(recipe: Recipe) -> Recipe:
    """Return a recipe without the name of its data set, and the k that papers report on that."""
    data, evaluation = replace(recipe.data, name=""), replace(recipe.evaluation, ks=(1,))
    return replace(recipe, data=data, evaluation=evaluation)


def recipe_fields(name_or_path: str) -> dict[str, Any]:
    """Return all fields of a recipe, flat, and the parameters it gives to losses.

    Raises:
        MlbenchError: as ``load_recipe``.
    """
    table, where = read_recipe_table(name_or_path)
    given = {
        f"losses.{loss}.{parameter}": value
        for loss, parameters in loss_parameters(table, where).items()
        for parameter, value in parameters.items()
    }
    return {**load_recipe(name_or_path).flat(), **given}


def read_recipe_table(
    source: object, folder: Path | None = None, passed: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str]:
    """Return the plain table of a recipe, all its sections tables, and where it comes from.

    A table (or file) with the key ``base`` changes single fields of another recipe. Its table
    ``losses`` is no part of the recipe: it gives losses the parameters they have under it.

    Args:
        source: a shipped recipe's name, a TOML file, or a table.
        folder: that relative paths start from; None for the working directory.
        passed: files on the way here through ``base``.
    """
    if isinstance(source, Mapping):
        return _with_base(dict(source), "recipe", folder, passed)
    if not isinstance(source, str):
        raise MlbenchError(f"recipe: expected a name, a file or a table, got {source!r}")
    if not source.endswith(".toml") and "/" not in source:
        return tomllib.loads(recipe_text(source)), f"recipe {source}"
    path = Path(folder or "", source)
    check_path(path)
    real = os.path.realpath(path)
    if real in passed:
        raise MlbenchError(f"{source}: circular base; remove base from one of the files")
    return _with_base(read_toml(path), str(path), path.parent, (*passed, real))


def _with_base(
    table: dict[str, Any], where: str, folder: Path | None, passed: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    base = table.pop("base", None)
    for section, fields in table.items():
        if not isinstance(fields, Mapping):
            raise MlbenchError(f"{where}: {section}: expected a table, got {fields!r}")
    merged = {} if base is None else read_recipe_table(base, folder, passed)[0]
    changed = {name: {**merged.get(name, {}), **fields} for name, fields in table.items()}
    if "ks" in table.get("evaluation", {}):
        return {**merged, **changed}, where
    return with_ks_of_dataset({**merged, **changed}, merged), where


def with_ks_of_dataset(table: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Let the k of R@k follow a changed data set, unless they were chosen and not its usual ones.

    Args:
        table: of a recipe, perhaps with another data set than ``before``.
        before: the table that it was made from.
    """
    name, ks = _dataset_and_ks(table)
    usual = _usual_ks(_dataset_and_ks(before)[0])
    wanted = _usual_ks(name)
    if ks is None or wanted is None or ks != usual:
        return table
    return {**table, "evaluation": {**table["evaluation"], "ks": wanted}}


def with_interpolation_of_backbone(table: dict[str, Any]) -> dict[str, Any]:
    """Let images be resized as the backbone's entry says, where the recipe does not say it."""
    inputs, name = table.get("input"), table.get("backbone", {}).get("name")
    if inputs is None or "interpolation" in inputs or not isinstance(name, str):
        return table
    try:
        usual = BACKBONES.get(name).interpolation
    except MlbenchError:  # named where the whole recipe is checked
        return table
    return {**table, "input": {**inputs, "interpolation": usual}}


def _dataset_and_ks(table: Mapping[str, Any]) -> tuple[object, object]:
    return table.get("data", {}).get("name"), table.get("evaluation", {}).get("ks")


def _usual_ks(dataset: object) -> list[int] | None:
    """Return the k that are reported on a data set; None if there is no such data set."""
    try:
        return list(DATASETS.get(dataset).ks) if isinstance(dataset, str) else None
    except MlbenchError:  # named where the whole recipe is checked
        return None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; MlbenchError names the file and the line that is wrong."""
    try:
        return tomllib.loads(read_regular(path, limit=_TOML_BYTES).decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise MlbenchError(f"no file '{path}'; shipped recipes: mlbench list recipes") from error
    except (OSError, ValueError, RecursionError) as error:
        raise MlbenchError(f"{path}: not readable as TOML ({error})") from error


def loss_parameters(table: dict[str, Any], where: str) -> dict[str, dict[str, ParamValue]]:
    """Take the parameters that a recipe gives to losses out of its table."""
    given = table.pop("losses", {})
    return check_value(dict[str, dict[str, ParamValue]], given, f"{where}: losses")
