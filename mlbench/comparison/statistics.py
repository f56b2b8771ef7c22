"""How sure a figure is, and whether two losses can be told apart.

Two kinds of chance make a figure: the seed of a run and the draw of the test images. A mean over
seeds has Student's t-interval. A difference between two losses is judged by a bootstrap that
resamples seeds and queries, both paired: the same seeds and the same queries for both losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mlbench.comparison.pairwise import Contrasts, contrasts
from mlbench.metrics.ties import TIE, first_highest
from mlbench.records.scores import mean_score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]
    AnyScores = npt.NDArray[np.float64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]
    Parts = Sequence[tuple[npt.ArrayLike, float]]

K = TypeVar("K")


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        mean: of the values.
        half_width: of the 95 % t-interval of the mean; None with fewer than two values.
        n: number of values.
    """

    mean: float
    half_width: float | None
    n: int


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of at least one value with its two-sided Student t-interval.

    >>> from mlbench.comparison import estimate
    >>> recall = estimate([0.61, 0.63, 0.62])
    >>> f"{recall.mean:.3f} ± {recall.half_width:.3f}"
    '0.620 ± 0.025'
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, n)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean, _t_quantile(n - 1, confidence) * math.sqrt(variance / n), n)


@dataclass(frozen=True)
class Difference:
    """Mean of one loss minus mean of another, over the same seeds and queries.

    Attributes:
        mean: the difference.
        half_width: of its 95 % interval, over seeds and queries.
        p: two-sided probability of so large a difference if there were none.
        effect: the difference over the standard deviation of its per-seed values (Cohen's d_z);
            None with one seed, or if all seeds agree.
    """

    mean: float
    half_width: float
    p: float
    effect: float | None


@dataclass(frozen=True)
class SeedNoise:
    """Variance of the difference of two losses from seed to seed, and its degrees of freedom."""

    variance: float
    freedom: float


def paired_difference(
    a: Scores, b: Scores, *, noise: SeedNoise | None = None, confidence: float = 0.95
) -> Difference:
    """Compare two losses by resampling seeds and queries, both paired.

    The bootstrap that draws seeds and queries with replacement has a variance in closed form
    (Owen 2007), so nothing is drawn. Two of its known faults are mended: it counts what is neither
    of the seed nor of the query three times, and it treats a handful of seeds like many. The
    variance over seeds therefore gets Student's quantile of its degrees of freedom, that over
    queries its own, and the two half-widths add in squares (Banerjee 1961), which covers at least
    at the stated rate. With one seed the noise of seeds is unknown: the interval is of queries.

    Args:
        a: ``(S, Q)`` scores, such as hits at 1, of ``S`` seeds and ``Q`` queries.
        b: the same for the other loss, seeds and queries in the same order.
        noise: between seeds, where more than these two losses tell of it.
        confidence: of the interval.

    >>> import numpy as np
    >>> from mlbench.comparison import paired_difference
    >>> a = np.array([[1, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]])  # 3 seeds
    >>> b = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1], [1, 0, 1, 0, 0, 1]])
    >>> difference = paired_difference(a, b)
    >>> f"{difference.mean:.3f} ± {difference.half_width:.3f}"
    '0.389 ± 0.394'
    """
    import numpy as np

    scores = np.asarray(a, dtype=np.float64) - b
    mean, seeds = float(scores.mean()), len(scores)
    mean = 0.0 if abs(mean) <= TIE else mean
    own = _seed_noise(scores)
    used = noise or own
    parts = (used.variance / seeds, used.freedom), _query_variance(scores)
    half_width = float(_half_widths(parts, 1 - confidence))
    p = float(_p_values(parts, np.asarray(mean)))
    return Difference(mean, half_width, p, _effect(mean, own.variance))


def _effect(mean: float, variance: float) -> float | None:
    agree = variance <= (1e-9 * mean) ** 2  # up to rounding
    return None if agree else mean / math.sqrt(variance)


def pooled_noise(differences: Sequence[Scores], losses: int) -> SeedNoise | None:
    """Pool the noise between seeds over all pairs of losses, as analysis of variance does.

    It takes losses to be about equally noisy, and in turn needs no 10 seeds to see a difference
    that stands out among the noise of all of them.

    Args:
        differences: ``(S, Q)`` differences of every pair.
        losses: that the pairs are of.

    Returns:
        None if no pair shares two runs.
    """
    return _pool([_seed_noise(each) for each in differences], losses)


def _pool(noises: Sequence[SeedNoise], losses: int) -> SeedNoise | None:
    # The L (L - 1) / 2 differences of L losses hold what L - 1 of them do: 2 / L of the freedom.
    freedom = math.fsum(noise.freedom for noise in noises)
    if not freedom:
        return None
    variance = math.fsum(noise.variance * noise.freedom for noise in noises) / freedom
    return SeedNoise(variance, freedom * 2 / losses)


def _seed_noise(scores: Scores) -> SeedNoise:
    means = scores.mean(axis=1) - scores.mean()
    freedom = len(means) - 1
    return SeedNoise(float(means @ means) / max(freedom, 1), freedom)


def _query_variance(scores: Scores) -> tuple[float, int]:
    """Return the variance of the mean of ``(S, Q)`` scores that is due to the queries, and df."""
    s, q = scores.shape
    mean = scores.mean()
    seeds, queries = scores.mean(axis=1) - mean, scores.mean(axis=0) - mean
    rest = scores - mean - seeds[:, None] - queries
    of_queries = float(queries @ queries) / max(q - 1, 1)
    of_rest = float((rest**2).sum()) / max((s - 1) * (q - 1), 1)
    return max(of_queries - of_rest / s, 0.0) / q, q - 1


