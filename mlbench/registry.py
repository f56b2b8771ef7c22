"""One small registry for losses, data sets and backbones: built-ins, decorator, entry points."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from mlbench.backbones import BUILTIN as BACKBONE_ENTRIES
from mlbench.datasets import BUILTIN as DATASET_ENTRIES
from mlbench.errors import MlbenchError, unknown_name
from mlbench.interfaces import BackboneEntry, DatasetEntry, Entry, LossEntry, ParamValue
from mlbench.losses import BUILTIN as LOSS_ENTRIES
from mlbench.scalars import plain

E = TypeVar("E", bound=Entry)
F = TypeVar("F", bound=Callable[..., Any])

PROGRAM = "this program"
"""Source of entries that the running program registers itself, without a plugin."""


class Registry(Generic[E]):
    """Entries by name; plugins of an entry-point group join when a built-in does not answer.

    Args:
        kind: what is registered, for messages: ``"loss"``.
        group: the entry-point group of its plugins.
        entry_type: the dataclass of its entries.
        call: positional arguments that every factory must accept, by name.
        builtin: the built-in entries.

    Attributes:
        problems: one line per plugin that could not be used, with its distribution's name.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entry_type: type[E],
        call: tuple[str, ...],
        builtin: Iterable[E],
    ) -> None:
        self.kind = kind
        self._group = group
        self.problems: list[str] = []
        self._entry_type = entry_type
        self._call = call
        self._entries: dict[str, E] = {entry.name: entry for entry in builtin}
        self._source = PROGRAM
        self._plugins_loaded = False

    def register(self, name: str, **description: Any) -> Callable[[F], F]:
        """Return a decorator that registers a factory under ``name``.

        Args:
            name: the name users will type.
            **description: the other fields of the entry, e.g. ``paper`` or ``images_per_class``.
                A loss's ``defaults`` are read off the factory's keyword-only arguments.

        Raises:
            MlbenchError: the name is taken, or the factory cannot be called as it will be.
        """

        def decorate(factory: F) -> F:
            summary = (inspect.getdoc(factory) or "").partition("\n")[0]
            fields = {"summary": summary, **description}
            if issubclass(self._entry_type, LossEntry):
                fields.setdefault("defaults", _keyword_defaults(factory))
            try:
                entry = self._entry_type(name=name, target=factory, source=self._source, **fields)
            except TypeError as error:
                raise MlbenchError(f"{self.kind} '{name}': {error}") from error
            self.add(entry)
            return factory

        return decorate

    def add(self, entry: E) -> None:
        """Add an entry; raise MlbenchError if its name is taken or its signature is wrong."""
        if entry.name in self._entries:
            owner = self._entries[entry.name].source
            raise MlbenchError(
                f"{self.kind} '{entry.name}' is already registered by {owner}; choose another name"
            )
        if callable(entry.target):
            self._check_signature(entry.name, entry.target, entry.prefix)
        self._entries[entry.name] = entry

    @contextmanager
    def lent(self, entry: E) -> Iterator[None]:
        """Have an entry for the length of a block; raises as ``add``."""
        self.add(entry)
        try:
            yield
        finally:
            del self._entries[entry.name]

    def get(self, name: str) -> E:
        """Return the entry called ``name`` (or ``prefix:argument``); MlbenchError if unknown."""
        if not isinstance(name, str):  # as callers of the Python API may pass
            raise MlbenchError(f"{self.kind}: {plain(name)!r} is not a name")
        entry = self._find(name)
        if entry is None and not self._plugins_loaded:
            self._load_plugins()
            entry = self._find(name)
        if entry is None:
            raise unknown_name(self.kind, name, self._labels())
        return entry

    def entries(self) -> list[E]:
        """Return all entries, built-ins first, plugins after them by name."""
        self._load_plugins()
        return list(self._entries.values())

    def _find(self, name: str) -> E | None:
        head, colon, argument = name.partition(":")
        entry = self._entries.get(head)
        if entry is None or entry.prefix != bool(colon) or (colon and not argument):
            return None
        return replace(entry, name=name, argument=argument) if colon else entry

    def _labels(self) -> list[str]:
        return [f"{e.name}:..." if e.prefix else e.name for e in self._entries.values()]

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for point in sorted(entry_points(group=self._group), key=lambda p: p.name):
            self._load_plugin(point)

    def _load_plugin(self, point: EntryPoint) -> None:
        """Import one plugin, which registers itself; a broken one must not take others down."""
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        self._source = owner
        before = set(self._entries)
        try:
            point.load()
            known = self._entries.get(point.name)
            if known is None or not _is_from(known, point.module):
                raise MlbenchError(
                    f"importing {point.value} registered no {self.kind} of that name"
                )
            # Its module may have been imported before, by the program itself.
            self._entries[point.name] = replace(known, source=owner)
        except (Exception, SystemExit) as error:
            for name in set(self._entries) - before:
                del self._entries[name]
            reason = (
                str(error)
                if isinstance(error, MlbenchError)
                else f"{type(error).__name__}: {error}"
            )
            self.problems.append(f"{self.kind} plugin '{point.name}' of {owner} skipped: {reason}")
        finally:
            self._source = PROGRAM

    def _check_signature(self, name: str, factory: Callable[..., Any], prefix: bool) -> None:
        wanted = ("argument", *self._call) if prefix else self._call
        try:
            inspect.signature(factory).bind(*wanted)
        except TypeError as error:
            raise MlbenchError(
                f"{self.kind} '{name}': its factory must accept ({', '.join(wanted)}): {error}"
            ) from error


def _keyword_defaults(factory: Callable[..., Any]) -> dict[str, ParamValue]:
    parameters = inspect.signature(factory).parameters.values()
    keywords = (p for p in parameters if p.kind is p.KEYWORD_ONLY)
    return {p.name: p.default for p in keywords if isinstance(p.default, bool | int | float | str)}


def _is_from(entry: Entry, module: str) -> bool:
    target = entry.target
    home = target.partition(":")[0] if isinstance(target, str) else target.__module__
    return home == module or home.startswith(f"{module}.")


LOSSES = Registry(
    "loss", "mlbench.losses", LossEntry, ("num_classes", "embedding_dim"), LOSS_ENTRIES
)
DATASETS = Registry("dataset", "mlbench.datasets", DatasetEntry, ("root",), DATASET_ENTRIES)
BACKBONES = Registry(
    "backbone", "mlbench.backbones", BackboneEntry, ("weights", "weights_file"), BACKBONE_ENTRIES
)
