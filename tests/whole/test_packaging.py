"""The wheel holds all that a run reads, the sdist all that a packager needs."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlbench"
IGNORED = {"__pycache__", ".ruff_cache", "build", "dist"}

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="not in a source tree"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def members(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped(folder: Path) -> set[str]:
    """Return the files below a folder that git would keep, relative to the checkout."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and not IGNORED & set(path.relative_to(ROOT).parts)
        and ".egg-info/" not in path.as_posix()
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    inside = {name for name in members(built) if ".dist-info/" not in name}
    assert inside == shipped(PACKAGE)
    suffixes = {Path(name).suffix for name in inside}
    assert {".py", ".toml", ".csv", ".jinja", ".typed"} <= suffixes


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "mlbench = mlbench.cli:entry" in texts["entry_points.txt"]
    assert "Requires-Python: >=3.11" in texts["METADATA"]
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text()
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_tests_documents_and_benchmarks(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("mlbench", "tests", "docs", "benchmarks", "examples", "stress", "tools"):
        assert shipped(ROOT / folder) <= names, folder
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}
    assert wanted | {"Makefile", "constraints.txt", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("results/")]


@pytest.mark.skipif(not os.environ.get("MLBENCH_SLOW"), reason="MLBENCH_SLOW is not set")
def test_the_wheel_works_outside_of_the_checkout(built: Path, tmp_path: Path) -> None:
    """Installed into a fresh environment that borrows the dependencies of this one."""
    (wheel,) = built.glob("*.whl")
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    python = fresh / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, cwd=tmp_path)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    here = [path for path in sys.path if path.endswith("-packages")]
    # Plain lines of a .pth come after the environment's own packages, so the wheel is found first.
    (Path(site) / "borrowed.pth").write_text("\n".join(here))
    where = [python, "-c", "import mlbench; print(mlbench.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(found.stdout.strip()).is_relative_to(fresh)
    for arguments, needle in ((("list", "losses"), "softtriple"), (("list", "recipes"), "paper")):
        done = subprocess.run(
            [fresh / "bin" / "mlbench", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert needle in done.stdout
