"""From records to comparisons: which figures may stand in one table, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlbench.comparison.estimates import estimate
from mlbench.comparison.judgement import Differences, Judgement, Scope, Statement, judge
from mlbench.comparison.legend import labels, naming_fields, settings, stamp, values_of
from mlbench.comparison.planning import Sources
from mlbench.comparison.rows import COUNTS, Row, RowRecords, build_rows
from mlbench.errors import MlbenchError
from mlbench.losses.baselines import BASELINES
from mlbench.metrics.ties import first_highest
from mlbench.recipes.plan import full_field
from mlbench.recipes.spec import Recipe, digest
from mlbench.records.record import RunRecord

METRIC = "R@1"
"""The metric that rows are ranked by."""


@dataclass(frozen=True, order=True)
class Identity:
    """What records that may stand in one table have in common.

    Attributes:
        recipe_id: of the recipe.
        fingerprint: of the data set.
        protocol_version: of the evaluator's definitions.
        weights_id: of the backbone's initial weights.
        random_splits: whether they are of random splits of the classes.
    """

    recipe_id: str
    fingerprint: str
    protocol_version: int
    weights_id: str
    random_splits: bool = False

    @classmethod
    def of(cls, record: RunRecord, varied: Sequence[str] = ()) -> Identity:
        """Return that of a record, whatever it has in the ``varied`` fields of its recipe."""
        data, protocol = record.dataset.fingerprint, record.protocol_version
        random_splits = record.split is not None
        recipe_id, weights = record.recipe_id, record.weights_id
        if varied:
            flat = record.recipe.flat()
            recipe_id = digest({key: flat[key] for key in flat.keys() - set(varied)})
        if any(key.startswith("backbone.") for key in varied):
            weights = "of each backbone"
        return cls(recipe_id, data, protocol, weights, random_splits)


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
        stamp: what a reader must know to judge the values, a line each.
        settings: by loss, what it chose itself: batches, form of embeddings, hyperparameters.
        images: number of test images.
        classes: number of test classes.
        scopes: by metric, what its intervals and marks hold for; only where they hold for the same
            as those of R@1 are rows marked.
        pairs: by metric, the differences of all pairs of trained rows.
        noisy: by row, the metrics in which it is noisier from seed to seed than the others.
        sources: of the variance of R@1, for plans; None if they are not known.
        notes: what the records lack for more to be said.
        differences: fields in which it differs from the first comparison of the folder.
        unbeaten: the baseline with the best R@1, unless a trained row is shown to exceed it.
        varied: recipe fields that its rows differ in; its recipe is that of one of them. Baselines
            are judged with the others then.
        named_by: those of them that tell its rows apart; others have one value to each of these.
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
    images: int
    classes: int
    settings: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, Scope] = field(default_factory=dict)
    pairs: dict[str, Differences] = field(default_factory=dict)
    noisy: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Sources | None = None
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    unbeaten: str | None = None
    varied: tuple[str, ...] = ()
    named_by: tuple[str, ...] = ()

    @property
    def scope(self) -> Scope:
        """What the intervals and marks of R@1 hold for."""
        return self.scopes.get(METRIC, Scope.NOTHING)

    @property
    def recipe_id(self) -> str:
        """Of all rows; ``merged`` if they are of several."""
        return "merged" if self.varied else self.identity.recipe_id


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two flat mappings differ, with both values (None if absent)."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def compare(
    records: Mapping[Path, RunRecord],
    statement: Statement = "other-classes",
    varied: Sequence[str] = (),
) -> list[Comparison]:
    """Sort records into comparisons; those of different recipes or data never share a table.

    Args:
        records: by the path of their file.
        statement: what is to be said of differences.
        varied: recipe fields (``backbone.name``) in which recipes of one comparison may differ.
    """
    groups: dict[Identity, dict[Path, RunRecord]] = {}
    for path, record in records.items():
        groups.setdefault(Identity.of(record, varied), {})[path] = record
    return told_apart(_comparison(group, statement, varied) for group in groups.values())


def varied_fields(text: str) -> tuple[str, ...]:
    """Return the full names of recipe fields, given as ``backbone.name,input.size``.

    Raises:
        MlbenchError: an unknown field, or one that figures of different values cannot be compared
            over.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise MlbenchError("--rows is empty; pass a recipe field, such as backbone.name")
    found = tuple(dict.fromkeys(full_field(name, f"--rows {name}") for name in names))
    for name in found:
        if name == "data.name" or name.startswith("evaluation."):
            raise MlbenchError(
                f"--rows {name}: values of other data or of another evaluation cannot be compared"
            )
    return found


