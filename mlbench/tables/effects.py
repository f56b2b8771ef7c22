"""Tables of a two-level design: what is to be run, and what its factors do."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from mlbench.comparison.design import Design, RowResult, resolution
from mlbench.comparison.effects import (
    LEVEL,
    Contrast,
    Effects,
    Levels,
    alias_groups,
    confounded,
    effects,
    gap_between,
)
from mlbench.comparison.estimates import estimate
from mlbench.comparison.factorial import Factorial
from mlbench.comparison.factors import Changes, Factor
from mlbench.errors import printable_lines
from mlbench.tables.escaping import escape_csv
from mlbench.tables.formats import SHEET_FORMATS
from mlbench.tables.layout import not_run, percent
from mlbench.tables.sheet import Line, Sheet

METRICS = ("R@1", "MAP@R")
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")


@dataclass(frozen=True)
class Study:
    """A factorial study and its effects.

    Attributes:
        factorial: what was run.
        effects: by metric.
        elsewhere: gap between the ends under each of the other conditions, by metric.
    """

    factorial: Factorial
    effects: Mapping[str, Effects]
    elsewhere: tuple[Mapping[str, Contrast], ...]

    @classmethod
    def of(cls, factorial: Factorial) -> Study:
        """Estimate the effects on R@1 and MAP@R."""
        totals = {metric: factorial.totals(metric) for metric in METRICS}
        return cls(
            factorial,
            {metric: effects(factorial.design, runs) for metric, runs in totals.items()},
            tuple(
                {m: gap_between(factorial.design, totals[m], each.totals(m)) for m in METRICS}
                for each in factorial.elsewhere
            ),
        )

    @property
    def order(self) -> list[int]:
        """Numbers of the factors, those of the largest effect on R@1 first."""
        found = self.effects["R@1"].factors
        return sorted(range(len(found)), key=lambda n: -abs(round(found[n].value, 9)))

    @property
    def title(self) -> str:
        """What was varied, in a line."""
        count = len(self.factorial.factors)
        return f"{self.factorial.loss}: effects of {count} factors, {_kind(self.factorial.design)}"


def _kind(design: Sequence[Levels]) -> str:
    """Name a design, such as "2^(7-3), resolution IV"."""
    count, exponent = len(design[0]), len(design).bit_length() - 1
    found = resolution(design)
    if found is None:
        return f"full factorial in {len(design)} settings"
    return f"2^({count}-{count - exponent}), resolution {_ROMAN[found - 1]}"


def changes_in_words(changes: Changes) -> str:
    """Say what a factor changes."""
    return "; ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())


def design_sheet(design: Design, title: str, cost: Sequence[str] = ()) -> Sheet:
    """Lay out what is to be run.

    Args:
        design: the rows.
        title: what for.
        cost: what it takes, in sentences.
    """
    lines = []
    for row in design.rows:
        seeds = [str(run.seed) for plan in row.plans for run in plan.runs() if not run.fold]
        cells = (", ".join(seeds), *("+" if level > 0 else "-" for level in row.setting))
        lines.append(Line(cells, (False,) * len(cells)))
    notes = (
        f"{_kind(design.settings)}; - is the level of the start, + that of the end",
        *(f"{factor.name}: {changes_in_words(factor.changes)}" for factor in design.factors),
        *_aliases(design.factors, design.settings),
        *cost,
    )
    header = ("seeds", *(factor.name for factor in design.factors))
    return Sheet(title, header, tuple(lines), notes)


def rows_sheet(design: Design, results: Sequence[RowResult], title: str) -> Sheet:
    """Lay out the rows of a design that could not be run whole: R@1 of each, or why not."""
    lines = []
    for number, (row, result) in enumerate(zip(design.rows, results, strict=True)):
        recalls = [float(run.metrics["R@1"]) for run in result.runs]
        recall = percent(estimate(recalls)) if recalls else "not run"
        cells = (str(number), *("+" if s > 0 else "-" for s in row.setting), recall)
        lines.append(Line(cells, (False,) * len(cells)))
    problems = {f"row {n}": result.problem for n, result in enumerate(results) if result.problem}
    notes = (
        *not_run(problems),
        "no effects: every row of the design needs a finished run; R@1 in percent",
    )
    header = ("row", *(factor.name for factor in design.factors), "R@1")
    return Sheet(title, header, tuple(lines), notes)


def _aliases(factors: Sequence[Factor], design: Sequence[Levels]) -> list[str]:
    """Say which effects the design cannot separate, by name."""
    hidden = [
        f"{factors[number].name} = {_products(factors, pairs)}"
        for number, pairs in confounded(design).items()
    ]
    groups = [group for group in alias_groups(design) if len(group) > 1]
    notes = []
    if hidden:
        notes.append("effects aliased with two-factor interactions: " + "; ".join(hidden))
    if groups:
        named = "; ".join(_products(factors, group) for group in groups)
        notes.append(f"two-factor interactions aliased with each other: {named}")
    return notes


def _products(factors: Sequence[Factor], pairs: Sequence[tuple[int, int]]) -> str:
    return " = ".join(f"{factors[i].name} × {factors[j].name}" for i, j in pairs)


def effects_sheet(study: Study) -> Sheet:
    """Lay out the effects, the largest on R@1 first, then how they add up to the gap."""
    factors, found = study.factorial.factors, study.effects
    lines = [
        _line(
            (factors[n].name, changes_in_words(factors[n].changes)),
            [found[m].factors[n] for m in METRICS],
            [found[m].adjusted[n] for m in METRICS],
        )
        for n in study.order
    ]
    lines[-1] = Line(lines[-1].cells, lines[-1].bold, ends_section=True)
    sums = [_sums(found[metric]) for metric in METRICS]
    lines += [_line((name, ""), [each[name] for each in sums]) for name in sums[0]]
    lines += [
        _line(("gap elsewhere", changes_in_words(each.changes)), [at[m] for m in METRICS])
        for each, at in zip(study.factorial.elsewhere, study.elsewhere, strict=True)
    ]
    if not all(each.adds_up for each in found.values()):
        lines[-1] = Line(lines[-1].cells, lines[-1].bold, ends_section=True)
        groups = alias_groups(study.factorial.design)
        lines += [
            _line(
                ("interaction", _products(factors, g)), [found[m].interactions[n] for m in METRICS]
            )
            for n, g in enumerate(groups)
        ]
    header = ("factor", "change", *(text for m in METRICS for text in (m, "p")))
    return Sheet(study.title, header, tuple(lines), tuple(_notes(study)), texts=(0, 1))


def _sums(found: Effects) -> dict[str, Contrast]:
    """Return how the effects add up, by name."""
    return {
        "sum of the effects": found.total,
        "gap between the ends": found.gap,
        "sum less gap": found.misfit,
        "middle of the ends less mean of all": found.middle,
    }


def _line(
    names: tuple[str, str], contrasts: Sequence[Contrast], adjusted: Sequence[float] = ()
) -> Line:
    shown = [signed(each) for each in contrasts]
    p = [_p(each) for each in adjusted] or [""] * len(shown)
    marked = [each <= LEVEL for each in adjusted] or [False] * len(shown)
    cells = (*names, *(text for pair in zip(shown, p, strict=True) for text in pair))
    bold = (False, False, *(mark for each in marked for mark in (each, False)))
    return Line(cells, bold)


def signed(contrast: Contrast) -> str:
    """Return a difference in percentage points, with its 95 % interval."""
    return f"{100 * contrast.value:+.1f} ± {100 * contrast.half_width:.1f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _notes(study: Study) -> list[str]:
    factorial, found = study.factorial, study.effects["R@1"]
    start, end = factorial.ends
    per_setting = min(len(factorial.runs[setting]) for setting in factorial.design)
    counted = per_setting * len(factorial.design)
    notes = [
        "percentage points ± 95 %, for other test classes and other seeds; an effect is the mean "
        f"of the runs with the change minus the mean of those without it ({counted // 2} and "
        f"{counted // 2} runs); p by Holm over the {len(factorial.factors)} factors; bold: p at "
        f"most {LEVEL:g}",
        f"start: {_ends(study, 'start')} (n {len(factorial.runs[start])}); "
        f"end: {_ends(study, 'end')} (n {len(factorial.runs[end])})",
        _noise(found),
        "the sum of the effects minus the gap does not show two-factor interactions, which cancel "
        "between the two ends; the middle of the ends minus the mean of all shows them",
        *_aliases(factorial.factors, factorial.design),
    ]
    run = factorial.runs[start][0]
    notes.append(
        f"data {run.dataset.name} {run.dataset.fingerprint[:12]}: test {run.dataset.test_images} "
        f"images of {run.dataset.test_classes} classes"
    )
    return notes


def _ends(study: Study, which: str) -> str:
    return ", ".join(f"{m} {100 * getattr(study.effects[m], which):.1f}" for m in METRICS)


def _noise(found: Effects) -> str:
    """Say how far runs differ that should be equal, and whether interactions show in it."""
    parts = []
    if found.residual.freedom:
        parts.append(
            f"{100 * found.residual.sd:.2f} by the residual of the main effects "
            f"({found.residual.freedom} degrees of freedom)"
        )
    if found.pure.freedom:
        parts.append(
            f"{100 * found.pure.sd:.2f} by runs that repeat a setting ({found.pure.freedom})"
        )
    if not parts:
        return (
            "the variation between seeds is unknown and not part of the intervals: no setting has "
            "two runs"
        )
    lack = "" if found.lack is None else f"; p that both are equal: {_p(found.lack)}"
    return f"standard deviation of R@1 from run to run: {', '.join(parts)}{lack}"


def to_csv(studies: Sequence[Study]) -> str:
    """Return one line per factor and metric of every study: fractions, unrounded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["title", "metric", "what", "change", "value", "half_width", "p", "p_holm"])
    for study in studies:
        for metric in METRICS:
            for each in _rows(study, metric):
                cells = [study.title, metric, *each.values()]
                writer.writerow([escape_csv(v) if isinstance(v, str) else v for v in cells])
    return buffer.getvalue()


