"""The Python interface to what the command line does."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError
from mlbench.interfaces import ParamValue
from mlbench.losses.baselines import BASELINES
from mlbench.recipes.plan import OnBadImage, Request, make_plan
from mlbench.recipes.spec import LossSpec
from mlbench.recipes.validation import check_value
from mlbench.registry import BACKBONES, DATASETS, LOSSES
from mlbench.scalars import check_seed, plain, whole_number

if TYPE_CHECKING:
    from torch import nn

    from mlbench.records.record import RunRecord

register_loss = LOSSES.register
register_dataset = DATASETS.register
register_backbone = BACKBONES.register


def list_losses() -> list[str]:
    """Return the names of all losses that can be built: built-in ones first, then plugins'.

    Names that an argument must follow, such as ``pml:NAME``, are not among them.

    >>> import mlbench
    >>> mlbench.list_losses()[:3]
    ['softtriple', 'softmax_norm', 'proxy_nca']
    """
    return [entry.name for entry in LOSSES.entries() if not entry.prefix]


def build_loss(name: str, num_classes: int, embedding_dim: int, **params: ParamValue) -> nn.Module:
    """Build a loss by name.

    Args:
        name: as in ``list_losses()``.
        num_classes: training classes ``C``.
        embedding_dim: dimension ``D`` of the embeddings.
        **params: hyperparameters that differ from the loss's defaults.

    Returns:
        a module with ``forward(embeddings, labels)``: float ``(B, D)`` (L2-normalised if the loss
        declares so) and int64 ``(B,)`` in ``0 .. C - 1`` to a scalar.

    Raises:
        MlbenchError: unknown name or hyperparameter (similar names are suggested), or wrong value.

    >>> import mlbench, torch
    >>> loss = mlbench.build_loss("triplet", num_classes=2, embedding_dim=2, margin=0.5)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    >>> round(loss(embeddings, torch.tensor([0, 0, 1, 1])).item(), 3)
    0.1
    """
    from mlbench.system.known_state import known_state

    entry = LOSSES.get(name)
    spec = LossSpec.of(entry, params)
    with known_state():
        return entry.build(num_classes, embedding_dim, spec.arguments)


def _check_type(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise MlbenchError(f"{name}: expected {wanted}, got {plain(value)!r}")


def run(
    loss: str,
    *,
    recipe: str | PathLike[str] = "default",
    dataset: str | None = None,
    data_root: str | PathLike[str] | None = None,
    backbone: str | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
    fold: int | None = None,
    device: str = "auto",
    out: str | PathLike[str] | None = None,
    on_bad_image: OnBadImage = "error",
    compile: bool = False,  # noqa: A002 -- the word for it everywhere
    keep_model: bool = False,
) -> RunRecord:
    """Train and evaluate one loss under one recipe.

    The state of torch, NumPy and their generators has no effect on it and is not changed.

    Args:
        loss: name of a loss, or of a baseline (``features``, ``pca``, ``untrained``).
        recipe: name of a shipped recipe, or the path of a recipe TOML.
        dataset: data set that replaces the recipe's.
        data_root: folder of the data set's files.
        backbone: backbone that replaces the recipe's.
        settings: recipe fields (``{"schedule.epochs": 2}``) and hyperparameters
            (``{"npairs.l2_reg": 0}``).
        seed: random seed of initialisation, batch order and augmentation, 0 .. 2^63 - 1.
        fold: validation fold, for recipes with folds.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: folder to save the record in; if the run already has a record there, it is returned.
        on_bad_image: ``error``, or ``skip`` to skip images that cannot be read.
        compile: train with ``torch.compile``, on a GPU with CUDA graphs.
        keep_model: save the trained network next to the record, for ``load_model``; requires
            ``out``. If a record exists without its model, the run is repeated.

    Returns:
        the record of the run (read from ``out`` if it already exists there).

    Raises:
        MlbenchError: wrong input.
    """
    from mlbench.recipes.spec import RunSpec
    from mlbench.records import store
    from mlbench.runs.ingredients import Ingredients
    from mlbench.runs.outcomes import made_or_awaited
    from mlbench.runs.run import run_one
    from mlbench.training.device import resolve_device

    paths = (str, PathLike)
    _check_type("loss", loss, (str,))
    _check_type("recipe", recipe, paths)
    _check_type("data_root", data_root, (*paths, NoneType))
    _check_type("out", out, (*paths, NoneType))
    _check_type("settings", settings, (Mapping, NoneType))
    _check_type("device", device, (str,))
    request = Request(
        recipe=str(recipe),
        losses=(loss,),
        dataset=dataset,
        data_root=None if data_root is None else Path(data_root),
        backbone=backbone,
        settings=tuple((settings or {}).items()),
        on_bad_image=on_bad_image,
        compile=_switch(compile, "compile"),
        keep_model=_switch(keep_model, "keep_model"),
    )
    plan = make_plan(request)
    seed, fold = check_seed(seed), plain(fold)
    folds = 0 if loss in BASELINES else plan.recipe.selection.folds
    if (fold is None) if folds else (fold is not None):
        kind = "a baseline" if loss in BASELINES else f"a recipe of {folds} folds"
        raise MlbenchError(f"fold: {fold!r} does not fit {kind}")
    if fold is not None:
        fold = whole_number(fold, "fold", 0, folds - 1)
    spec = RunSpec(plan.recipe, plan.losses[0], seed, fold)
    ingredients = Ingredients(plan.recipe, plan.files, resolve_device(device), lambda *_: None)
    if out is None and plan.files.keep_model:
        raise MlbenchError("keep_model requires out, the folder to save the model in")
    if out is None:
        return run_one(spec, ingredients)[0]
    store.check_writable(Path(out))
    return made_or_awaited(spec, ingredients, Path(out))


def _switch(value: object, what: str) -> bool:
    return check_value(bool, value, what)
