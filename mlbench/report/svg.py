"""Matplotlib figures as inline SVG that takes its colours and typeface from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup

from mlbench.errors import printable, printable_lines
from mlbench.report.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#f00001", "#f00002", "#f00003"
"""Colours that stand for variables of the page while a figure is drawn."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    **{f"#f100{number:02x}": f"--c{number}" for number in range(COLOURS)},
    # The colours of drawings:
    "#888888": "--muted",
    "#2a7f62": "--good",
    "#b3432b": "--bad",
    "#000000": "--ink",
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mlbench",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        svg: inline, with its title and description.
        title: above it.
        note: below it; "" for none.
    """

    svg: Markup
    title: str
    note: str = ""


@contextmanager
def page_style() -> Iterator[None]:
    """Let matplotlib draw as the page wants it."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The page's own typeface is used; what matplotlib's has not only blurs the layout.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        yield


def draw(
    name: str,
    title: str,
    description: str,
    size: tuple[float, float],
    paint: Callable[[Axes], None],
    note: str = "",
) -> Picture:
    """Draw one figure.

    Args:
        name: unique in the page; letters, digits and hyphens.
        title: what it shows.
        description: its content in words, for those who do not see it.
        size: width and height in inches; text keeps its size if the page is as wide.
        paint: draws on the axes.
        note: what to know when reading it.
    """
    from matplotlib.figure import Figure

    with page_style():
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        return Picture(inline(_saved(figure), name, title, description), title, note)


def figure_picture(
    paint: Callable[[], Figure], name: str, title: str, description: str, note: str = ""
) -> Picture:
    """Take a whole figure, drawn by ``paint``, into the page; the rest as for ``draw``."""
    with page_style():
        return Picture(inline(_saved(paint()), name, title, description), title, note)


def _saved(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return buffer.getvalue().decode()


def inline(text: str, name: str, title: str, description: str) -> Markup:
    """Make an SVG file of matplotlib part of a page: accessible, themed, its ids unique."""
    body = printable_lines(text[text.index("<svg") :])
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"\bid=\"", f'id="{name}-', body)
    body = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"#[0-9a-f]{6}\b", _themed, body)
    body = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", _opening(name), body, count=1)
    words = Markup('<title id="{0}-t">{1}</title><desc id="{0}-d">{2}</desc>')
    head, end = body.split(">", 1)
    told = words.format(name, printable(title), printable(description))
    return Markup(f"{head}>{told}{end}")


_FIGURE = re.compile(
    r'<svg role="img" aria-labelledby="(?P<name>[\w-]+)-t".*?viewBox="0 0 '
    r'(?P<width>[\d.]+) (?P<height>[\d.]+)"[^>]*>'
    r"(?P<body><title[^>]*>(?P<title>.*?)</title>.*?)</svg>",
    re.DOTALL,
)


def figures(page: str) -> dict[str, str]:
    """Return the figures of a page as SVG files by name, in the page's light colours.

    Args:
        page: whose style names the colours, with figures made by ``inline``.
    """
    colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]+);", page[: page.index("@media")]))
    return {match["name"]: _standalone(match, colours) for match in _FIGURE.finditer(page)}


_HEADING = 24
"""Points above a figure that stands alone, for the title that is beside it in the page."""


def _standalone(match: re.Match[str], colours: Mapping[str, str]) -> str:
    name, title, width = match["name"], match["title"], match["width"]
    height = float(match["height"]) + _HEADING
    body = re.sub(r"var\((--[\w-]+)\)", lambda each: colours[each[1]], match["body"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'role="img" aria-labelledby="{name}-t" aria-describedby="{name}-d" '
        f'width="{width}pt" height="{height:g}pt" viewBox="0 {-_HEADING} {width} {height:g}" '
        f'font-family="sans-serif">\n'
        f'<rect y="{-_HEADING}" width="100%" height="100%" fill="{colours["--paper"]}"/>\n'
        f'<text x="4" y="-8" font-size="11" font-weight="bold" fill="{colours["--ink"]}">{title}'
        f"</text>\n{body}</svg>\n"
    )


def _themed(match: re.Match[str]) -> str:
    variable = _VARIABLES.get(match[0])
    return f"var({variable})" if variable else match[0]


def _opening(name: str) -> str:
    labels = f'role="img" aria-labelledby="{name}-t" aria-describedby="{name}-d"'
    return rf'<svg {labels} \1 xmlns:xlink="http://www.w3.org/1999/xlink">'


def shortened(label: str, length: int = 26) -> str:
    """Return a label as it fits beside an axis: printable characters, at most ``length``.

    The middle goes first, as labels differ in their parameters' values at the end.
    """
    text = printable(label)
    start = length // 3
    return text if len(text) <= length else f"{text[:start]}…{text[start + 1 - length :]}"
