"""The documents: every command parses, those that take seconds run, printed parts are current."""

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from documents import (
    API,
    CLI,
    COMMANDED,
    DOCS,
    LINKED,
    RESULTS,
    ROOT,
    Block,
    anchors,
    answered,
    blocks,
    command_reference,
    commands,
    links,
    printed_anew,
    prose,
    reference,
    sequence,
    shown_figures,
)
from helpers.settings import QUICK

import mlbench
from mlbench.cli import main

RUN = (
    ROOT / "README.md",
    *(DOCS / f"{name}.md" for name in ("first-ten-minutes", "recipes", "protocol", "reproduce")),
)
"""Documents whose commands run one after another, as a reader would."""

NOT_RUN = {
    "data fetch": "downloads gigabytes",
    "data verify cub200": "needs those",
    "export": "ONNX takes long; test_models.py exports",
    "--jobs": "starts processes; test_executors.py runs it",
    "--executor": "needs a cluster; test_executors.py runs it",
    "--compile": "compiles for a minute; test_trainer.py runs it",
    "--track": "starts a tracker; test_tracking.py runs it",
    "mine": "a name that stands for a reader's own loss",
    "tune": "needs more classes than the photographs here; test_tune.py tunes",
}
TINY = [f"--set={key}={value}" for key, value in QUICK.items()]
TINY += ["--backbone=convnet", "--set=backbone.weights=none", "--device=cpu", "--seeds=1"]
SELF_EVIDENT = {"__init__.py", "__main__.py"}
PLACEHOLDERS = {"folder:PHOTOS": "folder:photos", "folder:PATH": "folder:photos"}
PLACEHOLDERS |= {"PHOTOS": "photos", "IMAGE": "photos/class4/0.png", "DIR": "results"}
PLACEHOLDERS |= {"FILE.npz": "mine.npz", "N": "2", "K": "2"}


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


def resolve(arguments: list[str]) -> click.Context:
    """Parse a command line down to its last command, without running it."""
    context = click.Context(main, info_name="mlbench", **main.context_settings)
    rest = list(arguments)
    while isinstance(context.command, click.Group) and rest:
        if rest == ["--help"]:
            break
        name, command, rest = context.command.resolve_command(context, rest)
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=name, parent=context)
        else:
            return command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("document", COMMANDED, ids=named)
def test_every_command_parses(document: Path) -> None:
    for arguments in commands(document):
        problem = usage_problem(arguments)
        assert problem is None, f"mlbench {arguments}: {problem}"


def usage_problem(arguments: list[str]) -> str | None:
    try:
        resolve([PLACEHOLDERS.get(word, word) for word in arguments])
    except click.MissingParameter as error:
        return None if len(arguments) == 1 else error.format_message()  # `mlbench table`, the name
    except click.UsageError as error:
        return error.format_message()
    except mlbench.MlbenchError as error:  # a placeholder names no record of this folder
        return None if "RECORD" in arguments or "DIR" in arguments else str(error)
    return None


def test_commands_are_found_wherever_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `mlbench list\nlosses` or\n\n    mlbench env\n\n"
        "```sh\nmlbench run \\\n  --seeds 2 # two\n"
        'sbatch --wrap "mlbench run --jobs 2" && mlbench table a | head\n'
        "srun -- mlbench diff a b\n```\n\n```\nmlbench is no command here\n```\n"
    )
    assert [" ".join(command) for command in commands(page)] == [
        *("run --seeds 2", "run --jobs 2", "table a", "diff a b", "env", "list losses")
    ]


@pytest.mark.parametrize("wrong", [["tabel", "a"], ["run", "--loss=a"], ["diff", "a"]])
def test_wrong_commands_do_not_parse(wrong: list[str]) -> None:
    assert usage_problem(wrong)


