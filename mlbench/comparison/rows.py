"""The rows of a table: of which runs they are, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlbench.comparison.best import Behind
from mlbench.comparison.chances import Better
from mlbench.comparison.estimates import Estimate, estimate
from mlbench.comparison.judgement import Judgement, is_copied, means_by_split, split_of
from mlbench.losses.baselines import BASELINES
from mlbench.records.record import RunRecord

COUNTS = ("n_query", "n_gallery", "n_lone")


@dataclass(frozen=True)
class Row:
    """One line of a table: a loss with one set of parameters, on one kind of hardware.

    Attributes:
        label: the loss, with the parameters that differ from its defaults.
        loss: its name.
        baseline: whether nothing was trained.
        estimates: by metric, as fractions; empty if every run diverged.
        files: records of the finished runs behind the estimates, in the order of seed and fold.
        copied: whether these runs are one result copied, as those of ``features`` are.
        diverged: runs whose loss became NaN or infinite.
        behind: by metric, how far it is behind the best trained row, as a fraction; absent for
            baselines, and where nothing is known.
        marked: metrics in which it is not told apart from the best trained row.
        better: by metric, the chance that a run of it beats one of the next row, on other classes.
        leads: by metric, the share of the test classes on which its mean is the highest.
        notes: what a reader must know of it, such as why it is not comparable with the others.
        values: of the recipe fields that the rows of its comparison differ in, if there are any.
    """

    label: str
    loss: str
    baseline: bool
    estimates: dict[str, Estimate]
    files: tuple[str, ...]
    copied: bool
    diverged: int
    behind: dict[str, Behind] = field(default_factory=dict)
    marked: frozenset[str] = frozenset()
    better: dict[str, Better] = field(default_factory=dict)
    leads: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    values: str = ""

    @property
    def runs(self) -> int:
        """Results behind the estimates: finished runs, one where they are copies."""
        return 1 if self.copied else len(self.files)


@dataclass(frozen=True)
class RowRecords:
    """The records of one row.

    Attributes:
        values: of the varied recipe fields; "" if none are.
        label: of the row.
        finished: by path, in the order of seed and fold.
        diverged: those of runs that did.
        left_out: number of those that repeat the run of another, with other results.
    """

    values: str
    label: str
    finished: Mapping[Path, RunRecord]
    diverged: tuple[RunRecord, ...]
    left_out: int

    @classmethod
    def of(cls, values: str, loss: str, records: Mapping[Path, RunRecord]) -> RowRecords:
        """Sort the records of a row, labelled by both; of each seed and fold one counts."""
        counted: dict[Hashable, Path] = {}
        for path, record in records.items():
            counted.setdefault(_cell(record), path)
        kept = {path: records[path] for path in sorted(counted.values(), key=_order(records))}
        left_out = sum(r != records[counted[_cell(r)]] for r in records.values())
        diverged = tuple(r for r in kept.values() if r.status != "ok")
        finished = {path: r for path, r in kept.items() if r.status == "ok"}
        label = f"{values}, {loss}" if values else loss
        return cls(values, label, finished, diverged, left_out)

    @property
    def runs(self) -> list[RunRecord]:
        """The finished runs."""
        return list(self.finished.values())

    @property
    def every(self) -> list[RunRecord]:
        """All runs, one of each seed and fold."""
        return [*self.runs, *self.diverged]

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return self.every[0].loss

    @property
    def baseline(self) -> bool:
        """Whether nothing was trained."""
        return self.loss in BASELINES


def _cell(record: RunRecord) -> tuple[int, Hashable]:
    return record.seed, split_of(record)


def _order(records: Mapping[Path, RunRecord]) -> Callable[[Path], tuple[int, ...]]:
    """Return the order of paths: by split, seed and fold, where there is none of them first."""

    def place(path: Path) -> tuple[int, ...]:
        record = records[path]
        return tuple(-1 if n is None else n for n in (record.split, record.seed, record.fold))

    return place


def build_rows(
    records: Sequence[RowRecords], judged: Mapping[str, Judgement], metrics: Sequence[str]
) -> tuple[Row, ...]:
    """Build the rows of a comparison.

    Args:
        records: of each row.
        judged: by metric, of the rows that were trained to the end; of baselines too, if their
            rows are to stand beside the others.
        metrics: names.
    """
    judged_rows = {name for each in judged.values() for name in each.half_widths}
    trained = [each for each in records if not each.baseline]
    uneven = _is_uneven(run for each in trained for run in each.runs)
    seeds = max((len(each.runs) for each in trained), default=0)
    return tuple(
        _baseline_row(each, metrics)
        if each.baseline and each.label not in judged_rows
        else _trained_row(each, judged, metrics, _notes(each, uneven, seeds))
        for each in records
    )


def _baseline_row(records: RowRecords, metrics: Iterable[str]) -> Row:
    copied = bool(records.runs) and is_copied(records.runs)
    several = len(set(map(split_of, records.runs))) > 1
    estimates = {
        metric: estimate(
            means_by_split(records.runs, metric)
            if several
            else [float(run.metrics[metric]) for run in records.runs]
        )
        for metric in metrics
        if records.runs
    }
    if copied:
        estimates = {metric: Estimate(each.mean, None, 1) for metric, each in estimates.items()}
    return _row(records, estimates, copied, _note_of_repeats(records))


def _row(
    records: RowRecords, estimates: dict[str, Estimate], copied: bool, notes: tuple[str, ...]
) -> Row:
    return Row(
        label=records.label,
        loss=records.loss,
        baseline=records.baseline,
        estimates=estimates,
        files=tuple(map(str, records.finished)),
        copied=copied,
        diverged=len(records.diverged),
        notes=notes,
        values=records.values,
    )


def _trained_row(
    records: RowRecords,
    judged: Mapping[str, Judgement],
    metrics: Iterable[str],
    notes: tuple[str, ...],
) -> Row:
    if not records.runs:
        return _row(records, {}, copied=False, notes=notes)
    copied, label = is_copied(records.runs), records.label
    count = 1 if copied else len(records.runs)
    estimates = {
        metric: Estimate(
            estimate([float(run.metrics[metric]) for run in records.runs]).mean,
            judged[metric].half_widths[label],
            count,
        )
        for metric in metrics
    }
    return replace(
        _row(records, estimates, copied, notes),
        behind={m: each.behind[label] for m, each in judged.items() if label in each.behind},
        marked=frozenset(m for m, each in judged.items() if label in each.marked),
        better={m: each.better[label] for m, each in judged.items() if label in each.better},
        leads={m: each.leads[label] for m, each in judged.items() if label in each.leads},
    )


def _notes(records: RowRecords, uneven: bool, seeds: int) -> tuple[str, ...]:
    """Return what a reader must know of a trained row.

    Args:
        records: of the row.
        uneven: whether the rows saw more images or less.
        seeds: runs of the row that has the most.
    """
    notes = list(_note_of_repeats(records))
    selection = records.every[0].recipe.selection
    if len(records.runs) == 1 < seeds:
        notes.append("one seed: the variation between seeds is estimated from the other rows")
    if selection.rule == "test-best":
        inflation = estimate([_inflation(r) for r in records.every])
        notes.append(
            "epoch selected on the test classes: R@1 is on average "
            f"{100 * inflation.mean:.1f} points above that of the last epoch"
        )
    elif uneven and records.runs and not (records.baseline or selection.patience):
        seen = ", ".join(str(r.cost.images_seen) for r in records.runs)
        notes.append(f"budgets differ: images seen {seen}")
    return tuple(notes)


def _note_of_repeats(records: RowRecords) -> tuple[str, ...]:
    """Return a line on repeated runs that are left out; copies of a record need none."""
    if not records.left_out:
        return ()
    many = f"{records.left_out} repeated run(s) skipped"
    return (f"{many}: one record per seed and fold is used",)


def _is_uneven(records: Iterable[RunRecord]) -> bool:
    """Return whether finished runs on the same fold, or on all classes, saw more images or less."""
    seen = {(split_of(r), r.cost.images_seen) for r in records}
    return len(seen) > len({split for split, _ in seen})


def _inflation(record: RunRecord) -> float:
    scores = [row.score for row in record.curve if row.score is not None]
    return max(scores) - scores[-1] if scores else 0.0
