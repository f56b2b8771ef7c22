"""Names that shells complete, without importing torch or a plugin."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    import click

    from mlbench.interfaces import Entry

Items = list[CompletionItem]


def losses(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    return [item for item in _losses() if item.value.startswith(typed)]


def loss_lists(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    """Complete the last name of A,B,...; shells replace the whole word."""
    before, comma, last = typed.rpartition(",")
    taken = before.split(",")
    return [
        CompletionItem(f"{before}{comma}{item.value}", help=item.help)
        for item in _losses()
        if item.value.startswith(last) and item.value not in taken
    ]


def datasets(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    from mlbench.datasets import BUILTIN

    return [item for item in _items(BUILTIN, "mlbench.datasets") if item.value.startswith(typed)]


def backbones(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    from mlbench.backbones import BUILTIN

    return [item for item in _items(BUILTIN, "mlbench.backbones") if item.value.startswith(typed)]


def recipes(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    """Complete a shipped recipe, or else leave the word to the shell as a file."""
    from mlbench.recipes.reading import recipe_names

    found = [CompletionItem(name) for name in recipe_names() if name.startswith(typed)]
    return found or [CompletionItem(typed, type="file")]


def trackers(_ctx: click.Context, _param: click.Parameter, typed: str) -> Items:
    from mlbench.runs.tracking import KINDS

    return [CompletionItem(kind) for kind in KINDS if kind.startswith(typed)]


def _losses() -> Items:
    from mlbench.losses import BUILTIN

    return _items(BUILTIN, "mlbench.losses")


def _items(builtin: Iterable[Entry], group: str) -> Items:
    """Return built-in entries, and those of plugins by the names of their entry points."""
    known = {f"{each.name}:" if each.prefix else each.name: each.summary for each in builtin}
    plugins = {point.name: point.value for point in entry_points(group=group)}
    return [CompletionItem(name, help=text) for name, text in (plugins | known).items()]
