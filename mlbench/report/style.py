"""One colour and one marker for each loss, the same in every figure of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COLOURS = 8
"""Number of colours in report.css: ``--c0`` .. ``--c7``, told apart by the colour-blind."""

_MARKERS = {
    "o": "M6 1.5a4.5 4.5 0 1 0 .01 0z",
    "s": "M2 2h8v8h-8z",
    "^": "M6 1l5 9.5h-10z",
    "D": "M6 .5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    "v": "M6 11l5-9.5h-10z",
    "P": "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M3.2 .8l2.8 2.8 2.8-2.8 2.4 2.4-2.8 2.8 2.8 2.8-2.4 2.4-2.8-2.8-2.8 2.8-2.4-2.4"
    " 2.8-2.8-2.8-2.8z",
    "p": "M6 .8l5.2 3.8-2 6.1h-6.4l-2-6.1z",
}
_BASELINE_MARKERS = ("v", "s", "D")


@dataclass(frozen=True)
class Style:
    """How a row is drawn.

    Attributes:
        colour: a CSS value.
        token: the colour that stands for it while matplotlib draws.
        marker: of matplotlib.
        shape: the marker as an SVG path in a box of 12 x 12.
        line: line style of matplotlib.
    """

    colour: str
    token: str
    marker: str
    shape: str
    line: str


def styles(losses: Iterable[str], baselines: Iterable[str]) -> dict[str, Style]:
    """Return a style for each row label: losses take colours in turn, baselines are grey."""
    greys = {label: _baseline(number) for number, label in enumerate(sorted(set(baselines)))}
    return greys | {label: _loss(number) for number, label in enumerate(sorted(set(losses)))}


def _loss(number: int) -> Style:
    turn, colour = divmod(number, COLOURS)
    marker = list(_MARKERS)[(colour + turn) % len(_MARKERS)]
    line = ("solid", "dashed", "dotted", "dashdot")[turn % 4]
    return Style(f"var(--c{colour})", f"#f100{colour:02x}", marker, _MARKERS[marker], line)


def _baseline(number: int) -> Style:
    marker = _BASELINE_MARKERS[number % len(_BASELINE_MARKERS)]
    line = ("dotted", "dashed", "dashdot")[number % 3]
    return Style("var(--muted)", "#f00002", marker, _MARKERS[marker], line)
