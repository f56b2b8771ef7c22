"""What is released: one name, one version, install commands that install this project."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mlbench._version import DISTRIBUTION, __version__
from mlbench.cli import main
from mlbench.errors import not_installed

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="not in a source tree"
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUFFIXES = {".md", ".py", ".toml", ".yml", ".jinja", ".ipynb", ".cff"}
FOLDERS = (".github", "benchmarks", "docs", "examples", "mlbench", "results", "stress", "tools")
STRANGER = re.compile(
    r"\bmlbench\[|(?:pip|uv pip|uv tool|pipx) install [^`\n]*(?<![\w./-])mlbench\b"
)
"""What would install the package "mlbench" of the index, which is another project's."""


def texts() -> dict[str, str]:
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    files += [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def install_commands(text: str) -> list[list[str]]:
    """Return the words of every pip command in a text, up to the end of its line or code."""
    found = re.findall(r"\bpip install ((?:'[^']*'|\"[^\"]*\"|[^`\n'\"#;|)&])*)", text)
    return [shlex.split(each) for each in found]


def test_no_text_installs_the_project_that_has_the_name_mlbench_on_the_index() -> None:
    wrong = [f"{name}: {m[0]}" for name, text in texts().items() for m in STRANGER.finditer(text)]
    assert not wrong


def test_install_commands_name_extras_that_exist() -> None:
    known = set(PROJECT["optional-dependencies"])
    seen = set()
    for name, text in texts().items():
        for words in install_commands(text):
            for extras in re.findall(rf"(?:\.|{DISTRIBUTION})\[([\w,]+)\]", " ".join(words)):
                assert set(extras.split(",")) <= known, f"{name}: {words}"
                seen |= set(extras.split(","))
    assert {"pretrained", "ray"} <= seen


@pytest.mark.parametrize("text", ["pip install 'mlbench[ray]'", "uv pip install mlbench"])
def test_a_command_that_installs_a_stranger_would_be_found(text: str) -> None:
    assert STRANGER.search(text)


def test_messages_name_the_distribution_and_the_checkout() -> None:
    message = str(not_installed("tuning needs Optuna", "tune"))
    assert message == (
        "tuning needs Optuna, which is not installed; run: pip install 'dmlbench[tune]' "
        "(in a checkout: pip install -e '.[tune]')"
    )


def test_the_distribution_has_the_name_that_the_package_knows() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["scripts"] == {"mlbench": "mlbench.cli:entry"}


def test_one_version_stands_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    released = re.search(r"^## \[?(\d[\w.]*)\]? - (\d{4}-\d\d-\d\d)$", changelog(), re.MULTILINE)
    assert released, "no dated release in CHANGELOG.md"
    assert released[1] == __version__
    assert f"\ndate-released: {released[2]}\n" in citation
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def workflows() -> dict[str, dict]:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}


def test_workflows_run_what_make_has() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [
        step["run"]
        for flow in workflows().values()
        for job in flow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    made = [words[1:] for step in steps if (words := step.split())[0] == "make"]
    named = {word for words in made for word in words if "=" not in word}
    assert named <= targets
    assert {"check", "test", "demo", "docs", "dist"} <= named


def test_workflows_test_the_versions_that_are_declared() -> None:
    python = workflows()["checks"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    declared = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert declared == python
    assert PROJECT["requires-python"] == f">={python[0]}"
