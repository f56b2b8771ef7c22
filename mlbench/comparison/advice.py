"""What to make of a table: the one sentence that its statistics support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlbench.errors import MlbenchError, first_few
from mlbench.metrics.ties import TIE, first_highest
from mlbench.registry import LOSSES

if TYPE_CHECKING:
    from mlbench.comparison.comparison import Comparison, Row

METRIC = "R@1"
ENOUGH_SEEDS = 5


def advise(comparison: Comparison) -> str:
    """Return a sentence on the comparison's R@1, or "" where its figures support none.

    It names a winner only if every other trained loss can be told apart from it, and says that
    training helped only if the best loss can be told apart from the best baseline. Among losses
    that tie, it names those with the fewest parameters: seconds are not judged, as they depend on
    what else the machine was doing.
    """
    trained = [row for row in comparison.rows if not row.baseline]
    finished = [row for row in trained if row.runs]
    if trained and not finished:
        return f"Advice: every training diverged; try a lower rate ({_lower_rates(comparison)})."
    if not finished or any(METRIC not in row.behind for row in finished):
        return ""
    if comparison.recipe.selection.rule == "test-best":
        return "Advice: rely on none of these figures, as the epoch was chosen on test classes."
    return f"Advice: {_verdict(comparison, finished)}{_more_seeds(finished)}."


def _lower_rates(comparison: Comparison) -> str:
    names = ("head_lr",) if comparison.recipe.backbone.trunk == "frozen" else ("lr", "head_lr")
    return ", ".join(f"--set optimizer.{name}=..." for name in names)


def _verdict(comparison: Comparison, finished: Sequence[Row]) -> str:
    best = next(row for row in finished if row.behind[METRIC] is None)
    if comparison.unbeaten is not None:
        return _in_vain(comparison, best, comparison.unbeaten)
    tied = [row for row in finished if METRIC in row.tied]
    if len(tied) > 1:
        names = _names([row.label for row in tied if row is not best])
        told = f"{best.label} is the best in {METRIC}, but {names} cannot be told apart from it"
        return f"{told}{_simplest(tied)}"
    others = [row for row in finished if row is not best]
    return _winner(best, others) if others else _alone(comparison, best)


def _in_vain(comparison: Comparison, best: Row, baseline: str) -> str:
    floor = next(row for row in comparison.rows if row.label == baseline)
    ahead = 100 * (best.estimates[METRIC].mean - floor.estimates[METRIC].mean)
    what = f"the {METRIC} of '{baseline}', which was not trained"
    if ahead <= 100 * TIE:
        return f"training did not help here: no loss exceeds {what}"
    return (
        f"training was not shown to help here: the best loss, {best.label}, is {ahead:.1f} points "
        f"above {what}, too few to be told from chance"
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
    verb, each = ("is", "") if len(names) == 1 else ("are", " each")
    noun = "parameter" if fewest == 1 else "parameters"
    return f"; {_names(names)} {verb} the simplest, with {fewest} {noun}{each}"


def _parameters(loss: str) -> int | None:
    """Return how many parameters a loss has; None if that is not known here."""
    try:
        entry = LOSSES.get(loss)
    except MlbenchError:  # a plugin's record, read where the plugin is not installed
        return None
    return None if entry.prefix else len(entry.defaults)


def _winner(best: Row, others: Sequence[Row]) -> str:
    gaps = [(gap, row.label) for row in others if (gap := row.behind[METRIC])]
    gap, second = gaps[first_highest([-gap.mean for gap, _ in gaps])]
    margin = f"{100 * gap.mean:.1f} ± {100 * gap.half_width:.1f} points"
    return f"take {best.label}, the best in {METRIC}; the next, {second}, is {margin} behind"


def _alone(comparison: Comparison, best: Row) -> str:
    floors = [row for row in comparison.rows if row.baseline and row.runs]
    if not floors:
        return f"{best.label} has nothing to be compared with: add losses to --losses"
    floor = floors[first_highest([row.estimates[METRIC].mean for row in floors])]
    ahead = 100 * (best.estimates[METRIC].mean - floor.estimates[METRIC].mean)
    return f"{best.label} is {ahead:+.1f} points from '{floor.label}' in {METRIC}, not trained"


def _more_seeds(finished: Sequence[Row]) -> str:
    runs = min(row.runs for row in finished)
    if runs == 1:
        return (
            "; from one seed the noise between seeds is unknown: add "
            f"--seeds {ENOUGH_SEEDS} to the same mlbench run to see it"
        )
    few = runs < ENOUGH_SEEDS and any(METRIC in row.tied and row.behind[METRIC] for row in finished)
    return f"; --seeds {ENOUGH_SEEDS} on the same mlbench run could show more" if few else ""


def _names(labels: Sequence[str]) -> str:
    """Return labels as in a sentence: a, b and c."""
    if len(labels) > 5:
        return first_few(labels)
    return " and ".join(part for part in (", ".join(labels[:-1]), labels[-1]) if part)
