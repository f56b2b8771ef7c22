"""From records to comparisons: which figures may stand in one table, and how sure they are."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlbench.comparison.legend import labels, stamp
from mlbench.comparison.statistics import Difference, Estimate, compare_all, estimate
from mlbench.losses.baselines import BASELINES
from mlbench.metrics.ties import first_highest
from mlbench.recipes.spec import Recipe
from mlbench.records.record import RunRecord
from mlbench.records.scores import QueryScores, read_scores

if TYPE_CHECKING:
    from mlbench.comparison.statistics import AnyScores

_COUNTS = ("n_query", "n_gallery", "n_lone")


@dataclass(frozen=True)
class Row:
    """One line of a table: a loss with one set of parameters, on one kind of hardware.

    Attributes:
        label: the loss, with the parameters that differ from its defaults.
        loss: its name.
        baseline: whether nothing was trained.
        estimates: by metric, as fractions; empty if every run diverged.
        files: records of the finished runs behind the estimates, in the order of seed and fold.
        diverged: runs whose loss became NaN or infinite.
        behind: by metric, the best trained row's mean minus this one's over the runs that both
            have; None for the best, absent for baselines and where they share too few.
        tied: metrics in which it cannot be told apart from the best trained row; without those in
            which no row could be compared with the best.
        notes: why it is not comparable with the others, if it is not.
    """

    label: str
    loss: str
    baseline: bool
    estimates: dict[str, Estimate]
    files: tuple[str, ...]
    diverged: int
    behind: dict[str, Difference | None]
    tied: frozenset[str]
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> int:
        """Finished runs behind the estimates."""
        return len(self.files)


@dataclass(frozen=True, order=True)
class Identity:
    """What records that may stand in one table have in common.

    Attributes:
        recipe_id: of the recipe.
        fingerprint: of the data set.
        protocol_version: of the evaluator's definitions.
        weights_id: of the backbone's initial weights.
    """

    recipe_id: str
    fingerprint: str
    protocol_version: int
    weights_id: str

    @classmethod
    def of(cls, record: RunRecord) -> Identity:
        """Return that of a record."""
        data, protocol = record.dataset.fingerprint, record.protocol_version
        return cls(record.recipe_id, data, protocol, record.weights_id)


@dataclass(frozen=True)
class Comparison:
    """Rows that may be compared: one recipe, data set, protocol and set of initial weights.

    Attributes:
        title: data set, backbone, embedding length.
        identity: of all its records.
        dataset: name.
        dim: embedding length.
        recipe: of all rows.
        metrics: in the order of the columns.
        rows: baselines first, then losses in alphabetical order.
        files: all its records, those left out of the rows included.
        stamp: what a reader must know to judge the figures, a line each.
        differences: fields in which it differs from the first comparison of the folder.
        unbeaten: the baseline with the best R@1, unless a trained row is shown to exceed it.
    """

    title: str
    identity: Identity
    dataset: str
    dim: int
    recipe: Recipe
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    files: tuple[str, ...]
    stamp: tuple[str, ...]
    differences: tuple[str, ...] = ()
    unbeaten: str | None = None

    @property
    def recipe_id(self) -> str:
        """Of all rows; ``merged`` if they are of several."""
        return self.identity.recipe_id


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two flat mappings differ, with both values (None if absent)."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def compare(records: Mapping[Path, RunRecord]) -> list[Comparison]:
    """Sort records into comparisons; those of different recipes or data never share a table.

    Args:
        records: by the path of their file, beside which the per-query results lie.
    """
    groups: dict[Identity, dict[Path, RunRecord]] = {}
    for path, record in records.items():
        groups.setdefault(Identity.of(record), {})[path] = record
    return told_apart(map(_comparison, groups.values()))


def told_apart(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Put comparisons into their order, and note how each differs from the first."""
    ordered = sorted(comparisons, key=lambda each: each.identity)
    return [
        replace(each, differences=_sentences(_fields(ordered[0]), _fields(each)))
        for each in ordered
    ]


def merge(comparisons: Sequence[Comparison]) -> Comparison:
    """Put all rows into one comparison; those of other recipes than the first's carry a note."""
    first = comparisons[0]
    rows = list(first.rows)
    for other in comparisons[1:]:
        note = f"not comparable: {'; '.join(other.differences)}"
        rows += [
            replace(row, tied=frozenset(), behind={}, notes=(note, *row.notes))
            for row in other.rows
        ]
    stamps = [line for comparison in comparisons for line in comparison.stamp]
    metrics = [metric for comparison in comparisons for metric in comparison.metrics]
    return replace(
        first,
        identity=replace(first.identity, recipe_id="merged"),
        title=f"{first.title}, merged with {len(comparisons) - 1} other comparison(s)",
        rows=tuple(rows),
        stamp=tuple(dict.fromkeys(stamps)),
        metrics=tuple(dict.fromkeys(metrics)),
    )


