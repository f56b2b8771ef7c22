"""The documentation site is built without a warning, and holds what it should."""

import importlib
import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed")
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="not in a source tree")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPO_URL", "https://repository.invalid/us/mlbench")
        importlib.import_module("mkdocs")
        logging.getLogger("mkdocs").setLevel(logging.WARNING)
        build(
            load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        )  # strict: a warning fails
    return folder


def test_every_page_is_on_the_site_and_can_be_searched(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    for page in pages:
        stem = page.parent if page.stem == "README" else page.with_suffix("")
        place = "" if stem == Path() else f"{stem.as_posix()}/"
        assert place in found, page
    assert {"results/", "CHANGELOG/"} <= found


def test_links_out_of_the_documents_follow(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert 'href="results/"' in home
    architecture = (site / "architecture" / "index.html").read_text()
    assert 'href="https://repository.invalid/us/mlbench/blob/main/mlbench/records"' in architecture


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "fonts.googleapis.com" not in text
        assert '<script src="http' not in text
