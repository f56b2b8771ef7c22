"""What to make of a table: the one sentence that its statistics support."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlbench.comparison.comparison import METRIC
from mlbench.comparison.judgement import Scope
from mlbench.comparison.planning import Design, detectable_gap
from mlbench.errors import MlbenchError, first_few
from mlbench.metrics.ties import TIE, first_highest
from mlbench.registry import BACKBONES, LOSSES

if TYPE_CHECKING:
    from mlbench.comparison.comparison import Comparison
    from mlbench.comparison.rows import Row

_FEWEST_SEEDS = 3
_MORE_SEEDS = (5, 10)
_ON_TEST_CLASSES = (
    "Advice: do not rely on these values: the epoch was selected on the test classes."
)
_SURE = 0.3
"""Width of the interval of a chance above which it says nothing."""


def advise(comparison: Comparison) -> str:
    """Return a sentence on the comparison's R@1, or "" where its figures support none.

    It names a winner only if every other trained loss is significantly worse, and says that
    training helped only if the best loss is significantly better than the best baseline. Among
    losses that tie, it names those with the fewest hyperparameters: seconds are not judged, as
    they depend on what else the machine was doing. One seed recommends nothing.
    """
    if comparison.varied:
        return advise_on_values(comparison)
    trained = [row for row in comparison.rows if not row.baseline]
    finished = [row for row in trained if row.runs]
    if trained and not finished:
        return (
            f"Advice: every run diverged; try a lower learning rate ({_lower_rates(comparison)})."
        )
    if not finished or comparison.recipe_id == "merged":
        return ""
    if comparison.recipe.selection.rule == "test-best":
        return _ON_TEST_CLASSES
    if max(row.runs for row in finished) == 1:
        return f"Advice: {_on_one_seed(comparison, finished)}."
    if not comparison.scope.judged:
        return ""
    return f"Advice: {_verdict(comparison, finished)}."


def advise_on_values(comparison: Comparison) -> str:
    """Return a sentence on rows that differ in fields of the recipe, baselines among them.

    Where some were trained and some not, it says whether training beats the best that was not,
    such as the features of a better frozen backbone.
    """
    rows = [row for row in comparison.rows if row.runs]
    if len(rows) < 2:
        return ""
    if comparison.recipe.selection.rule == "test-best":
        return _ON_TEST_CLASSES
    if not comparison.scope.judged:
        return (
            "Advice: with one seed, the variation between seeds is unknown, so nothing is "
            f"recommended; re-run the same command with --seeds {_FEWEST_SEEDS} to estimate it."
        )
    best, second = _first_two(rows)
    assert second is not None
    others = [row for row in rows if row.baseline != best.baseline]
    if not others:
        if METRIC in second.marked:
            return f"Advice: {_leader(rows, best, second)}."
        return f"Advice: use {best.label}; {_next(second)}."
    rival = _highest(others)
    return f"Advice: {_on_training(rows, best, rival)}."


def _on_training(rows: Sequence[Row], best: Row, rival: Row) -> str:
    """Say whether training pays: the best row and the best of the other kind are compared."""
    significant = METRIC not in rival.marked
    behind = rival.behind[METRIC]
    points = f"{100 * behind.gap:.1f} points ({100 * behind.low:.1f} to {100 * behind.high:.1f})"
    if best.baseline:
        lead = f"{best.label}, which was not trained, has the highest {METRIC}"
        if significant:
            return (
                f"training does not beat a better frozen backbone here: {lead}; the best trained "
                f"row, {rival.label}, is {points} below it"
            )
        return (
            f"training was not shown to beat a better frozen backbone: {lead}, but {rival.label}, "
            "which was trained, is not significantly different from it"
        )
    if significant:
        others = [row.label for row in rows if METRIC in row.marked and row is not best]
        tied = f" ({_same_as_best(others)})" if others else ""
        return (
            f"training beats every frozen backbone here: {best.label} has the highest {METRIC}"
            f"{tied}; the best row without training, {rival.label}, is {points} below it"
        )
    return (
        f"training was not shown to beat a better frozen backbone: {best.label} has the "
        f"highest {METRIC}, but {rival.label}, which was not trained, is not significantly "
        "different from it"
    )


def _lower_rates(comparison: Comparison) -> str:
    names = ("head_lr",) if comparison.recipe.backbone.trunk == "frozen" else ("lr", "head_lr")
    return ", ".join(f"--set optimizer.{name}=..." for name in names)


def _on_one_seed(comparison: Comparison, finished: Sequence[Row]) -> str:
    best, second = _first_two(finished)
    if second is None:
        found = _alone(comparison, best)
    else:
        lead = 100 * (_mean(best) - _mean(second))
        found = (
            f"{best.label} has the highest {METRIC} on this seed, {lead:.1f} points above "
            f"{second.label}"
        )
    floor = _best_baseline(comparison)
    if second and floor is not None and _mean(floor) > _mean(best) + TIE:
        more = 100 * (_mean(floor) - _mean(best))
        found += f", and {_untrained(comparison, floor.label)} is {more:.1f} points above it"
    return (
        f"{found}; with one seed, the variation between seeds is unknown, so no loss is "
        f"recommended: re-run the same command with --seeds {_FEWEST_SEEDS} to compare"
    )


def _verdict(comparison: Comparison, finished: Sequence[Row]) -> str:
    best, second = _first_two(finished)
    if comparison.unbeaten is not None:
        found = _in_vain(comparison, best, comparison.unbeaten)
        return f"{found}; among the losses, {_leader(finished, best, second)}" if second else found
    tied = [row for row in finished if METRIC in row.marked]
    if len(tied) > 1:
        found = _leader(finished, best, tied[1] if tied[0] is best else tied[0])
        return f"{found}{_simplest(tied)}{_what_would_help(comparison, finished)}"
    return _winner(comparison, best, second) if second else _alone(comparison, best)


def _first_two(finished: Sequence[Row]) -> tuple[Row, Row | None]:
    """Return the rows of the highest mean and of the next; None with one row."""
    best = _highest(finished)
    others = [row for row in finished if row is not best]
    return best, _highest(others) if others else None


def _highest(rows: Sequence[Row]) -> Row:
    return rows[first_highest([_mean(row) for row in rows])]


def _mean(row: Row) -> float:
    return row.estimates[METRIC].mean


def _tied(finished: Sequence[Row], best: Row) -> str:
    return _same_as_best(
        [row.label for row in finished if METRIC in row.marked and row is not best]
    )


def _same_as_best(labels: Sequence[str]) -> str:
    verb = "is" if len(labels) == 1 else "are"
    return f"{_names(labels)} {verb} not significantly different from it"


def _leader(finished: Sequence[Row], best: Row, second: Row) -> str:
    if METRIC in second.marked:
        return f"{best.label} has the highest {METRIC}, but {_tied(finished, best)}"
    return f"{best.label} has the highest {METRIC}; {_next(second)}"


def _next(row: Row) -> str:
    behind = row.behind[METRIC]
    interval = f"({100 * behind.low:.1f} to {100 * behind.high:.1f})"
    return f"the next, {row.label}, is {100 * behind.gap:.1f} points {interval} below it"


def _best_baseline(comparison: Comparison) -> Row | None:
    floors = [row for row in comparison.rows if row.baseline and row.runs]
    return _highest(floors) if floors else None


def _untrained(comparison: Comparison, baseline: str) -> str:
    """Name a baseline, with its dimension where that differs from the losses'."""
    return f"'{baseline}'{_length(comparison, baseline)}, which was not trained,"


