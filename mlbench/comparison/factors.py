"""The factors in which two recipes differ: fields that are changed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlbench.errors import MlbenchError, unknown_name
from mlbench.recipes.plan import Plan
from mlbench.recipes.spec import LossSpec, Recipe
from mlbench.recipes.validation import build

Changes = dict[str, tuple[Any, Any]]
"""Fields with their values at the start and at the end."""

FACTORS: dict[str, tuple[str, ...]] = {
    "input": ("input.normalization", "input.channels"),
    "batch norm": ("backbone.bn_stats", "backbone.bn_affine"),
    "learning rates": ("optimizer.lr", "optimizer.head_lr", "optimizer.loss_lr"),
    "loss parameters": ("loss.",),
    "eps and decay": ("optimizer.",),
    "head": ("head.",),
    "schedule and crop": ("schedule.", "input.", "data.", "batch.", "training."),
    "backbone": ("backbone.",),
    "selection": ("selection.", "evaluation."),
}
"""The factors in the order of a ladder, with the fields (or sections) that each changes.

A field belongs to the first factor that names it. The input comes before batch norm: with frozen
statistics and a wrong input the first layers' outputs are far off, and the two only make sense in
this order.
"""


@dataclass(frozen=True)
class Factor:
    """What is changed together.

    Attributes:
        name: of the factor.
        changes: fields with their values at the start and at the end.
    """

    name: str
    changes: Changes


def factor_of(key: str) -> str:
    """Return the factor that a field (``section.name``, or ``loss.parameter``) belongs to."""
    return _matching(key, FACTORS) or ""


def _matching(key: str, groups: Mapping[str, Sequence[str]]) -> str | None:
    """Return the first group that names a field, or else its section."""
    section = key.partition(".")[0] + "."
    exact = (name for name, fields in groups.items() if key in fields)
    return next(exact, None) or next((n for n, each in groups.items() if section in each), None)


def grouped(changed: Changes, groups: Mapping[str, Sequence[str]] | None = None) -> list[Factor]:
    """Return the factors of the fields that differ.

    Args:
        changed: the fields, with their values at both ends.
        groups: fields (or sections, such as ``head.``) by the name of their factor, in place of
            those of ``FACTORS``; fields that they do not name are grouped as there.

    Raises:
        MlbenchError: a group names no field that differs.
    """
    given = groups or {}
    names = {key: _matching(key, given) or factor_of(key) for key in changed}
    for name, fields in given.items():
        for field in fields:
            if not any(key == field or key.startswith(f"{field.rstrip('.')}.") for key in changed):
                raise MlbenchError(
                    f"group {name}: {unknown_name('field that differs', field, changed)}"
                )
    order = dict.fromkeys((*given, *FACTORS))
    parts = {name: {k: pair for k, pair in changed.items() if names[k] == name} for name in order}
    return [Factor(name, changes) for name, changes in parts.items() if changes]


def check_data(start: Plan, end: Plan) -> None:
    """Raise MlbenchError if two plans are of two data sets, whose figures cannot be compared."""
    names = start.recipe.data.name, end.recipe.data.name
    if names[0] != names[1]:
        raise MlbenchError(
            f"the recipes are of two data sets, {' and '.join(names)}: choose one with --dataset"
        )


def flat(plan: Plan) -> dict[str, Any]:
    """Return the fields of a plan's recipe, and the parameters of its one loss as ``loss.NAME``."""
    return flat_fields(plan.recipe, plan.losses[0])


def flat_fields(recipe: Recipe, loss: LossSpec) -> dict[str, Any]:
    """Return the fields of a recipe, and the parameters of a loss as ``loss.NAME``."""
    return {**recipe.flat(), **{f"loss.{name}": value for name, value in loss.params}}


def plan_of(fields: Mapping[str, Any], start: Plan, end: Plan) -> Plan:
    """Return the plan of a recipe between two others.

    Args:
        fields: as from ``flat``.
        start: gives the name of the loss, the seeds and the files.
        end: gives the file of the weights where they are not those of ``start``.

    Raises:
        MlbenchError: the fields make no recipe.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    params = {name: v for name, v in sections.pop("loss", {}).items() if v is not None}
    recipe = build(Recipe, sections, "recipe between the two")
    same_weights = recipe.backbone.weights == start.recipe.backbone.weights
    files = start.files if same_weights else replace(start.files, weights=end.files.weights)
    loss = LossSpec(start.losses[0].name, tuple(sorted(params.items())))
    return replace(start, recipe=recipe, losses=(loss,), files=files)
