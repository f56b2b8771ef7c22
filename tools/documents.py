"""What documents hold: commands, code blocks, links, and parts that are printed by code.

``python tools/documents.py`` prints those parts anew: the references of the API and of the
command line, each block below a comment such as ``<!-- printed by: mlbench diff blog paper -->``,
each right below a block of Python, and the Markdown tables between such a comment and
``<!-- end -->``. It also draws the figures of results/.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import click
from click.testing import CliRunner

import mlbench
from mlbench.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = DOCS / "api.md"
CLI = DOCS / "cli.md"
RESULTS = ROOT / "results"
STUDIES = tuple(sorted(RESULTS.glob("study/*/README.md")))
COMMANDED = (ROOT / "README.md", *sorted(DOCS.glob("*.md")), RESULTS / "README.md", *STUDIES)
ROOMS = tuple(sorted((ROOT / "mlbench").rglob("README.md")))
LINKED = (*COMMANDED, ROOT / "CONTRIBUTING.md", *ROOMS)
WIDTH = 120

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (mlbench .*)$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`(mlbench [a-z][^`]*)`(?!`)")
_PRINTED = re.compile(r"(<!-- printed by: (mlbench .*?) -->\n```\n)(.*?)(^```$)", re.M | re.S)
_TABLES = re.compile(
    r"(<!-- printed by: (mlbench .*? --format markdown.*?) -->\n)(.*?)(<!-- end -->)", re.S
)
_FIGURE = re.compile(r"\]\([\w./]*figures/([\w-]+)/([\w-]+)\.svg\)")
_ANSWERED = re.compile(r"(^```python\n([^`]*)^```\n\n```\n)(.*?)(^```$)", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [Block(document, language, body) for language, body in _FENCE.findall(text)]


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def commands(document: Path) -> list[list[str]]:
    """Return the arguments of every ``mlbench`` command: fenced, indented, and in the prose."""
    shell = [block.text for block in blocks(document) if block.language in ("sh", "bash")]
    rest = prose(document)
    inline = [text.replace("\n", " ") for text in _INLINE.findall(rest)]
    lines = [*(line for text in shell for line in _lines(text)), *_INDENTED.findall(rest), *inline]
    return [command for line in lines for command in _commands(line)]


def sequence(document: Path) -> list[list[str]]:
    """Return the ``mlbench`` commands of the fenced shell blocks alone, in order."""
    shell = [block.text for block in blocks(document) if block.language == "sh"]
    return [command for text in shell for line in _lines(text) for command in _commands(line)]


def _lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _commands(line: str) -> Iterator[list[str]]:
    """Yield what follows ``mlbench``: at the start, behind ``--`` or ``-m``, or within quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>;&")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation that goes on in the next line: no command
        return
    for number, word in enumerate(words):
        if word == "mlbench" and (not number or re.fullmatch("--|-m|[|;&]+", words[number - 1])):
            rest = words[number + 1 :]
            end = next((i for i, w in enumerate(rest) if re.fullmatch("[|>;&]+", w)), len(rest))
            yield rest[:end]
        elif word.startswith("mlbench "):
            yield from _commands(word)


def printed_anew(text: str) -> str:
    """Return a document with what its ``printed by`` commands and Python blocks print now."""
    text = _PRINTED.sub(lambda m: f"{m[1]}{output(shlex.split(m[2])[1:])}{m[4]}", text)
    text = _TABLES.sub(lambda m: f"{m[1]}\n{output(shlex.split(m[2])[1:])}\n{m[4]}", text)
    return _ANSWERED.sub(lambda m: f"{m[1]}{_printed_by(m[2])}{m[4]}", text)


def answered(document: Path) -> set[str]:
    """Return the blocks of Python of a document below which stands what they print."""
    return {code for _, code, _, _ in _ANSWERED.findall(document.read_text(encoding="utf-8"))}


def _printed_by(code: str) -> str:
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue()


def output(arguments: list[str]) -> str:
    """Return what a command prints, without blanks at the ends of lines."""
    with contextlib.chdir(ROOT), mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}):
        result = CliRunner().invoke(main, arguments)
    if result.exit_code:
        raise RuntimeError(f"mlbench {shlex.join(arguments)}: {result.output}")
    return "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())


def anchors(document: Path) -> set[str]:
    """Return the anchors that code hosts give to a document's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.replace("`", "")).lower() for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


def links(document: Path) -> list[str]:
    """Return the targets of all links and pictures of a document that are no web addresses."""
    text = re.sub(r"`[^`]*`", "", prose(document))
    return [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", t)]


_INTRODUCTION = """# Python API

Printed from the docstrings by `python tools/documents.py`; do not edit it manually. Importing
`mlbench` imports neither torch nor numpy; they are loaded by the first function that needs them.
"""
_USED = """## What these return

Their classes need not be imported by name.
"""
_PLUGINS = """## For plugins