def _length(comparison: Comparison, baseline: str) -> str:
    if baseline != "features":
        return ""
    try:
        length = BACKBONES.get(comparison.recipe.backbone.name).features
    except MlbenchError:  # of a plugin that is not installed
        length = None
    if length == comparison.dim:
        return ""
    return f" ({length or 'all'} dimensions against {comparison.dim})"


def _in_vain(comparison: Comparison, best: Row, baseline: str) -> str:
    floor = next(row for row in comparison.rows if row.label == baseline)
    ahead = 100 * (_mean(best) - _mean(floor))
    what = _untrained(comparison, baseline)
    if ahead <= 100 * TIE:
        return (
            f"training did not help here: no loss exceeds the {METRIC} of {what.removesuffix(',')}"
        )
    return (
        f"training was not shown to help here: the best loss, {best.label}, is {ahead:.1f} points "
        f"above {what} which is not a significant difference"
    )


def _simplest(tied: Sequence[Row]) -> str:
    counts = {row.label: _parameters(row.loss) for row in tied}
    known = [count for count in counts.values() if count is not None]
    if len(known) < len(counts):
        return ""
    fewest = min(known)
    names = [label for label, count in counts.items() if count == fewest]
    if len(names) == len(counts):
        return ""
    verb, each = ("has", "") if len(names) == 1 else ("have", " each")
    return f"; {_names(names)} {verb} the fewest hyperparameters ({fewest}{each})"


