"""Hooks of the documentation site: pages outside of docs/ join it, and links follow them.

Markdown pages link to each other, and to source files, by their paths in the repository, so that
they also work where the repository is browsed. On the site a page outside of docs/ keeps its path,
and a link to a file that is no page leads to the repository, or is plain text if its address is not
known (``REPO_URL`` unset).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ALONE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
KINDS = {".md", ".png", ".svg"}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^()\s#]+)(#[^()\s]*)?\)")
_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def outside() -> Iterator[str]:
    """Yield the paths of files outside of docs/ that belong to the site."""
    yield from ALONE
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in KINDS:
            yield path.relative_to(ROOT).as_posix()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Let the pages and pictures outside of docs/ join."""
    for path in outside():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link of a page to the page, or to the file in the repository."""
    known = {file.src_uri for file in files}
    source = page.file.src_uri
    here = source if source in set(outside()) else f"docs/{source}"

    def follow(link: re.Match[str]) -> str:
        picture, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        uri = path.removeprefix("docs/")
        if uri in known:
            return f"{picture}[{text}]({relative(uri, source)}{anchor})"
        if not (ROOT / path).exists():
            return link[0]  # the build names it
        return (
            f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text
        )

    parts = _BLOCK.split(markdown)
    return "".join(part if n % 2 else _LINK.sub(follow, part) for n, part in enumerate(parts))


def relative(uri: str, source: str) -> str:
    """Return the way from one page to another, as Markdown writes it."""
    return posixpath.relpath(uri, posixpath.dirname(source) or ".")
