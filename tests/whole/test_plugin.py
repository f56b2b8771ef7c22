"""Third-party packages, really installed into a fresh environment."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers.settings import QUICK

import mlbench
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES

EXAMPLE = Path(__file__).parents[2] / "examples" / "mlbench-loss-example"
SET = ["--device=cpu", *(f"--set={key}={value}" for key, value in QUICK.items())]

DOCS = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


def documented(name: str) -> str:
    """Return the Python block of the documentation that registers ``name``."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    (block,) = (b for b in blocks if re.search(rf'register_\w+\(\s*"{name}"', b))
    return block


PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "motley-plugins"
version = "1"

[project.entry-points."mlbench.losses"]
broken = "motley.broken"
softtriple = "motley.duplicate"
wrong_signature = "motley.wrong_signature"

[project.entry-points."mlbench.datasets"]
every_other = "motley.every_other"

[project.entry-points."mlbench.backbones"]
one_layer = "motley.one_layer"
"""

MODULES = {
    "__init__": "",
    "broken": "import a_module_that_is_not_there",
    "duplicate": """
import mlbench

@mlbench.register_loss("softtriple")
def build(num_classes, embedding_dim): ...
""",
    "wrong_signature": """
import mlbench

@mlbench.register_loss("wrong_signature")
def build(classes): ...
""",
    "every_other": documented("every_other"),
    "one_layer": documented("one_layer"),
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with mlbench, the example and a motley of plugins."""
    folder = tmp_path_factory.mktemp("plugins")
    motley = folder / "motley-plugins"
    (motley / "motley").mkdir(parents=True)
    (motley / "pyproject.toml").write_text(
        PYPROJECT + '[tool.hatch.build]\nonly-include=["motley"]'
    )
    for name, code in MODULES.items():
        (motley / "motley" / f"{name}.py").write_text(code)

    environment = folder / "env"
    venv.create(environment, with_pip=False)
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    interpreter = environment / scripts / "python"
    # What this environment has (torch above all) is lent, its editable packages included.
    ours = sysconfig.get_path("purelib")
    theirs = call(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    lent = Path(theirs.stdout.strip(), "lent.pth")
    lent.write_text(f"import site; site.addsitedir({ours!r})\n")
    install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    call(Path(sys.executable), "-m", "pip", "--python", interpreter, *install, EXAMPLE, motley)
    return interpreter


def call(
    interpreter: Path, *args: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [interpreter, *args], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_example_is_short_and_what_is_documented() -> None:
    module = EXAMPLE / "soft_nearest_neighbor.py"
    code = module.read_text(encoding="utf-8")
    assert len(code.splitlines()) < 30
    assert documented("soft_nearest_neighbor") in code


def test_plugins_are_listed_and_broken_ones_named(python: Path, tmp_path: Path) -> None:
    listed = call(python, "-m", "mlbench", "list", "losses", cwd=tmp_path)
    for name in ("soft_nearest_neighbor", *(e.name for e in LOSSES.entries())):
        assert name in listed.stdout
    warnings = listed.stderr.splitlines()
    assert len(warnings) == 3
    for name, reason in (
        ("broken", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("softtriple", "loss 'softtriple' is already registered by built-in"),
        ("wrong_signature", "its factory must accept (num_classes, embedding_dim)"),
    ):
        start = f"Warning: loss plugin '{name}' of motley-plugins 1 skipped: "
        assert any(w.startswith(start) and reason in w for w in warnings)


def test_the_example_keeps_the_contract(python: Path, tmp_path: Path) -> None:
    tests = EXAMPLE / "test_soft_nearest_neighbor.py"
    done = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=tmp_path)
    assert "1 passed" in done.stdout
    checked = call(python, "-m", "mlbench", "check", "soft_nearest_neighbor", cwd=tmp_path)
    assert "FAILED" not in checked.stdout
    assert "learns" in checked.stdout


def test_the_example_runs_on_a_folder(python: Path, photos: Path, tmp_path: Path) -> None:
    options = ("--set=soft_nearest_neighbor.temperature=0.5", "--dataset", f"folder:{photos}")
    record = run(python, tmp_path, "soft_nearest_neighbor", *options)
    assert (record.status, record.params) == ("ok", {"temperature": 0.5})


def test_data_sets_and_backbones_are_plugins_too(
    python: Path, photos: Path, tmp_path: Path
) -> None:
    for kind, name in (("datasets", "every_other"), ("backbones", "one_layer")):
        listed = call(python, "-m", "mlbench", "list", kind, cwd=tmp_path)
        row = next(line for line in listed.stdout.splitlines() if line.startswith(name))
        assert "motley-plugins" in row
    options = ("--dataset=every_other", f"--data-root={photos}", "--backbone=one_layer")
    record = run(python, tmp_path, "softtriple", *options)
    assert (record.status, record.dataset.name) == ("ok", "every_other")
    assert (record.dataset.train_classes, record.dataset.test_classes) == (3, 3)


def run(python: Path, folder: Path, loss: str, *options: str) -> RunRecord:
    call(python, "-m", "mlbench", "run", "--losses", loss, *options, *SET, cwd=folder)
    (record,) = (r for r in mlbench.load_results(folder / "results") if r.loss == loss)
    return record
