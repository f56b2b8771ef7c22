"""Pictures of what explains a gap: ladders as waterfalls, factorials by their effects."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.comparison.effects import LEVEL, Contrast
from mlbench.errors import MlbenchError, printable
from mlbench.system.files import atomic_file, check_path
from mlbench.tables.effects import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mlbench.comparison.ladder import Mode, RungResult

NEUTRAL, BETTER, WORSE, INK = "#888888", "#2a7f62", "#b3432b", "#000000"
"""Colours, which a page replaces by its own (``report.svg``)."""

_PALE = 0.4
"""How opaque the bar of a factor is whose effect may be none."""

_ROOM = 0.3
"""Of the axis, beside the bars, for their labels."""


def check_picture(path: Path) -> None:
    """Raise MlbenchError if no picture can be written to ``path``."""
    check_path(path)
    if path.suffix not in (".png", ".svg") or not path.parent.is_dir():
        raise MlbenchError(
            f"cannot write the picture {path}: use a .png or .svg file in an existing folder"
        )


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the suffix of ``path``.

    Raises:
        MlbenchError: the file cannot be written, or its suffix is of no picture.
    """
    check_picture(path)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=path.suffix[1:], dpi=150)
    except ValueError as error:
        raise MlbenchError(f"cannot write the picture {path}: {error}") from error
    with atomic_file(path) as file:
        file.write(picture.getbuffer())


def waterfall(results: Sequence[RungResult], title: str = "", mode: Mode = "cumulative") -> Figure:
    """Draw a ladder: where it starts, what each change gains with its interval, where it ends.

    Args:
        results: of the ladder.
        title: above it.
        mode: as the ladder was built: gains are over the rung before, or over the start.
    """
    rows = len(results) + (mode == "cumulative")
    figure, axes = _axes(rows, title)
    start = results[0].recall
    reached = None if start is None else 100 * start.mean
    for number, result in enumerate(results):
        if result.recall is None:
            _note(axes, number, "not run")
            continue
        mean = 100 * result.recall.mean
        if (
            result.gain is None or reached is None
        ):  # the start, or what it would be measured from was not run
            _level(axes, number, mean)
        else:
            half_width = result.gain.half_width
            label = _signed((mean - reached) / 100, half_width)
            look = _colour(mean - reached), 1.0
            _step(axes, number, (reached, mean), 100 * (half_width or 0.0), label, look)
        if mode == "cumulative":
            reached = mean
    names = [result.rung.factor or "start" for result in results]
    if mode == "cumulative":
        last = results[-1].recall
        if last is None:
            _note(axes, rows - 1, "not run")
        else:
            _level(axes, rows - 1, 100 * last.mean)
        names.append("target")
    _finish(axes, names, "R@1, percent")
    return figure


def effects_picture(study: Study, metric: str = "R@1", title: str = "") -> Figure:
    """Draw the effects of a factorial, the largest first, and beside them the gap.

    Args:
        study: what was found.
        metric: that is shown.
        title: above it.
    """
    found, factors = study.effects[metric], study.factorial.factors
    rows = [(factors[number].name, found.factors[number]) for number in study.order]
    sums = [("sum of the effects", found.total), ("gap between the ends", found.gap)]
    figure, axes = _axes(len(rows) + len(sums), title)
    shown = [found.adjusted[number] <= LEVEL for number in study.order]
    for number, (_, contrast) in enumerate([*rows, *sums]):
        value, half_width = 100 * contrast.value, 100 * contrast.half_width
        alpha = 1.0 if number >= len(rows) or shown[number] else _PALE
        colour = NEUTRAL if number >= len(rows) else _colour(value)
        _step(axes, number, (0.0, value), half_width, _of(contrast), (colour, alpha))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axhline(len(rows) - 0.5, color=NEUTRAL, linewidth=0.8)
    _finish(axes, [name for name, _ in (*rows, *sums)], _unit(metric, shown))
    return figure


def _unit(metric: str, shown: Sequence[bool]) -> str:
    pale = "" if all(shown) else f"; pale: p above {LEVEL:g} by Holm"
    return f"{metric}, percentage points, with 95 % intervals{pale}"


def in_words(study: Study, metric: str = "R@1") -> str:
    """Say what the picture of a factorial shows."""
    found, factors = study.effects[metric], study.factorial.factors
    each = [f"{factors[n].name} {_of(found.factors[n])}" for n in study.order]
    return (
        f"Effects on {metric} in percentage points: {', '.join(each)}; sum {_of(found.total)}, "
        f"gap {_of(found.gap)}"
    )


def _of(contrast: Contrast) -> str:
    return _signed(contrast.value, contrast.half_width)


def _signed(value: float, half_width: float | None) -> str:
    interval = "" if half_width is None else f" ± {100 * half_width:.1f}"
    return f"{100 * value:+.1f}{interval}"


def _axes(rows: int, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * rows + 1.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(printable(title), fontsize=10, loc="left")
    return figure, axes


def _level(axes: Axes, row: int, value: float) -> None:
    """Mark where a ladder starts, ends or goes on."""
    axes.plot([value, value], [row - 0.4, row + 0.4], color=NEUTRAL, linewidth=4)
    _label(axes, row, value, f"{value:.1f}")


def _colour(change: float) -> str:
    return BETTER if change >= 0 else WORSE


def _step(
    axes: Axes,
    row: int,
    ends: tuple[float, float],
    half_width: float,
    label: str,
    look: tuple[str, float],
) -> None:
    """Draw a change from one value to another, its interval at the end of it.

    Args:
        axes: to draw on.
        row: number of the line.
        ends: the two values.
        half_width: of the interval.
        label: beside it.
        look: colour, and how opaque it is.
    """
    start, end = ends
    axes.barh(row, end - start, left=start, color=look[0], alpha=look[1], height=0.6)
    if half_width:
        axes.errorbar(end, row, xerr=half_width, color=INK, capsize=3, linestyle="none", lw=1.2)
    _label(axes, row, max(start, end + half_width), label)


def _label(axes: Axes, row: int, place: float, text: str) -> None:
    axes.annotate(text, (place, row), (7, 0), textcoords="offset points", va="center")


def _note(axes: Axes, row: int, text: str) -> None:
    axes.text(0.5, row, text, transform=axes.get_yaxis_transform(), va="center")


def _finish(axes: Axes, names: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), [printable(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.use_sticky_edges = False
    axes.margins(x=0.05)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + _ROOM * (high - low))
    axes.set_xlabel(unit)