def _rows(study: Study, metric: str) -> list[dict[str, object]]:
    """Return all contrasts of a metric: effects in the order of the design, sums, interactions."""
    factorial, found = study.factorial, study.effects[metric]
    rows = [
        _row(factor.name, changes_in_words(factor.changes), contrast, p)
        for factor, contrast, p in zip(
            factorial.factors, found.factors, found.adjusted, strict=True
        )
    ]
    rows += [_row(name, "", contrast) for name, contrast in _sums(found).items()]
    rows += [
        _row("gap elsewhere", changes_in_words(each.changes), at[metric])
        for each, at in zip(factorial.elsewhere, study.elsewhere, strict=True)
    ]
    groups = alias_groups(factorial.design)
    return rows + [
        _row("interaction", _products(factorial.factors, group), contrast)
        for group, contrast in zip(groups, found.interactions, strict=True)
    ]


def _row(what: str, change: str, contrast: Contrast, p: float | None = None) -> dict[str, object]:
    return {"what": what, "change": change, **asdict(contrast), "p_holm": p}


def to_json(studies: Sequence[Study]) -> str:
    """Return the studies as JSON: fractions, unrounded."""
    plain = [
        {
            "title": study.title,
            "loss": study.factorial.loss,
            "metrics": {
                metric: {
                    "contrasts": _rows(study, metric),
                    "residual": asdict(study.effects[metric].residual),
                    "pure_error": asdict(study.effects[metric].pure),
                    "lack_of_fit_p": study.effects[metric].lack,
                }
                for metric in METRICS
            },
        }
        for study in studies
    ]
    return json.dumps(plain, indent=1) + "\n"


def render(studies: Sequence[Study], form: str) -> str:
    """Return the tables of effects in one of the formats of ``tables.formats``."""
    if form == "csv":
        return printable_lines(to_csv(studies))
    if form == "json":
        return printable_lines(to_json(studies))
    return printable_lines(SHEET_FORMATS[form]([effects_sheet(study) for study in studies]))