def _half_widths(parts: Parts, alpha: npt.ArrayLike) -> Scores:
    """Return half-widths at ``alpha`` from variances, each a number or ``(P,)``, and their df."""
    import numpy as np
    from scipy.special import stdtrit

    quantile = 1 - np.asarray(alpha) / 2
    squares = [np.asarray(v) * stdtrit(freedom, quantile) ** 2 for v, freedom in parts if freedom]
    return np.sqrt(sum(squares, np.zeros(())))


def _p_values(parts: Parts, means: Scores) -> Scores:
    """Return, for each of the means, the alpha at which its interval just reaches zero."""
    import numpy as np
    from scipy.special import stdtr

    known = [(np.asarray(v), freedom) for v, freedom in parts if freedom]
    if len(known) == 1:  # Student's test
        ((variance, freedom),) = known
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * stdtr(freedom, -np.abs(means) / np.sqrt(variance))
        return np.where(means == 0, 1.0, p)
    low, high = np.zeros_like(means), np.ones_like(means)
    for _ in range(50):
        middle = (low + high) / 2
        clear = _half_widths(parts, middle) < np.abs(means)
        low, high = np.where(clear, low, middle), np.where(clear, middle, high)
    return high


def compare_all(
    scores: Mapping[str, Mapping[Hashable, AnyScores]], alpha: float = 0.05
) -> tuple[str, dict[str, Difference], set[str]]:
    """Compare losses with the one of the highest mean, and tell which cannot be told apart from it.

    Every pair is compared over the runs that both have, with the noise between seeds pooled over
    all pairs. Holm's correction runs over all pairs, so that the error of the whole statement is at
    most ``alpha`` although the best is picked from the data.

    Args:
        scores: by loss, and by run (seed and fold), ``(Q,)`` scores of the queries in one order.
        alpha: chance of calling any two equal losses different.

    Returns:
        the best; how far each other one is behind it, if they share runs; and all that were not
        shown to differ from the best, itself and those that share no runs with it included.
    """
    means = {name: _mean(runs) for name, runs in scores.items()}
    best = list(means)[first_highest(list(means.values()))]
    found = contrasts(scores, sorted(scores, key=lambda name: name != best))
    own = [SeedNoise(float(v), c.runs - 1) for c in found for v in c.run_variance]
    noise = _pool(own, len(scores))
    different = holm(_decisive_p_values(found, noise, alpha), alpha)
    behind = {
        b: difference
        for each in found
        for (a, b), difference in _differences(each, noise, best).items()
    }
    return best, behind, {name for name in scores if (best, name) not in different}


def _mean(runs: Mapping[Hashable, AnyScores]) -> float:
    return math.fsum(map(mean_score, runs.values())) / len(runs)


def _parts(found: Contrasts, noise: SeedNoise | None) -> Parts:
    """Return the variances of the means, due to seeds and to queries, with their df."""
    variance, freedom = (
        (found.run_variance, found.runs - 1) if noise is None else (noise.variance, noise.freedom)
    )
    return (variance / found.runs, freedom), (found.query_variance, found.queries - 1)


def _decisive_p_values(
    found: Sequence[Contrasts], noise: SeedNoise | None, alpha: float
) -> dict[tuple[str, str], float]:
    """Return p of all pairs; 0 and 1 where it is certain on which side of every level it lies."""
    import numpy as np

    strictest = alpha / max(sum(len(each.pairs) for each in found), 1)
    values: dict[tuple[str, str], float] = {}
    for each in found:
        parts, size = _parts(each, noise), np.abs(each.mean)
        p = (_half_widths(parts, alpha) >= size).astype(np.float64)
        open_ = (p == 0) & (_half_widths(parts, strictest) >= size)
        p[open_] = _p_values(_select(parts, open_), size[open_])
        values.update(zip(each.pairs, p.tolist(), strict=True))
    return values


def _select(parts: Parts, chosen: npt.NDArray[np.bool_]) -> Parts:
    import numpy as np

    return [(np.broadcast_to(v, chosen.shape)[chosen], freedom) for v, freedom in parts]


def _differences(
    found: Contrasts, noise: SeedNoise | None, best: str
) -> dict[tuple[str, str], Difference]:
    """Return how far the others of its pairs are behind the best."""
    import numpy as np

    chosen = np.array([best in pair for pair in found.pairs])
    parts, means = _select(_parts(found, noise), chosen), found.mean[chosen]
    half_widths = np.broadcast_to(_half_widths(parts, 0.05), means.shape)
    p_values, variances = _p_values(parts, means), found.run_variance[chosen]
    pairs = [pair for pair in found.pairs if best in pair]
    return {
        pair: Difference(mean, half_width, p, _effect(mean, variance))
        for pair, mean, half_width, p, variance in zip(
            pairs,
            *(column.tolist() for column in (means, half_widths, p_values, variances)),
            strict=True,
        )
    }


def holm(p_values: Mapping[K, float], alpha: float = 0.05) -> set[K]:
    """Return the keys whose hypotheses Holm's step-down procedure (1979) rejects at ``alpha``.

    >>> from mlbench.comparison.statistics import holm
    >>> sorted(holm({"a": 0.010, "b": 0.020, "c": 0.060}))
    ['a', 'b']
    """
    rejected: set[K] = set()
    for number, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > alpha / (len(p_values) - number):
            break
        rejected.add(key)
    return rejected


@functools.cache
def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))