[Plugins](plugins.md) shows how to write one.
"""
_RETURNED = ("mlbench.models:Model",)
_FOR_PLUGINS = (
    *("mlbench.contract:assert_loss", "mlbench.contract:check_loss"),
    *("mlbench.interfaces:LossEntry", "mlbench.interfaces:DatasetEntry"),
    *("mlbench.interfaces:BackboneEntry", "mlbench.interfaces:Dataset"),
    *("mlbench.interfaces:ImageSet", "mlbench.interfaces:Backbone"),
    "mlbench.interfaces:Preprocessing",
)


def reference() -> str:
    """Return the API reference: all of ``mlbench.__all__`` and what goes with it."""
    names = [name for name in mlbench.__all__ if name != "__version__"]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(inspect.getdoc(getattr(mlbench, name)) or "", []).append(name)
    public = [_entry([f"mlbench.{n}" for n in g], getattr(mlbench, g[0])) for g in groups.values()]
    used = [_entry([target.replace(":", ".")], _load(target)) for target in _RETURNED]
    plugins = [_entry([target.replace(":", ".")], _load(target)) for target in _FOR_PLUGINS]
    return "\n".join([_INTRODUCTION, *public, _USED, *used, _PLUGINS, *plugins]).rstrip() + "\n"


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _entry(names: list[str], what: Any) -> str:
    """Return the heading, signature and docstring of what may go by several names."""
    title = ", ".join(f"`{name}`" for name in names)
    parts = [f"### {title}\n"]
    if callable(what) and not inspect.isclass(what):
        parts += [_signature(name, what) for name in names]
    parts.append(_markdown(inspect.getdoc(what) or ""))
    if inspect.isclass(what):
        parts += [_method(names[0].rpartition(".")[2], *each) for each in _methods(what)]
    return "\n".join(parts)


def _methods(kind: type) -> list[tuple[str, Any]]:
    """Return the documented public functions that a class defines itself."""
    own = [(name, inspect.unwrap(getattr(kind, name))) for name in vars(kind) if name[0] != "_"]
    return [(name, what) for name, what in own if callable(what) and what.__doc__]


def _method(owner: str, name: str, what: Callable[..., Any]) -> str:
    heading = f"#### `{owner}.{name}`\n"
    return "\n".join([heading, _signature(name, what), _markdown(inspect.getdoc(what) or "")])


def _signature(name: str, what: Callable[..., Any]) -> str:
    given = inspect.signature(what)
    listed = list(_parameters(p for p in given.parameters.values() if p.name != "self"))
    returned = _annotation(given.return_annotation)
    line = f"{name}({', '.join(listed)}) -> {returned}"
    if len(line) > WIDTH:
        lines = "".join(f"    {each},\n" for each in listed)
        line = f"{name}(\n{lines}) -> {returned}"
    return f"```\n{line}\n```\n"


def _parameters(shown: Iterable[inspect.Parameter]) -> Iterator[str]:
    keyword = False
    for parameter in shown:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            yield "*"
            keyword = True
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        yield f"{stars}{parameter.name}: {_annotation(parameter.annotation)}{default}"


def _annotation(given: object) -> str:
    return given if isinstance(given, str) else inspect.formatannotation(given)


_EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_SECTIONS = ("Args", "Attributes", "Returns", "Raises")


def _markdown(docstring: str) -> str:
    """Turn a docstring of Google's style into Markdown."""
    lines = [line.replace("``", "`") for line in docstring.splitlines()]
    done: list[str] = []
    section = ""
    for line in lines:
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            done += [f"**{section}**", ""]
        elif section and line and not line.startswith(" "):
            section = ""
            done.append(line)
        else:
            done.append(_item(line) if section else line)
    return _EXAMPLE.sub(r"```pycon\n\g<0>\n```", "\n".join(done)) + "\n"


def _item(line: str) -> str:
    """Return a line of a section: entries become list items, what continues them is indented."""
    entry = re.match(r"    (\*{0,2}\w+(?:, \w+)*): (.*)$", line)
    if entry:
        return f"- `{entry[1]}`: {entry[2]}"
    return f"  {line.strip()}" if line.startswith("        ") else line.removeprefix("    ")


_COMMANDS = """# Command-line reference

Printed from `--help` by `python tools/documents.py`; do not edit it. In a terminal,
`mlbench COMMAND --help` prints the same.
"""


def command_reference() -> str:
    """Return the reference of the command line: the help of every command."""
    return "\n".join([_COMMANDS, *_helps(main, [])])


def _helps(command: click.Command, path: list[str]) -> Iterator[str]:
    """Yield a section for a command, then one for each of its own commands."""
    name = " ".join(["mlbench", *path])
    yield f"## {name}\n\n```\n{output([*path, '--help'])}```\n"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from _helps(found, [*path, each])


def shown_figures() -> set[tuple[str, str]]:
    """Return the study and the name of every figure of ``results/figures`` that a page shows."""
    texts = (document.read_text(encoding="utf-8") for document in COMMANDED)
    return {found for text in texts for found in _FIGURE.findall(text)}


def draw_figures() -> None:
    """Draw the figures that pages show, each one of the report of its study."""
    shown = shown_figures()
    shutil.rmtree(RESULTS / "figures", ignore_errors=True)
    for study in sorted({study for study, _ in shown}):
        with tempfile.TemporaryDirectory() as folder:
            page = f"{folder}/page.html"
            output(["report", f"results/study/{study}", "-o", page, "--figures", folder])
            place = RESULTS / "figures" / study
            place.mkdir(parents=True)
            for name in (name for of, name in shown if of == study):
                shutil.copy(Path(folder, f"{name}.svg"), place)


def regenerate() -> None:
    """Write all that is printed by code into the documents, and draw their figures."""
    API.write_text(reference(), encoding="utf-8")
    CLI.write_text(command_reference(), encoding="utf-8")
    for document in COMMANDED:
        text = document.read_text(encoding="utf-8")
        document.write_text(printed_anew(text), encoding="utf-8")
    draw_figures()


if __name__ == "__main__":
    sys.exit(regenerate())
