"""Effects of the factors of a two-level design, for other test classes and other seeds.

An effect is a contrast of runs: the mean of those with the factor at its end level less the mean of
those with it at its start level. Its variance is that of ``crossed``: test classes and seeds are
crossed random effects. What differs from a table of losses is where the noise between seeds comes
from: settings hardly have more than one run, so it is the residual of the fit of all main effects,
pooled with the runs that repeat a setting (Box, Hunter and Hunter 2005, chapters 5 and 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from mlbench.comparison.crossed import ClassTotals, aligned, class_weights
from mlbench.comparison.pairs import both_ways, half_widths, p_values
from mlbench.metrics.ties import TIE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mlbench.comparison.pairs import Ways

    Figures = npt.NDArray[np.float64]

Levels = tuple[int, ...]
"""One setting of the factors: -1 (start) or 1 (end) of each."""

LEVEL = 0.05
"""Of the tests."""


@dataclass(frozen=True)
class Contrast:
    """A difference of means of runs, as fractions.

    Attributes:
        value: the difference.
        half_width: of its 95 % interval.
        p: two-sided probability of so large a difference if there were none.
    """

    value: float
    half_width: float
    p: float

    @property
    def is_zero(self) -> bool:
        """Whether zero lies in the interval."""
        return abs(self.value) <= self.half_width + TIE


@dataclass(frozen=True)
class Noise:
    """What two runs of one setting differ by, as the runs tell it in one way.

    Attributes:
        sd: standard deviation of a run's score, over seeds.
        freedom: degrees of freedom.
    """

    sd: float
    freedom: int


@dataclass(frozen=True)
class Effects:
    """What a two-level design says of one metric.

    Attributes:
        factors: effect of each factor, in the order of the design.
        adjusted: p-value of each by Holm (1979) over the factors.
        start, end: mean score of the runs at each end.
        gap: the runs at the end less those at the start.
        total: sum of the effects: what the gap is if factors only add up.
        misfit: ``total`` less ``gap``. It does not see two-factor interactions, which cancel
            between the two ends; it sees those of three factors.
        middle: mean of the two ends less the mean of the design: what two-factor interactions add.
        interactions: half of what one factor changes in the effect of another, for each group of
            two-factor interactions that the design cannot tell apart, as by ``alias_groups``.
        residual: noise by the residual of the fit of the main effects.
        pure: noise by runs that repeat a setting.
        lack: p-value of the residual being larger than the pure error (F-test); None if one of
            them is not known.
    """

    factors: tuple[Contrast, ...]
    adjusted: tuple[float, ...]
    start: float
    end: float
    gap: Contrast
    total: Contrast
    misfit: Contrast
    middle: Contrast
    interactions: tuple[Contrast, ...]
    residual: Noise
    pure: Noise
    lack: float | None

    @property
    def adds_up(self) -> bool:
        """Whether neither check of the main effects misses by more than its interval."""
        return self.misfit.is_zero and self.middle.is_zero


def alias_groups(design: Sequence[Levels]) -> list[tuple[tuple[int, int], ...]]:
    """Return the two-factor interactions, those together that the design cannot tell apart.

    Those that cannot be told from a main effect (resolution III) are left out: see ``confounded``.
    """
    import numpy as np

    signs = np.array(design)
    mains = {_pattern(column) for column in signs.T}
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in combinations(range(signs.shape[1]), 2):
        pattern = _pattern(signs[:, i] * signs[:, j])
        if pattern not in mains:
            groups.setdefault(pattern, []).append((i, j))
    return [tuple(group) for group in groups.values()]


def confounded(design: Sequence[Levels]) -> dict[int, tuple[tuple[int, int], ...]]:
    """Return the two-factor interactions that the design cannot tell from each main effect."""
    import numpy as np

    signs = np.array(design)
    pairs = list(combinations(range(signs.shape[1]), 2))
    products = {pair: _pattern(signs[:, pair[0]] * signs[:, pair[1]]) for pair in pairs}
    mains = {number: _pattern(column) for number, column in enumerate(signs.T)}
    found = {n: tuple(p for p in pairs if products[p] == main) for n, main in mains.items()}
    return {number: aliases for number, aliases in found.items() if aliases}


def _pattern(column: npt.NDArray[np.int64]) -> bytes:
    """Return a column of signs such that it and its opposite are the same."""
    return (column * column[0]).tobytes()


def effects(design: Sequence[Levels], runs: Mapping[Levels, ClassTotals]) -> Effects:
    """Estimate the effects of the factors of a two-level design.

    Args:
        design: the settings of a regular two-level design.
        runs: totals by test class of the runs at each setting of the design and at both ends (all
            factors at the start, all at the end), in the order of their seeds. As many as every
            setting of the design has are counted in the effects; further ones, and ends that are
            no setting of the design, in the gap and in the noise.

    Raises:
        MlbenchError: the runs were not tested on the same classes and queries.
    """
    import numpy as np

    study = _Study.of(design, runs)
    signs = np.array(design, dtype=np.float64)
    mains = [study.contrast(column) for column in signs.T]
    pairs = [group[0] for group in alias_groups(design)]
    products = [study.contrast(signs[:, i] * signs[:, j]) for i, j in pairs]
    start, end = (study.mean((sign,) * signs.shape[1]) for sign in (-1, 1))
    gap, total = end - start, np.sum(mains, axis=0)
    everything = study.contrast(np.ones(len(signs))) / 2

    factors = study.judged(mains)
    rest = study.judged([gap, total, total - gap, (start + end) / 2 - everything])
    return Effects(
        factors=factors,
        adjusted=holm_adjusted([each.p for each in factors]),
        start=float(start @ study.scores),
        end=float(end @ study.scores),
        gap=rest[0],
        total=rest[1],
        misfit=rest[2],
        middle=rest[3],
        interactions=study.judged(products, pure=study.pure.freedom > 0),
        residual=study.residual.noise,
        pure=study.pure.noise,
        lack=_lack(study.residual, study.pure),
    )


def gap_between(
    design: Sequence[Levels],
    runs: Mapping[Levels, ClassTotals],
    ends: tuple[ClassTotals, ClassTotals],
) -> Contrast:
    """Return the gap between runs elsewhere (start, end), with the noise of the design's runs.

    Raises:
        MlbenchError: they were not tested on the same classes and queries.
    """
    import numpy as np

    study = _Study.of(design, runs)
    _, beside = aligned({"design": ClassTotals(study.totals, study.queries)} | _named(ends))
    counts = [len(beside[name]) for name in ("start", "end")]
    share = np.repeat([-1 / counts[0], 1 / counts[1]], counts)
    totals = np.concatenate([beside["start"], beside["end"]])
    elsewhere = _Study(totals, study.queries, {}, design, study.residual, study.pure, study.pooled)
    return elsewhere.judged([share])[0]


def _named(ends: tuple[ClassTotals, ClassTotals]) -> dict[str, ClassTotals]:
    return dict(zip(("start", "end"), ends, strict=True))


def holm_adjusted(p: Sequence[float]) -> tuple[float, ...]:
    """Return p-values adjusted by Holm's step-down procedure (1979).

    >>> from mlbench.comparison.effects import holm_adjusted
    >>> holm_adjusted([0.04, 0.01, 0.02])
    (0.04, 0.03, 0.04)
    """
    order = sorted(range(len(p)), key=lambda number: p[number])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = highest
    return tuple(adjusted)


@dataclass(frozen=True)
class _Squares:
    """Sums of squares of runs that should be equal: of their scores, and of class and seed."""

    of_seeds: float
    of_both: float
    freedom: int

    @property
    def noise(self) -> Noise:
        return Noise((self.of_seeds / self.freedom) ** 0.5 if self.freedom else 0.0, self.freedom)

    def variance(self) -> tuple[float, float]:
        """Return the variance of one run by seeds, and by class and seed."""
        return self.of_seeds / max(self.freedom, 1), self.of_both / max(self.freedom, 1)


@dataclass(frozen=True, eq=False)
class _Study:
    """The runs one below the other, and the noise between them.

    Attributes:
        totals: ``(R, G)``.
        queries: ``(G,)``.
        rows: numbers of the runs of each setting.
        design: its settings.
        residual: of the fit of the main effects.
        pure: of runs that repeat a setting.
        pooled: of both.
    """

    totals: Figures
    queries: Figures
    rows: Mapping[Levels, range]
    design: Sequence[Levels]
    residual: _Squares
    pure: _Squares
    pooled: _Squares

    @classmethod
    def of(cls, design: Sequence[Levels], runs: Mapping[Levels, ClassTotals]) -> _Study:
        import numpy as np

        queries, totals = aligned({_setting_name(key): each for key, each in runs.items()})
        rows, first = {}, 0
        for setting, each in zip(runs, totals.values(), strict=True):
            rows[setting] = range(first, first + len(each))
            first += len(each)
        bare = _Squares(0.0, 0.0, 0)
        study = cls(np.concatenate([*totals.values()]), queries, rows, design, bare, bare, bare)
        return study._with_noise()

    def _with_noise(self) -> _Study:
        import numpy as np

        count = self._count
        used = [number for setting in self.design for number in self.rows[setting][:count]]
        model = np.repeat(np.column_stack([np.ones(len(self.design)), self.design]), count, axis=0)
        fit = model @ np.linalg.pinv(model)
        rank = int(np.linalg.matrix_rank(model))
        residual = self._squares(np.eye(len(used)) - fit, used, len(used) - rank)
        pure = self._within(self.rows.values())
        # What repeats within the design is in the residual already.
        repeated = self._within([self.rows[setting][:count] for setting in self.design])
        pooled = _Squares(
            residual.of_seeds + pure.of_seeds - repeated.of_seeds,
            residual.of_both + pure.of_both - repeated.of_both,
            residual.freedom + pure.freedom - repeated.freedom,
        )
        return _Study(self.totals, self.queries, self.rows, self.design, residual, pure, pooled)

    @property
    def _count(self) -> int:
        """Runs of each setting that are counted in the effects."""
        return min(len(self.rows[setting]) for setting in self.design)

    @property
    def scores(self) -> Figures:
        """``(R,)`` of the runs."""
        return self.totals.sum(axis=1) / self.queries.sum()

    @property
    def by_class(self) -> Figures:
        """``(R, G)`` residuals of the classes in each run's score."""
        import numpy as np

        return (self.totals - np.outer(self.scores, self.queries)) / self.queries.sum()

    def _squares(self, left: Figures, used: Sequence[int], freedom: int) -> _Squares:
        import numpy as np

        scores, by_class = left @ self.scores[used], left @ self.by_class[used]
        correction = class_weights(self.queries)[0]
        return _Squares(
            float(scores @ scores), correction * float(np.vdot(by_class, by_class)), freedom
        )

    def _within(self, groups: Iterable[Sequence[int]]) -> _Squares:
        import numpy as np

        found = [
            self._squares(np.eye(len(group)) - 1 / len(group), list(group), len(group) - 1)
            for group in groups
        ]
        return _Squares(
            sum(each.of_seeds for each in found),
            sum(each.of_both for each in found),
            sum(each.freedom for each in found),
        )

    def mean(self, setting: Levels) -> Figures:
        """Return ``(R,)`` shares of the runs in the mean of a setting."""
        import numpy as np

        shares = np.zeros(len(self.totals))
        shares[list(self.rows[setting])] = 1 / len(self.rows[setting])
        return shares

    def contrast(self, signs: Figures) -> Figures:
        """Return ``(R,)`` shares in the mean of the settings of one sign less that of the other."""
        import numpy as np

        shares = np.zeros(len(self.totals))
        for setting, sign in zip(self.design, signs, strict=True):
            shares[list(self.rows[setting][: self._count])] = sign
        return 2 * shares / (len(self.design) * self._count)

    def judged(self, shares: Sequence[Figures], *, pure: bool = False) -> tuple[Contrast, ...]:
        """Return contrasts with their intervals; by the pure error alone if asked for."""
        import numpy as np

        if not shares:
            return ()
        weights = np.array(shares)
        values = weights @ self.scores
        values[np.abs(values) <= TIE] = 0.0  # what rounding leaves of nothing
        ways = self._ways(weights, self.pure if pure else self.pooled)
        found = zip(values, half_widths(ways), p_values(values, ways), strict=True)
        return tuple(Contrast(*map(float, each)) for each in found)

    def _ways(self, weights: Figures, noise: _Squares) -> Ways:
        import numpy as np

        correction, class_freedom = class_weights(self.queries)
        of_classes = correction * np.square(weights @ self.by_class).sum(axis=1)
        squares = np.square(weights).sum(axis=1)
        of_seeds, of_both = (variance * squares for variance in noise.variance())
        classes = of_classes, np.full(len(weights), class_freedom)
        seeds = of_seeds, np.full(len(weights), float(max(noise.freedom, 1)))
        if not noise.freedom:
            unknown = np.full(len(weights), np.inf), np.ones(len(weights))
            return (classes,) if class_freedom else (unknown,)
        if not class_freedom:
            return (seeds,)
        both = of_both, np.full(len(weights), class_freedom * noise.freedom)
        return both_ways(classes, seeds, both), seeds, classes


def _setting_name(setting: Levels) -> str:
    return "".join("+" if level > 0 else "-" for level in setting)


def _lack(residual: _Squares, pure: _Squares) -> float | None:
    from scipy.special import fdtrc

    if not residual.freedom or not pure.freedom or not pure.of_seeds:
        return None
    ratio = residual.noise.sd**2 / pure.noise.sd**2
    return float(fdtrc(residual.freedom, pure.freedom, ratio))