def _fields(comparison: Comparison) -> dict[str, Any]:
    """Return what makes its figures comparable, flat."""
    identity = comparison.identity
    return {
        **comparison.recipe.flat(),
        "dataset fingerprint": identity.fingerprint[:12],
        "protocol version": identity.protocol_version,
        "weights": identity.weights_id,
    }


def _sentences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    changed = differences(first, other)
    return tuple(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def _comparison(records: Mapping[Path, RunRecord]) -> Comparison:
    groups: dict[str, dict[Path, RunRecord]] = {}
    for path, label in labels(records).items():
        groups.setdefault(label, {})[path] = records[path]
    repeats = {label: _repeats(group) for label, group in groups.items()}
    groups = {
        label: {path: record for path, record in group.items() if path not in repeats[label]}
        for label, group in groups.items()
    }
    order = {name: number for number, name in enumerate(BASELINES)}
    rows = [
        _row(label, group, _note_of_repeats(group, repeats[label]))
        for label, group in groups.items()
    ]
    rows.sort(key=lambda row: (order.get(row.loss, len(order)), row.label))
    values = [record for group in groups.values() for record in group.values()]
    first, recipe, metrics = values[0], values[0].recipe, _metrics(values)
    return Comparison(
        title=f"{first.dataset.name}, {recipe.backbone.name}, {recipe.head.dim} dimensions",
        identity=Identity.of(first),
        dataset=first.dataset.name,
        dim=recipe.head.dim,
        recipe=recipe,
        metrics=metrics,
        rows=_judged(rows, groups, metrics),
        files=tuple(map(str, records)),
        stamp=stamp(values),
        unbeaten=_unbeaten(rows, groups),
    )


def _repeats(records: Mapping[Path, RunRecord]) -> dict[Path, RunRecord]:
    """Return the records, by path, of runs that have one already: a repeated run is no new seed."""
    first: dict[Hashable, Path] = {}
    return {
        path: record
        for path, record in records.items()
        if first.setdefault((record.seed, record.fold), path) != path
    }


def _note_of_repeats(
    kept: Mapping[Path, RunRecord], repeats: Mapping[Path, RunRecord]
) -> tuple[str, ...]:
    """Return a line on repeated runs that are left out; copies of a record need none."""
    counted = {(record.seed, record.fold): record for record in kept.values()}
    other = [r for r in repeats.values() if r != counted[r.seed, r.fold]]
    if not other:
        return ()
    return (f"{len(other)} repeated run(s) left out: of each seed and fold, one record counts",)


def _row(label: str, records: Mapping[Path, RunRecord], notes: tuple[str, ...]) -> Row:
    loss = next(iter(records.values())).loss
    finished = {path: r for path, r in records.items() if r.status == "ok"}
    files = sorted(finished, key=lambda path: _cell(finished[path]))
    figures = [record.metrics for record in finished.values()]
    names = [name for name in (figures[0] if figures else ()) if name not in _COUNTS]
    return Row(
        label=label,
        loss=loss,
        baseline=loss in BASELINES,
        estimates={name: estimate([each[name] for each in figures]) for name in names},
        files=tuple(map(str, files)),
        diverged=len(records) - len(finished),
        behind={},
        tied=frozenset(),
        notes=notes,
    )


def _cell(record: RunRecord) -> tuple[int, int]:
    return record.seed, -1 if record.fold is None else record.fold


def _judged(
    rows: list[Row], groups: Mapping[str, Mapping[Path, RunRecord]], metrics: Sequence[str]
) -> tuple[Row, ...]:
    """Fill in, for trained rows, how far they are behind the best and whether they tie with it."""
    trained = {row.label: groups[row.label] for row in rows if not row.baseline and row.runs}
    if not trained:
        return tuple(rows)
    uneven = _is_uneven(r for group in trained.values() for r in group.values())
    queries = _queries(record for group in trained.values() for record in group.items())
    behind: dict[str, dict[str, Difference | None]] = {row.label: {} for row in rows}
    tied: dict[str, set[str]] = {row.label: set() for row in rows}
    for metric in metrics:
        scores = {label: _scores(group, metric, queries) for label, group in trained.items()}
        best, others, untold = compare_all(scores)
        for label, difference in {best: None, **others}.items():
            behind[label][metric] = difference
        if others or len(scores) == 1:  # not so with NMI of one seed
            for label in untold:
                tied[label].add(metric)
    judged = (
        replace(row, behind=behind[row.label], tied=frozenset(tied[row.label])) for row in rows
    )
    return tuple(_with_notes(row, groups[row.label], uneven) for row in judged)


def _unbeaten(rows: list[Row], groups: Mapping[str, Mapping[Path, RunRecord]]) -> str | None:
    """Return the best baseline in R@1, unless the best trained row is shown to exceed it.

    It is compared along with all trained rows, as the best of many is so by chance as well.
    """
    measured = [row for row in rows if row.runs]
    baselines = [row for row in measured if row.baseline]
    if not baselines or len(baselines) == len(measured):
        return None
    floor = baselines[first_highest([row.estimates["R@1"].mean for row in baselines])].label
    entered = [row.label for row in measured if not row.baseline or row.label == floor]
    queries = _queries(record for label in entered for record in groups[label].items())
    scores = {label: _scores(groups[label], "R@1", queries) for label in entered}
    best, behind, tied = compare_all(scores)
    shown = best != floor and floor not in tied
    unknown = best != floor and floor not in behind  # runs on folds are not of a baseline's seeds
    return None if shown or unknown else floor


def _is_uneven(records: Iterable[RunRecord]) -> bool:
    """Return whether finished runs on the same fold, or on all classes, saw more images or less."""
    seen = {(r.fold, r.cost.images_seen) for r in records if r.status == "ok"}
    return len(seen) > len({fold for fold, _ in seen})


def _with_notes(row: Row, records: Mapping[Path, RunRecord], uneven: bool) -> Row:
    """Note a row whose epoch was chosen on test classes, or whose budget differs from the rest."""
    if row.baseline:
        return row
    selection = next(iter(records.values())).recipe.selection
    notes = list(row.notes)
    if selection.rule == "test-best":
        inflation = estimate([_inflation(r) for r in records.values()])
        notes.append(
            "epoch chosen on test classes, which inflates R@1 over the last epoch by "
            f"{100 * inflation.mean:.1f} points on average"
        )
    elif uneven and not selection.patience:
        seen = ", ".join(str(r.cost.images_seen) for r in records.values() if r.status == "ok")
        notes.append(f"budgets differ: images seen {seen}")
    return replace(row, notes=tuple(notes))


def _inflation(record: RunRecord) -> float:
    scores = [row.score for row in record.curve if row.score is not None]
    return max(scores) - scores[-1] if scores else 0.0


def _queries(records: Iterable[tuple[Path, RunRecord]]) -> dict[Path, QueryScores]:
    """Read the per-query scores of the finished runs; those that lie beside them whole."""
    found = {p: read_scores(p, r.queries_sha256) for p, r in records if r.status == "ok"}
    return {path: scores for path, scores in found.items() if scores is not None}


def _scores(
    records: Mapping[Path, RunRecord], metric: str, queries: Mapping[Path, QueryScores]
) -> dict[Hashable, AnyScores]:
    """Return each finished run's scores by seed and fold: per query, or else the one figure."""
    import numpy as np

    finished = [(path, record) for path, record in records.items() if record.status == "ok"]
    figures = np.array([record.metrics[metric] for _, record in finished], dtype=np.float64)
    scores: dict[Hashable, AnyScores] = {}
    for number, (path, record) in enumerate(finished):
        beside = queries.get(path)
        found = None if beside is None else beside.of(metric)
        # Scores that do not add up to the record's figure are not its own.
        if beside is None or found is None or abs(beside.means[metric] - figures[number]) > 1e-5:
            found = figures[number : number + 1]
        scores[record.seed, record.fold] = found
    return scores


def _metrics(records: list[RunRecord]) -> tuple[str, ...]:
    """Return all metrics, recalls first in the order of k."""
    names = {name for r in records for name in r.metrics if name not in _COUNTS}
    recalls = sorted((n for n in names if n.startswith("R@")), key=lambda n: int(n[2:]))
    others = [n for n in ("NMI", "MAP@R", "R-Precision") if n in names]
    return (*recalls, *others, *sorted(names - {*recalls, *others}))
