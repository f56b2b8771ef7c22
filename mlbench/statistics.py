"""How sure a figure is, and whether two losses can be told apart.

Two kinds of chance make a figure: the seed of a run and the draw of the test images. A mean over
seeds has Student's t-interval. A difference between two losses is judged by a bootstrap that
resamples seeds and queries, both paired: the same seeds and the same queries for both losses.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Scores = npt.NDArray[np.float64]

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
    """Return the mean of at least one value with its two-sided Student t-interval."""
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
    """
    import numpy as np

    scores = np.asarray(a, dtype=np.float64) - b
    mean, seeds = float(scores.mean()), len(scores)
    own = _seed_noise(scores)
    used = noise or own
    parts = (used.variance / seeds, used.freedom), _query_variance(scores)
    effect = mean / math.sqrt(own.variance) if own.variance else None
    return Difference(mean, _half_width(parts, 1 - confidence), _p_value(parts, mean), effect)


def pooled_noise(differences: Sequence[Scores], runs: Sequence[int]) -> SeedNoise | None:
    """Pool the noise between seeds over all pairs of losses, as analysis of variance does.

    It takes losses to be about equally noisy, and in turn needs no 10 seeds to see a difference
    that stands out among the noise of all of them.

    Args:
        differences: ``(S, Q)`` differences of every pair.
        runs: finished runs of each loss.

    Returns:
        None if no pair shares two runs.
    """
    noises = [_seed_noise(each) for each in differences if len(each) > 1]
    freedom = math.fsum(noise.freedom for noise in noises)
    if not freedom:
        return None
    variance = math.fsum(noise.variance * noise.freedom for noise in noises) / freedom
    losses = len(runs)
    return SeedNoise(variance, sum(n - 1 for n in runs) * (losses - 1) / losses)


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


def _half_width(variances: Sequence[tuple[float, float]], alpha: float) -> float:
    parts = (variance * _t_quantile(df, 1 - alpha) ** 2 for variance, df in variances if variance)
    return math.sqrt(math.fsum(parts))


def _p_value(variances: Sequence[tuple[float, float]], mean: float) -> float:
    """Return the alpha at which the interval just reaches zero."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _half_width(variances, middle) < abs(mean) else (middle, high)
    return high


def compare_all(
    scores: Mapping[str, Mapping[Hashable, Scores]], alpha: float = 0.05
) -> tuple[str, dict[str, Difference], set[str]]:
    """Compare losses with the one of the highest mean, and tell which cannot be told apart from it.

    Every pair is compared over the runs that both have, with the noise between seeds pooled over
    all pairs. Holm's correction runs over all pairs, so that the error of the whole statement is at
    most ``alpha`` although the best is picked from the data.

    Args:
        scores: by loss, and by run (seed and fold), ``(Q,)`` scores of the queries in one order.
        alpha: chance of calling any two equal losses different.

    Returns:
        the best; how far each other one is behind it, if they share runs; and all that tie with
        the best, itself included.
    """
    means = {name: _mean(runs) for name, runs in scores.items()}
    best = max(means, key=lambda name: means[name])
    shared = {
        (a, b): runs
        for a, b in combinations(sorted(scores, key=lambda name: name != best), 2)
        if (runs := _shared_runs(scores[a], scores[b])) is not None
    }
    noise = pooled_noise([a - b for a, b in shared.values()], [len(r) for r in scores.values()])
    pairs = {pair: paired_difference(a, b, noise=noise) for pair, (a, b) in shared.items()}
    different = holm({pair: difference.p for pair, difference in pairs.items()}, alpha)
    behind = {b: difference for (a, b), difference in pairs.items() if a == best}
    return best, behind, {best} | {name for name in behind if (best, name) not in different}


def _mean(runs: Mapping[Hashable, Scores]) -> float:
    return math.fsum(float(scores.mean()) for scores in runs.values()) / len(runs)


def _shared_runs(
    a: Mapping[Hashable, Scores], b: Mapping[Hashable, Scores]
) -> tuple[Scores, Scores] | None:
    """Return ``(S, Q)`` scores of the runs that both have; None if too few to say anything."""
    import numpy as np

    shared = [run for run in a if run in b and a[run].shape == b[run].shape]
    if not shared or (len(shared) == 1 and a[shared[0]].size == 1):
        return None
    return np.stack([a[run] for run in shared]), np.stack([b[run] for run in shared])


def holm(p_values: Mapping[K, float], alpha: float = 0.05) -> set[K]:
    """Return the keys whose hypotheses Holm's step-down procedure (1979) rejects at ``alpha``."""
    rejected: set[K] = set()
    for number, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > alpha / (len(p_values) - number):
            break
        rejected.add(key)
    return rejected


def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + confidence / 2))