@pytest.fixture
def desk(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs and the shipped results, as a reader would have them."""
    assert photos == tmp_path / "photos"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study").symlink_to(ROOT / "results" / "study")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 10)
    np.savez(tmp_path / "mine.npz", embeddings=rng.normal(size=(200, 8)), labels=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLBENCH_DATA_ROOT", str(tmp_path))
    return tmp_path


def excused(arguments: list[str]) -> bool:
    line = " ".join(arguments)
    return any(re.search(rf"(^|[ ,]){re.escape(what)}(?=[ ,]|$)", line) for what in NOT_RUN)


def tiny(arguments: list[str], desk: Path) -> list[str]:
    """Return a command on the photographs of the tests and with settings that take a moment."""
    given = [PLACEHOLDERS.get(word, word) for word in arguments]
    if "RECORD" in given:
        kept = sorted(desk.rglob("results/folder*/softtriple*.safetensors"))[0]
        given = [str(kept.with_suffix(".json")) if w == "RECORD" else w for w in given]
    if given[0] in ("run", "ablate"):
        given += ["--dataset", "folder:photos", *TINY]
    if given[0] == "tune":
        given += ["--trials=1"]
    return (
        ["data", "list"]
        if given[:2] in (["data", "verify"], ["data", "path"]) and (given[2] == "cub200")
        else given
    )


@pytest.mark.parametrize("document", RUN, ids=named)
def test_the_commands_of_a_page_run_in_order(document: Path, desk: Path) -> None:
    for block in blocks(document):
        if block.language == "toml":
            (desk / "mine.toml").write_text(block.text)
    if document.name == "reproduce.md":  # its RECORD is one that the reader has made
        assert CliRunner().invoke(main, tiny(["run", "--keep-model"], desk)).exit_code == 0
    for arguments in sequence(document):
        if not excused(arguments):
            result = CliRunner().invoke(main, tiny(arguments, desk))
            assert result.exit_code == 0, f"mlbench {arguments}: {result.output}"


PYTHON = [
    block
    for document in COMMANDED
    if document.name != "plugins.md"  # test_plugin.py runs those
    for block in blocks(document)
    if block.language == "python" and block.text not in answered(document)  # those run below
]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: named(block.document))
def test_python_blocks_run(block: Block, desk: Path) -> None:
    settings = {**QUICK, "backbone.weights": "none"}
    text = block.text.replace(
        'recipe="default"', f'recipe="default", dataset="folder:photos", settings={settings}'
    )
    rng = np.random.default_rng(0)
    arrays = {"embeddings": rng.normal(size=(20, 4)), "labels": np.repeat(np.arange(5), 4)}
    exec(compile(text, str(block.document), "exec"), arrays)


def test_the_notebook_runs_from_top_to_bottom(desk: Path) -> None:
    cells = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    printed = io.StringIO()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert re.search(r"^softmax_norm +R@1 \d", printed.getvalue(), re.MULTILINE)
    assert "Advice: " in printed.getvalue()


@pytest.mark.parametrize("document", COMMANDED, ids=named)
def test_what_pages_say_that_commands_print_is_what_they_print(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert printed_anew(text) == text, "run: python tools/documents.py"


def test_the_pages_on_recipes_show_each_of_them() -> None:
    from mlbench.recipes.reading import recipe_names

    shown = set(
        re.findall(r"printed by: mlbench diff (\S+) (\S+)", (DOCS / "recipes.md").read_text())
    )
    assert {name for pair in shown for name in pair} == set(recipe_names())


def test_the_api_reference_is_current() -> None:
    assert API.read_text(encoding="utf-8") == reference(), "run: python tools/documents.py"


def test_the_command_line_reference_is_current() -> None:
    assert CLI.read_text(encoding="utf-8") == command_reference(), "run: python tools/documents.py"


@pytest.mark.parametrize("document", LINKED, ids=named)
def test_links_lead_somewhere(document: Path) -> None:
    for target in links(document):
        path, _, anchor = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        assert page.exists(), f"{named(document)}: {target}"
        assert ROOT in page.parents
        if anchor:
            assert anchor in anchors(page), f"{named(document)}: {target}"


def test_the_index_names_every_page() -> None:
    listed = {(DOCS / target).resolve() for target in links(DOCS / "README.md")}
    assert set(DOCS.glob("*.md")) - {DOCS / "README.md"} <= listed


def test_the_findings_lead_to_a_page_for_each_study() -> None:
    findings = RESULTS / "README.md"
    linked = {(RESULTS / target.partition("#")[0]).parent for target in links(findings)}
    assert set((RESULTS / "study").iterdir()) <= linked


def test_results_hold_the_figures_that_pages_show_and_stay_small() -> None:
    figures = (RESULTS / "figures").rglob("*")
    drawn = {(path.parent.name, path.stem) for path in figures if path.is_file()}
    assert drawn == shown_figures()
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert len(files) < 100
    assert sum(path.stat().st_size for path in files) < 8_000_000


def test_the_page_on_architecture_names_every_room() -> None:
    rooms = prose(DOCS / "architecture.md").partition("## Rooms")[2].partition("\n## ")[0]
    listed = {name.rstrip("/") for name in re.findall(r"`(\w[\w/]*(?:/|\.py))`", rooms)}
    package = ROOT / "mlbench"
    parts = {p.name for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - SELF_EVIDENT <= listed
    assert not {n for n in listed if not any((top / n).exists() for top in (package, ROOT))}


FOLDERS = ("mlbench", "tests", "stress", "tools", "benchmarks", "examples", "docs")
_PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")


def paths(text: str) -> list[str]:
    """Return what a text names of the repository: paths that start with one of its folders."""
    return [found.rstrip(".") for found in _PATH.findall(text)]


def missing(text: str) -> set[str]:
    return {path for path in paths(text) if not list(ROOT.glob(path))}


@pytest.mark.parametrize("document", [*LINKED, ROOT / "CHANGELOG.md"], ids=named)
def test_files_that_documents_name_exist(document: Path) -> None:
    assert not missing(document.read_text(encoding="utf-8"))


def test_files_that_comments_name_exist() -> None:
    sources = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    sources += [ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "mlbench").rglob("*.toml")]
    stale = {named(file): missing(file.read_text(encoding="utf-8")) for file in sources}
    assert not {file: names for file, names in stale.items() if names}


def test_modules_that_documents_name_exist() -> None:
    """A name such as ``store.py`` is that of a file of ours, wherever it lies."""
    ours = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    for document in LINKED:
        named_there = re.findall(r"`([\w/]+\.py)\b", prose(document))
        assert {Path(name).name for name in named_there} <= ours, named(document)


def test_names_of_the_package_in_prose_can_be_imported() -> None:
    sources = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    texts = [*map(prose, LINKED), *(file.read_text(encoding="utf-8") for file in sources)]
    dotted = re.compile(r"`(mlbench\.[\w.:]*\w)`")
    for name in {name for text in texts for name in dotted.findall(text)}:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_that_is_not_there_is_missed(folder: str) -> None:
    stale = f"{folder}/no_such.py"
    assert missing(f"See `{stale}`, or {stale}.") == {stale}
    assert not missing("See `tests/whole/test_docs.py`, mlbench/recipes/*.toml and docs/.")


def test_what_is_public_has_docstrings() -> None:
    bare = []
    for info in pkgutil.walk_packages(mlbench.__path__, "mlbench."):
        if re.search(r"\._|\.cli\b|__main__", info.name):
            continue
        module = importlib.import_module(info.name)
        bare += [info.name] if not module.__doc__ else []
        bare += [name for name, what in _public(module, info.name) if not inspect.getdoc(what)]
    assert not bare


def _public(module: object, name: str) -> Iterator[tuple[str, object]]:
    for key, what in vars(module).items():
        if key.startswith("_") or getattr(what, "__module__", "") != name:
            continue
        if inspect.isfunction(what) or inspect.isclass(what):
            yield f"{name}.{key}", what
        if inspect.isclass(what):
            own = [(k, v) for k, v in vars(what).items() if not k.startswith("_")]
            yield from ((f"{name}.{key}.{k}", v) for k, v in own if inspect.isfunction(v))
