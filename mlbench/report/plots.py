"""The figures of a comparison that need no images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from mlbench.comparison.estimates import Estimate, estimate
from mlbench.records.record import EpochRow, RunRecord
from mlbench.report.groups import Group, RowRuns
from mlbench.report.style import Style
from mlbench.report.svg import INK, MUTED, Picture, draw, shortened
from mlbench.tables.layout import distance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Styles = Mapping[str, Style]
MOST_CURVES = 12
"""Losses whose curves are drawn: those with the highest R@1."""
WIDTH = 5.6
"""Inches of a figure that takes half of the page: 403 points, in which text of 10.5 is drawn."""
_LEGEND_COLUMNS = 2


def recall_plot(group: Group, styles: Styles, name: str) -> Picture:
    """Draw R@1 of every row with its 95 % interval, and each run as a small dot."""
    entries = [entry for entry in group.entries if entry.runs]

    def paint(axes: Axes) -> None:
        for number, entry in enumerate(entries):
            style, figures = styles[entry.label], _percent(entry, "R@1")
            axes.plot(figures, [number] * len(figures), "o", ms=3, color=style.token, alpha=0.35)
            value = entry.row.estimates["R@1"]
            _point(axes, 100 * value.mean, number, _half(value), style)
            beside = (100 * value.mean, number)
            axes.annotate(f"{100 * value.mean:.1f}", beside, (0, 7), ha="center", color=INK,
                          textcoords="offset points", fontsize=9.5)  # fmt: skip
        name_rows(axes, [entry.label for entry in entries])
        axes.set_xlabel("R@1, percent")

    return draw(
        name,
        _highest(group) or "R@1 with 95 % intervals",
        _in_words(entries, "R@1"),
        (WIDTH, 0.42 * len(entries) + 0.9),
        paint,
        "Large marks: mean over runs, with its 95 % interval over seeds where there are several; "
        "small dots: single runs.",
    )


def distance_plot(group: Group, styles: Styles, name: str) -> Picture | None:
    """Draw the gap of each trained row to the best; None if it is unknown."""
    entries = [entry for entry in group.trained if "R@1" in entry.row.behind]
    if len(entries) < 2:
        return None
    distances = {entry.label: entry.row.behind["R@1"] for entry in entries}

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, lw=1)
        for number, (label, each) in enumerate(distances.items()):
            ends = 100 * np.array([[each.gap - each.low], [each.high - each.gap]])
            style = styles[label]
            axes.errorbar(100 * each.gap, number, xerr=ends, color=style.token,
                          marker=style.marker, ms=7, capsize=4, lw=1.8)  # fmt: skip
        name_rows(axes, list(distances))
        axes.set_xlabel("gap to best, R@1 (percentage points)")

    words = "; ".join(f"{label} {distance(each)}" for label, each in distances.items())
    scope = group.comparison.scope
    marks = " Reaching 0: not significantly different from the best." if scope.judged else ""
    return draw(
        name,
        _ties(group),
        f"Percentage points: {words}",
        (WIDTH, 0.42 * len(entries) + 0.9),
        paint,
        f"95 % intervals, which hold simultaneously, for {scope}.{marks}",
    )


def _highest(group: Group) -> str:
    """Say which loss and which baseline has the highest R@1; "" without both."""
    losses = [e for e in group.trained if "R@1" in e.row.estimates]
    floors = [e for e in group.entries if e.row.baseline and e.runs]
    if not losses or not floors:
        return ""
    (loss, reached), (floor, there) = (
        max(((e.label, e.row.estimates["R@1"].mean) for e in each), key=lambda pair: pair[1])
        for each in (losses, floors)
    )
    return (
        f"R@1: {loss} reaches {100 * reached:.1f} percent, {floor} without training "
        f"{100 * there:.1f}"
    )


def _ties(group: Group) -> str:
    """Say how many losses are not significantly different from the best one."""
    losses = [entry.row for entry in group.trained if "R@1" in entry.row.behind]
    if not group.comparison.scope.judged:
        return "Gap to the best loss, R@1"
    tied = sum("R@1" in row.marked for row in losses) - 1
    if tied < 1:
        return "Every other loss is significantly below the best one in R@1"
    verb = "is" if tied == 1 else "are"
    return f"{tied} of {len(losses) - 1} losses {verb} not significantly below the best one in R@1"


def recall_at_k_plot(group: Group, styles: Styles, name: str) -> Picture:
    """Draw R@k against k."""
    floors = [entry for entry in group.entries if entry.runs and entry.row.baseline]
    entries = [*floors, *group.trained[:MOST_CURVES]]
    cut = len(group.trained) > MOST_CURVES
    ks = sorted(group.comparison.recipe.evaluation.ks)

    def paint(axes: Axes) -> None:
        for entry in entries:
            means = [100 * entry.row.estimates[f"R@{k}"].mean for k in ks]
            style = styles[entry.label]
            axes.plot(ks, means, color=style.token, marker=style.marker, ms=5, ls=style.line,
                      label=shortened(entry.label))  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("k")
        axes.set_ylabel("R@k, percent")
        _legend(axes)

    words = "; ".join(_in_words(entries, f"R@{k}") for k in ks)
    size = WIDTH, 3.4 + _legend_height(len(entries))
    title = "Recall at k" + cut * f" of the {MOST_CURVES} best losses and the baselines"
    return draw(name, title, words, size, paint)


def roc_plot(group: Group, styles: Styles, name: str) -> Picture | None:
    """Draw the mean TAR over runs against FAR; None without verification."""
    curves = {entry.label: _roc(entry) for entry in group.entries}
    curves = {label: curve for label, curve in curves.items() if curve}
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        for label, curve in curves.items():
            axes.plot(list(curve), [100 * tar for tar in curve.values()], color=styles[label].token,
                      ls=styles[label].line, label=shortened(label))  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("FAR, false accept rate")
        axes.set_ylabel("TAR, percent")
        _legend(axes)

    words = "; ".join(
        f"{label}: TAR {100 * tar:.1f} percent at FAR {far:.2g}"
        for label, curve in curves.items()
        for far, tar in list(curve.items())[:1]
    )
    size = WIDTH, 3.4 + _legend_height(len(curves))
    return draw(name, "Verification: ROC", words, size, paint)


def _roc(entry: RowRuns) -> dict[float, float]:
    """Return the mean TAR by FAR, at the rates that all runs have."""
    runs = [dict(r.verification.roc) for r in entry.runs.values() if r.verification]
    shared = [far for far in runs[0] if all(far in run for run in runs)] if runs else []
    return {far: float(np.mean([run[far] for run in runs])) for far in shared}


_COSTS: tuple[tuple[str, str, Callable[[RunRecord], float]], ...] = (
    ("Training time", "seconds", lambda r: r.cost.seconds.get("train", 0.0)),
    ("Training speed", "images per second", lambda r: r.cost.images_per_second),
    ("Peak memory", "MB, of the process so far", lambda r: r.cost.peak_memory_mb),
)


def cost_plots(group: Group, styles: Styles, name: str) -> list[Picture]:
    """Draw what training took against R@1, where the losses differ in it."""
    return [
        _cost_plot(group.trained, styles, f"{name}-{number}", *cost)
        for number, cost in enumerate(_COSTS)
        if _differ(group.trained, cost[-1])
    ]


def _differ(entries: Sequence[RowRuns], cost: Callable[[RunRecord], float]) -> bool:
    """Tell whether every run of the dearest row cost a fifth more than any of the cheapest row."""
    runs = [[cost(record) for record in entry.runs.values()] for entry in entries]
    return bool(runs) and max(map(min, runs)) > 1.2 * min(map(max, runs))


def _cost_plot(
    entries: Sequence[RowRuns],
    styles: Styles,
    name: str,
    title: str,
    unit: str,
    cost: Callable[[RunRecord], float],
) -> Picture:
    costs = {e.label: estimate([cost(r) for r in e.runs.values()]).mean for e in entries}

    def paint(axes: Axes) -> None:
        for entry in entries:
            value = entry.row.estimates["R@1"]
            style = styles[entry.label]
            place = costs[entry.label], 100 * value.mean
            axes.errorbar(*place, yerr=_half(value), color=style.token, marker=style.marker, ms=7,
                          capsize=3, lw=1.4)  # fmt: skip
        axes.set_xlim(0, 1.12 * max(costs.values()) or 1)
        axes.set_xlabel(unit)
        axes.set_ylabel("R@1, percent")

    words = "; ".join(
        f"{label}: {mean:.4g} {unit.partition(' of ')[0]}" for label, mean in costs.items()
    )
    return draw(name, f"{title} against R@1", words, (4.4, 3.2), paint)


def loss_plots(group: Group, styles: Styles, name: str) -> list[Picture]:
    """Draw the training loss by epoch, a figure for each row: losses have no common scale."""
    return [
        _loss_plot(entry, styles[entry.label], f"{name}-{number}")
        for number, entry in enumerate(group.trained[:MOST_CURVES])
        if any(record.curve for record in entry.runs.values())
    ]


def _loss_plot(entry: RowRuns, style: Style, name: str) -> Picture:
    curves = [_curve(record, "loss") for record in entry.runs.values()]
    words = f"{entry.label}: from {_ends(curves)} in {max(map(len, curves))} epochs"
    paint = functools.partial(_paint_curves, curves=curves, style=style, axis="loss")
    return draw(name, entry.label, words, (3.1, 2.2), paint)


def score_plot(group: Group, styles: Styles, name: str) -> Picture | None:
    """Draw what the selection rule judged each epoch by; None for rule ``last``."""
    rule = group.comparison.recipe.selection.rule
    curves = {
        entry.label: [_curve(record, "score") for record in entry.runs.values()]
        for entry in group.trained
    }
    shown = {
        label: given for label, given in curves.items() if np.isfinite(np.concatenate(given)).any()
    }
    if not shown:
        return None
    axis = "MAP@R on validation classes" if rule == "validation" else "R@1 on test classes"

    def paint(axes: Axes) -> None:
        for label, given in shown.items():
            percent = [100 * curve for curve in given]
            _paint_curves(axes, percent, styles[label], f"{axis}, percent")

    words = "; ".join(f"{label}: from {_ends(given)}" for label, given in shown.items())
    return draw(name, f"{axis} by epoch", words, (WIDTH, 3.2), paint)


def _curve(record: RunRecord, field: str) -> np.ndarray:
    values = [_value(row, field) for row in record.curve]
    return np.array([np.nan if value is None else value for value in values])


def _value(row: EpochRow, field: str) -> float | None:
    return row.loss if field == "loss" else row.score


def _paint_curves(axes: Axes, curves: Sequence[np.ndarray], style: Style, axis: str) -> None:
    """Draw the mean over runs and the band between the least and the greatest."""
    length = max(map(len, curves))
    table = np.full((len(curves), length), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
    known = np.isfinite(table).any(axis=0)
    epochs, table = np.arange(1, length + 1)[known], table[:, known]
    axes.fill_between(
        epochs,
        np.nanmin(table, axis=0),
        np.nanmax(table, axis=0),
        color=style.token,
        alpha=0.2,
        lw=0,
    )
    marker = style.marker if len(epochs) < 3 else ""
    axes.plot(epochs, np.nanmean(table, axis=0), color=style.token, ls=style.line, marker=marker)
    axes.set_xlabel("epoch")
    axes.set_ylabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _ends(curves: Sequence[np.ndarray]) -> str:
    """Return the means over runs of the first and the last known value, in words."""
    known = [curve[np.isfinite(curve)] for curve in curves]
    first, last = (np.mean([curve[end] for curve in known if len(curve)]) for end in (0, -1))
    return f"{first:.4g} to {last:.4g}"


def class_plot(
    names: Sequence[str],
    recalls: np.ndarray,
    labels: Sequence[str],
    styles: Styles,
    picture: tuple[str, str],
) -> Picture:
    """Draw the R@1 of some classes, a mark for each row.

    Args:
        names: of the classes, from the top.
        recalls: ``(L, len(names))`` fractions.
        labels: of the rows.
        styles: by label.
        picture: name and title of the figure.
    """

    def paint(axes: Axes) -> None:
        for number in range(len(names)):
            ends = 100 * recalls[:, number].min(), 100 * recalls[:, number].max()
            axes.plot(ends, [number] * 2, color=MUTED, lw=1, alpha=0.6)
        for label, row in zip(labels, recalls, strict=True):
            style = styles[label]
            axes.plot(100 * row, range(len(names)), ls="", marker=style.marker, ms=6,
                      color=style.token, alpha=0.9, label=shortened(label))  # fmt: skip
        name_rows(axes, names, 32)
        axes.set_xlim(-3, 103)
        axes.set_xlabel("R@1 of the class, percent")
        _legend(axes)

    words = "; ".join(
        f"{name}: {100 * recalls[:, number].mean():.0f}" for number, name in enumerate(names)
    )
    description = f"Mean over losses, percent: {words}"
    size = WIDTH, 0.3 * len(names) + 0.8 + _legend_height(len(labels))
    return draw(*picture, description, size, paint)


def report_plot(entries: Sequence[RowRuns], styles: Styles, key: str, name: str) -> Picture:
    """Draw one diagnostic that losses report after training, a dot for each run."""
    figures = {e.label: [r.loss_report[key] for r in e.runs.values()] for e in entries}

    def paint(axes: Axes) -> None:
        for number, entry in enumerate(entries):
            style, value = styles[entry.label], estimate(figures[entry.label])
            axes.plot(figures[entry.label], [number] * value.n, "o", ms=3, alpha=0.35,
                      color=style.token)  # fmt: skip
            _point(axes, value.mean, number, value.half_width or 0, style)
        name_rows(axes, list(figures))
        axes.set_xlim(left=0)
        axes.set_xlabel(key.replace("_", " "))

    words = "; ".join(f"{label}: {estimate(each).mean:.3g}" for label, each in figures.items())
    title = "Distinct centres per class, after merging" if key == "distinct_centers" else key
    return draw(name, title, words, (WIDTH, 0.42 * len(entries) + 0.9), paint)


def _percent(entry: RowRuns, metric: str) -> list[float]:
    return [100 * record.metrics[metric] for record in entry.runs.values()]


def _half(value: Estimate) -> float:
    return 100 * (value.half_width or 0)


def _point(axes: Axes, x: float, y: float, half_width: float, style: Style) -> None:
    axes.errorbar(
        x, y, xerr=half_width, color=style.token, marker=style.marker, ms=7, capsize=4, lw=1.8
    )


def _legend(axes: Axes) -> None:
    """Say below the axes what the marks stand for."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9.5)


def _legend_height(entries: int) -> float:
    return 0.22 * -(-entries // _LEGEND_COLUMNS)


def name_rows(axes: Axes, names: Sequence[str], length: int = 26) -> None:
    """Name the rows 0, 1, ... of a plot from the top, in lines of about ``length`` characters."""
    axes.set_yticks(range(len(names)), [_in_lines(name, length) for name in names], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.5, -0.7)


def _in_lines(label: str, length: int) -> str:
    """Break a long label before its parameters."""
    name, mark, parameters = label.partition(" (")
    if len(label) <= length or not mark:
        return shortened(label, length)
    return f"{shortened(name, length)}\n{shortened(f'({parameters}', length + 8)}"


def _in_words(entries: Sequence[RowRuns], metric: str) -> str:
    parts = []
    for entry in entries:
        value = entry.row.estimates[metric]
        interval = f" ± {_half(value):.1f}" if value.half_width is not None else ""
        parts.append(f"{entry.label} {100 * value.mean:.1f}{interval}")
    return f"{metric} in percent: {', '.join(parts)}"
