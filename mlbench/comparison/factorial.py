"""Two-level factorial studies among records: found by the values of their recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from typing import TYPE_CHECKING, Any

from mlbench.comparison.comparison import differences
from mlbench.comparison.crossed import ClassTotals
from mlbench.comparison.effects import Levels
from mlbench.comparison.factors import FACTORS, Changes, Factor, factor_of, flat_fields
from mlbench.errors import MlbenchError, first_few
from mlbench.recipes.spec import LossSpec, Recipe

if TYPE_CHECKING:
    from mlbench.records.record import RunRecord

_FEWEST_SETTINGS = 4
"""Of a design: two factors, each at two levels."""

_UNEVEN = 0.25
"""Share of settings in which a field has its rarer value, up to which it may be no factor."""

Runs = tuple["RunRecord", ...]


@dataclass(frozen=True)
class Elsewhere:
    """Runs at both ends under other conditions than those of the design.

    Attributes:
        changes: fields with their values in the design and here.
        start, end: the runs.
    """

    changes: Changes
    start: Runs
    end: Runs

    def totals(self, metric: str) -> tuple[ClassTotals, ClassTotals]:
        """Return the totals by class of one metric at the start and at the end."""
        return class_totals(self.start, metric), class_totals(self.end, metric)


@dataclass(frozen=True)
class Factorial:
    """A two-level design whose runs are there.

    Attributes:
        loss: that was trained.
        factors: what was varied.
        design: the settings.
        runs: at each setting of the design and at both ends, in the order of their seeds.
        elsewhere: runs at both ends under other conditions.
    """

    loss: str
    factors: tuple[Factor, ...]
    design: tuple[Levels, ...]
    runs: Mapping[Levels, Runs]
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def ends(self) -> tuple[Levels, Levels]:
        """The settings with all factors at the start, and all at the end."""
        return tuple((sign,) * len(self.factors) for sign in (-1, 1))  # type: ignore[return-value]

    def totals(self, metric: str) -> dict[Levels, ClassTotals]:
        """Return the totals by class of one metric, as ``effects`` takes them."""
        return {setting: class_totals(runs, metric) for setting, runs in self.runs.items()}


def class_totals(runs: Sequence[RunRecord], metric: str) -> ClassTotals:
    """Return the totals by class of runs that were tested on the same classes.

    Raises:
        MlbenchError: a record has none, or they are of other classes.
    """
    import numpy as np

    found = [record.totals for record in runs]
    whole = [each for each in found if each is not None and metric in each.sums]
    if len(whole) < len(found):
        raise MlbenchError(
            f"a record of seed {runs[0].seed} has no totals by test class of {metric}: "
            "add them with mlbench results upgrade FOLDER"
        )
    first = whole[0].classes, whole[0].queries
    if any(not np.array_equal((each.classes, each.queries), first) for each in whole):
        raise MlbenchError("the runs were not tested on the same classes and queries")
    return ClassTotals(np.array([each.sums[metric] for each in whole]), whole[0].queries)


def factorials(records: Iterable[RunRecord]) -> list[Factorial]:
    """Return the complete two-level designs among records, the larger ones first.

    A design is known by the values of its recipes and losses: fields that change together are a
    factor, and the settings are those of a regular design (a full factorial or a fraction of one by
    generators). Both ends must be there. The start is the end with the lowest seed.
    """
    found = [each for part in _parts(records) if (each := _factorial(part))]
    paths = [{id(run) for runs in each.runs.values() for run in runs} for each in found]
    return [
        each
        for number, (each, runs) in enumerate(zip(found, paths, strict=True))
        if not any(runs <= larger for larger in paths[:number])
    ]


def the_factorials(records: Iterable[RunRecord]) -> list[Factorial]:
    """Return the complete designs among records.

    Raises:
        MlbenchError: there is none; the message names what is missing of the one that is nearest.
    """
    records = list(records)
    found = factorials(records)
    if not found:
        raise MlbenchError(_what_is_missing(records))
    return found


@dataclass(frozen=True)
class _Part:
    """Some settings of a folder by the values of their fields, and those that they are of."""

    loss: str
    points: Mapping[Step, Runs]
    parent: Mapping[Step, Runs]


Step = tuple[Recipe, LossSpec]


def _parts(records: Iterable[RunRecord]) -> list[_Part]:
    """Return all sets of settings that may be a design, the larger ones first."""
    groups: dict[tuple[object, ...], dict[Step, list[RunRecord]]] = {}
    for record in records:
        if record.status == "ok":
            spec, data = record.spec, record.dataset
            tested = data.fingerprint, record.split, record.protocol_version
            key = record.loss, data.name, *tested
            groups.setdefault(key, {}).setdefault((spec.recipe, spec.loss), []).append(record)
    parts = []
    for (loss, *_), steps in groups.items():
        points = {step: in_order(runs) for step, runs in steps.items()}
        parts += [_Part(str(loss), part, points) for part in _divided(points, set())]
    return sorted(parts, key=lambda part: -len(part.points))


def in_order(runs: Iterable[RunRecord]) -> Runs:
    """Return runs in the order of their seeds, then of their folds."""
    return tuple(sorted(runs, key=lambda run: (run.seed, -1 if run.fold is None else run.fold)))


def _divided(
    points: Mapping[Step, Runs], seen: set[frozenset[Step]]
) -> Iterator[Mapping[Step, Runs]]:
    """Yield the settings, then parts of them in which uneven fields have one value."""
    if len(points) < _FEWEST_SETTINGS or frozenset(points) in seen:
        return
    seen.add(frozenset(points))
    yield points
    shares = {key: _shares(values) for key, values in _varied(points).items()}
    several = [key for key, share in shares.items() if share == 0]
    uneven = [key for key, share in shares.items() if share <= _UNEVEN]
    for key in several[:1] or uneven:
        parts: dict[object, dict[Step, Runs]] = {}
        for step, runs in points.items():
            parts.setdefault(flat_fields(*step).get(key), {})[step] = runs
        for part in parts.values():
            yield from _divided(part, seen)


def _shares(values: Sequence[object]) -> float:
    """Return the share of the rarer value of a field; 0 if it has more than two."""
    counts = [values.count(value) for value in dict.fromkeys(values)]
    return min(counts) / len(values) if len(counts) == 2 else 0.0


def _varied(points: Iterable[Step]) -> dict[str, list[Any]]:
    """Return the fields that differ, with their values in the order of the settings."""
    flat = [flat_fields(*step) for step in points]
    keys = dict.fromkeys(key for fields in flat for key in fields)
    columns = {key: [fields.get(key) for fields in flat] for key in keys}
    return {key: values for key, values in columns.items() if len({*map(repr, values)}) > 1}


@dataclass(frozen=True)
class _Coded:
    """Settings as levels of their factors.

    Attributes:
        loss: that was trained.
        factors: fields that change together.
        points: the runs of each setting.
    """

    loss: str
    factors: tuple[Factor, ...]
    points: Mapping[Levels, Runs]

    @property
    def ends(self) -> tuple[Levels, Levels]:
        return (-1,) * len(self.factors), (1,) * len(self.factors)

    def candidates(self) -> list[list[Levels]]:
        """Return the settings that may be the design: all, or without an end that is beside it."""
        given = [
            [setting for setting in self.points if setting not in beside]
            for beside in ((), self.ends[:1], self.ends[1:], self.ends)
        ]
        return [
            each for each in given if all(len({*column}) == 2 for column in zip(*each, strict=True))
        ]

    def design(self) -> tuple[Levels, ...] | None:
        """Return the settings of the design, in order; None if one or an end is missing."""
        if not all(end in self.points for end in self.ends):
            return None
        whole = (each for each in self.candidates() if len(each) >= _FEWEST_SETTINGS)
        return next((tuple(sorted(each)) for each in whole if len(each) == len(_span(each))), None)

    def missing(self) -> list[Levels]:
        """Return the settings without runs: of the smallest design that has the others, ends."""
        lacking = [[s for s in _span(each) if s not in self.points] for each in self.candidates()]
        fewest = min(lacking, key=len, default=[])
        return [*fewest, *(e for e in self.ends if e not in self.points and e not in fewest)]

    def in_words(self, setting: Levels) -> str:
        """Name a setting by the first field of each factor."""
        firsts = [next(iter(factor.changes.items())) for factor in self.factors]
        values = zip(firsts, setting, strict=True)
        return " ".join(f"{key}={pair[level > 0]}" for (key, pair), level in values)


def _span(settings: Sequence[Levels]) -> list[Levels]:
    """Return the smallest regular design (a coset, in words of signs) that holds the settings."""
    first, *rest = settings
    spanned = {(1,) * len(first)}
    for each in rest:
        shift = _product(first, each)
        if shift not in spanned:
            spanned |= {_product(shift, other) for other in spanned}
    return sorted(_product(first, each) for each in spanned)


def _product(a: Levels, b: Levels) -> Levels:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def _coded(part: _Part) -> _Coded | None:
    """Code settings by the levels of their factors; None if a field has more than two values."""
    columns = _varied(part.points)
    if not columns or any(_shares(values) == 0 for values in columns.values()):
        return None
    start = _start([*part.points.values()], columns)
    groups: dict[tuple[bool, ...], Changes] = {}
    for key, values in columns.items():
        pattern = tuple(value == values[start] for value in values)
        other = next(value for value in values if value != values[start])
        groups.setdefault(pattern, {})[key] = values[start], other
    ordered = sorted(groups.items(), key=lambda item: _rank(item[1]))
    names = _names([changes for _, changes in ordered])
    factors = tuple(Factor(n, changes) for n, (_, changes) in zip(names, ordered, strict=True))
    rows = zip(*(pattern for pattern, _ in ordered), strict=True)
    levels = (tuple(-1 if same else 1 for same in row) for row in rows)
    return _Coded(part.loss, factors, dict(zip(levels, part.points.values(), strict=True)))


def _factorial(part: _Part) -> Factorial | None:
    coded = _coded(part)
    design = coded and coded.design()
    if coded is None or design is None:
        return None
    used = dict.fromkeys((*design, *coded.ends))
    runs = {setting: coded.points[setting] for setting in used}
    return Factorial(coded.loss, coded.factors, design, runs, _elsewhere(part, coded.factors))


def _elsewhere(part: _Part, factors: Sequence[Factor]) -> tuple[Elsewhere, ...]:
    """Return the runs at both ends under other conditions, such as more epochs."""
    within = flat_fields(*next(iter(part.points)))
    changes = {key: pair for factor in factors for key, pair in factor.changes.items()}
    ends = [{key: pair[level] for key, pair in changes.items()} for level in (0, 1)]
    found: dict[str, tuple[Changes, dict[int, Runs]]] = {}
    for step, runs in part.parent.items():
        fields = flat_fields(*step)
        here = {key: fields.get(key) for key in changes}
        others = differences(
            *({k: v for k, v in f.items() if k not in changes} for f in (within, fields))
        )
        if here in ends and others:
            found.setdefault(repr(others), (others, {}))[1][ends.index(here)] = runs
    return tuple(Elsewhere(others, at[0], at[1]) for others, at in found.values() if len(at) == 2)


def _what_is_missing(records: Sequence[RunRecord]) -> str:
    coded = [each for part in _parts(records) if (each := _coded(part))]
    lacking = {n: missing for n, each in enumerate(coded) if (missing := each.missing())}
    if not lacking:
        return (
            f"no two-level design among {len(records)} records: it takes two factors or more, each "
            "at two levels, as mlbench ablate --design factorial makes them"
        )

    def distance(number: int) -> tuple[bool, float]:
        study, missing = coded[number], lacking[number]
        return not {*study.ends}.isdisjoint(missing), len(missing) / len(study.points)

    nearest = min(lacking, key=distance)
    study, missing = coded[nearest], lacking[nearest]
    names = ", ".join(factor.name for factor in study.factors)
    diverged = sum(record.status != "ok" for record in records)
    return (
        f"the design of {len(study.factors)} factors ({names}) is not complete: {len(missing)} "
        f"settings have no finished run{f', and {diverged} runs diverged' if diverged else ''}: "
        + first_few([study.in_words(setting) for setting in missing], "; ")
    )


def _start(runs: Sequence[Runs], columns: Mapping[str, Sequence[Any]]) -> int:
    """Return the number of the setting that is the start.

    Start and end are the two opposite settings with the most runs, as the ends are repeated; of
    several, those with the lowest seed, as rows are numbered from the start.
    """
    rows = list(zip(*columns.values(), strict=True))

    def rank(number: int) -> tuple[int, int, str]:
        opposite = [n for n, row in enumerate(rows) if all(map(ne, row, rows[number]))]
        repeats = max((len(runs[number]) + len(runs[n]) for n in opposite), default=0)
        return -repeats, runs[number][0].seed, runs[number][0].recipe_id

    return min(range(len(rows)), key=rank)


def _rank(changes: Mapping[str, object]) -> tuple[int, str]:
    first = next(iter(changes))
    return list(FACTORS).index(factor_of(first)), first


def _names(groups: Sequence[Mapping[str, object]]) -> list[str]:
    """Name each factor as the ladder does, or by its fields where that name would be another's."""
    names = [factor_of(next(iter(changes))) for changes in groups]
    mixed = [len({*map(factor_of, changes)}) > 1 for changes in groups]
    return [
        ", ".join(changes) if many or names.count(name) > 1 else name
        for name, many, changes in zip(names, mixed, groups, strict=True)
    ]