def _parameters(loss: str) -> int | None:
    """Return how many hyperparameters a loss has; None if that is not known here."""
    try:
        entry = LOSSES.get(loss)
    except MlbenchError:  # a plugin's record, read where the plugin is not installed
        return None
    return None if entry.prefix else len(entry.defaults)


def _winner(comparison: Comparison, best: Row, second: Row) -> str:
    better = best.better.get(METRIC)
    chance = ""
    if better is not None and better.high - better.low < _SURE:
        chance = (
            f"; on other classes, a run of {best.label} beats one of {second.label} with "
            f"probability {better.chance:.2f} ({better.low:.2f} to {better.high:.2f})"
        )
    where = f"the best in {METRIC} for {comparison.scope}"
    return f"use {best.label}, {where}; {_next(second)}{chance}"


def _alone(comparison: Comparison, best: Row) -> str:
    floor = _best_baseline(comparison)
    if floor is None:
        return f"{best.label} is the only row: add losses to --losses to compare it"
    ahead = 100 * (_mean(best) - _mean(floor))
    where = f"{abs(ahead):.1f} points {'below' if ahead < 0 else 'above'}"
    what = _untrained(comparison, floor.label).removesuffix(",")
    return f"the {METRIC} of {best.label} is {where} that of {what}"


def _what_would_help(comparison: Comparison, finished: Sequence[Row]) -> str:
    """Say what would separate the losses that tie: other classes, or more seeds."""
    if comparison.identity.random_splits:
        return "; more --splits would narrow the intervals"
    runs = min(row.runs for row in finished)
    seeds = next((number for number in _MORE_SEEDS if number > runs), None)
    found, rows = comparison.sources, len(finished)
    if found is None or comparison.scope is not Scope.CLASSES_AND_SEEDS:
        return f"; --seeds {seeds} would narrow the intervals" if seeds else ""
    gap = max(row.behind[METRIC].gap for row in finished if METRIC in row.marked)
    limit = detectable_gap(found, Design(rows, math.inf, comparison.classes))
    if limit is not None and limit > gap:
        return (
            f"; on {comparison.images} images of {comparison.classes} classes, gaps below "
            f"{100 * limit:.2g} points cannot be detected with any number of seeds"
        )
    if seeds is None:
        return ""
    least = detectable_gap(found, Design(rows, seeds, comparison.classes)) or 0.0
    return f"; with --seeds {seeds}, gaps from {100 * least:.2g} points on could be detected"


def _names(labels: Sequence[str]) -> str:
    """Return labels as in a sentence: a, b and c."""
    if len(labels) > 5:
        return first_few(labels)
    return " and ".join(part for part in (", ".join(labels[:-1]), labels[-1]) if part)