def told_apart(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Put comparisons into their order, and note how each differs from the first."""
    return in_order(sorted(comparisons, key=lambda each: each.identity))


def in_order(ordered: Sequence[Comparison]) -> list[Comparison]:
    """Note how each of the comparisons differs from the first."""
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
            replace(row, marked=frozenset(), behind={}, better={}, notes=(note, *row.notes))
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
        settings={name: text for each in comparisons for name, text in each.settings.items()},
        metrics=tuple(dict.fromkeys(metrics)),
    )


def _fields(comparison: Comparison) -> dict[str, Any]:
    """Return what makes its figures comparable, flat."""
    identity = comparison.identity
    recipe = comparison.recipe.flat()
    return {
        **{key: recipe[key] for key in recipe if key not in comparison.varied},
        "dataset fingerprint": identity.fingerprint[:12],
        "protocol version": identity.protocol_version,
        "weights": identity.weights_id,
        "classes": "random splits" if identity.random_splits else "the data set's own split",
    }


def _sentences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    changed = differences(first, other)
    return tuple(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def _comparison(
    records: Mapping[Path, RunRecord], statement: Statement, varied: Sequence[str] = ()
) -> Comparison:
    groups: dict[tuple[str, str], dict[Path, RunRecord]] = {}
    named_by = naming_fields(records.values(), varied)
    for path, label in labels(records).items():
        groups.setdefault((values_of(records[path], named_by), label), {})[path] = records[path]
    rows = sorted((RowRecords.of(*key, each) for key, each in groups.items()), key=_place)
    values = [record for row in rows for record in row.every]
    first, recipe, metrics = values[0], values[0].recipe, _metrics(values)
    judged, problems = _judged(rows, metrics, statement, baselines=bool(varied))
    return Comparison(
        title=_title(first, varied, named_by),
        identity=Identity.of(first, varied),
        dataset=first.dataset.name,
        dim=recipe.head.dim,
        recipe=recipe,
        metrics=metrics,
        rows=build_rows(rows, judged, metrics),
        files=tuple(map(str, records)),
        stamp=stamp(values),
        settings=settings(values),
        images=first.dataset.test_images,
        classes=first.dataset.test_classes,
        scopes={metric: each.scope for metric, each in judged.items()},
        pairs={m: each.differences for m, each in judged.items() if each.differences},
        noisy=_noisy(judged),
        sources=judged[METRIC].sources if judged else None,
        notes=(*problems, *_without_totals(rows, statement)),
        unbeaten=None if varied else _unbeaten(rows, statement),
        varied=tuple(varied),
        named_by=named_by,
    )


def _title(record: RunRecord, varied: Sequence[str], named_by: Sequence[str]) -> str:
    recipe = record.recipe
    same = {"backbone.name": recipe.backbone.name, "head.dim": f"{recipe.head.dim} dimensions"}
    parts = [text for name, text in same.items() if name not in varied]
    by = [f"by {' and '.join(named_by)}"] if named_by else []
    splits = ["random splits of its classes"] if record.split is not None else []
    return ", ".join([record.dataset.name, *parts, *by, *splits])


def _place(row: RowRecords) -> tuple[str, int, str]:
    order = list(BASELINES)
    return row.values, order.index(row.loss) if row.baseline else len(order), row.label


def _judged(
    rows: Sequence[RowRecords],
    metrics: Sequence[str],
    statement: Statement,
    *,
    baselines: bool = False,
) -> tuple[dict[str, Judgement], tuple[str, ...]]:
    """Judge the rows that were trained to the end; the second is why they cannot be, if so."""
    runs = {row.label: row.runs for row in rows if row.runs and (baselines or not row.baseline)}
    if not runs:
        return {}, ()
    try:
        return _marked_alike(judge(runs, metrics, statement)), ()
    except MlbenchError as error:
        nothing = Judgement(Scope.NOTHING, dict.fromkeys(runs))
        return dict.fromkeys(metrics, nothing), (str(error),)


def _marked_alike(judged: Mapping[str, Judgement]) -> dict[str, Judgement]:
    """Leave marks only where they hold for the same as those of R@1: a table has one legend."""
    scope = judged[METRIC].scope
    return {
        metric: each if each.scope is scope else replace(each, marked=frozenset())
        for metric, each in judged.items()
    }


def _noisy(judged: Mapping[str, Judgement]) -> dict[str, tuple[str, ...]]:
    """Return, by row, the metrics in which it is noisier than the rest."""
    names = dict.fromkeys(name for each in judged.values() for name in each.noisy)
    return {
        name: tuple(metric for metric, each in judged.items() if name in each.noisy)
        for name in names
    }


def _without_totals(rows: Sequence[RowRecords], statement: Statement) -> tuple[str, ...]:
    """Say how many records lack totals by class, if that narrows what can be said."""
    every = [run for row in rows for run in row.runs if not row.baseline]
    without = sum(run.totals is None for run in every)
    if not without or statement == "these-classes":
        return ()
    return (
        f"{without} of {len(every)} records have no totals by test class, so the intervals do not "
        "cover other classes; add the totals with: mlbench results upgrade FOLDER",
    )


def _unbeaten(rows: Sequence[RowRecords], statement: Statement) -> str | None:
    """Return the best baseline in R@1, unless the best trained row is shown to exceed it.

    It is compared along with all trained rows, as the best of many is so by chance as well. None
    also if there is no baseline, or one seed tells nothing.
    """
    measured = {row.label: row.runs for row in rows if row.runs}
    baselines = [row.label for row in rows if row.runs and row.baseline]
    if not baselines or len(baselines) == len(measured):
        return None
    means = [estimate([float(run.metrics[METRIC]) for run in measured[b]]).mean for b in baselines]
    floor = baselines[first_highest(means)]
    entered = {
        label: runs for label, runs in measured.items() if label == floor or label not in baselines
    }
    try:
        judged = judge(entered, [METRIC], statement)[METRIC]
    except MlbenchError:  # said of the rows
        return None
    return floor if judged.scope.judged and floor in judged.marked else None


def _metrics(records: list[RunRecord]) -> tuple[str, ...]:
    """Return all metrics, recalls first in the order of k."""
    names = {name for r in records for name in r.metrics if name not in COUNTS}
    recalls = sorted((n for n in names if n.startswith("R@")), key=lambda n: int(n[2:]))
    others = [n for n in ("NMI", "MAP@R", "R-Precision") if n in names]
    return (*recalls, *others, *sorted(names - {*recalls, *others}))
