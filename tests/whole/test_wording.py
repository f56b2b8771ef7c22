"""Texts for users keep to the field's words: no private terms, no nouns left to be guessed."""

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import click
from documents import reference

import mlbench
from mlbench.cli import main

PACKAGE = Path(str(files(mlbench)))
PRIVATE = re.compile(
    r"\bmade (again|anew|twice)\b|\btold apart\b|\b(is|are) told\b|\bsets? aside\b|\brungs?\b"
    r"|\bfoot of\b|\b(stands?|lies?) (in|below|beside|there)\b|\banew\b|\bmend\b|\bby hand\b"
    r"|\btaken as\b|\bleft out\b|\b\d+ (a|an) (class|image|step|loss|query|vector)\b"
    r"|: of (the|its|this|initialisation)\b|\bbehind in\b|\bby loss:|\bany batch,"
    r"|\bunit[ -]length\b|\braw embeddings\b|\bnoise between\b|\bwas it edited\b"
    r"|\b[Tt]he trunk\b|\btrunk's\b"
)


def helps(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Yield the help of a command and of all below it, by its name."""
    yield path, command.get_help(click.Context(command, info_name=path))
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, f"{path} {name}")


def messages(path: Path) -> Iterator[str]:
    """Yield the texts of a module that are not docstrings; what is filled in is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            apart |= set(map(id, node.values))
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield "".join(map(str, parts))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart
        ):
            yield node.value


MODULES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def private(text: str) -> list[str]:
    """Return the private words of a text."""
    return [found[0] for found in PRIVATE.finditer(" ".join(text.split()))]


def test_the_guard_finds_what_it_is_for() -> None:
    assert private("2 a class, raw; not told apart, left\n out") == [
        "2 a class",
        "told apart",
        "left out",
    ]
    assert private("backbone.trunk=train, 2 images per class") == []


def test_help() -> None:
    found = {name: private(text) for name, text in helps(main, "mlbench")}
    assert {name: words for name, words in found.items() if words} == {}


def test_messages() -> None:
    found = {
        f"{name}: {text}": words
        for name, path in MODULES.items()
        for text in messages(path)
        if (words := private(text))
    }
    assert found == {}


def test_the_report_and_the_reference_of_the_api() -> None:
    template = (PACKAGE / "report" / "report.html.jinja").read_text(encoding="utf-8")
    assert private(template) == []
    assert private(reference()) == []
