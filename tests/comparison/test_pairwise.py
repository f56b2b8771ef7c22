"""All pairs at once against one pair at a time."""

import os
import subprocess
import sys
from collections.abc import Hashable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlbench.comparison.pairwise import contrasts
from mlbench.comparison.statistics import (
    Difference,
    compare_all,
    holm,
    paired_difference,
    pooled_noise,
)

pytestmark = pytest.mark.numeric

Scores = dict[str, dict[Hashable, np.ndarray]]


def drawn(seed: int, losses: int, seeds: int, queries: int, *, hits: bool) -> Scores:
    rng = np.random.default_rng(seed)
    shifts = rng.normal(0, 0.1, losses)
    values = rng.random((losses, seeds, queries)) + shifts[:, None, None] * rng.random(queries)
    values = values > 0.5 if hits else values
    return {f"loss{i}": dict(enumerate(runs)) for i, runs in enumerate(values)}


def one_at_a_time(scores: Scores) -> tuple[str, dict[str, Difference], set[str]]:
    """Compare by ``paired_difference``, with the p-values of all pairs."""
    means = {name: np.mean(list(runs.values())) for name, runs in scores.items()}
    best = max(means, key=lambda name: means[name])
    shared = {
        (a, b): [np.stack([scores[name][run] for run in runs]).astype(float) for name in (a, b)]
        for a, b in combinations(sorted(scores, key=lambda name: name != best), 2)
        if (runs := list(scores[a].keys() & scores[b].keys()))
    }
    noise = pooled_noise([a - b for a, b in shared.values()], len(scores))
    pairs = {pair: paired_difference(a, b, noise=noise) for pair, (a, b) in shared.items()}
    different = holm({pair: difference.p for pair, difference in pairs.items()})
    behind = {b: difference for (a, b), difference in pairs.items() if a == best}
    return best, behind, {name for name in scores if (best, name) not in different}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(2, 60),
    st.booleans(),
    st.sets(st.tuples(st.integers(0, 5), st.integers(1, 4))),
)
def test_all_pairs_at_once_are_each_pair_alone(
    seed: int, losses: int, seeds: int, queries: int, hits: bool, missing: set[tuple[int, int]]
) -> None:
    scores = drawn(seed, losses, seeds, queries, hits=hits)
    for loss, run in missing:
        scores.get(f"loss{loss}", {}).pop(run, None)
    means = sorted(np.mean(list(runs.values())) for runs in scores.values())
    assume(len(means) == 1 or means[-1] - means[-2] > 1e-9)  # else rounding picks the best
    best, behind, tied = compare_all(scores)
    wanted_best, wanted, wanted_tied = one_at_a_time(scores)
    assert (best, set(behind), tied) == (wanted_best, set(wanted), wanted_tied)
    for name, difference in behind.items():
        for field in ("mean", "half_width", "p"):
            expected = pytest.approx(getattr(wanted[name], field), rel=1e-6, abs=1e-8)
            assert getattr(difference, field) == expected, (name, field)
        assert difference.effect == near(wanted[name].effect)


def near(value: float | None) -> object:
    return value if value is None else pytest.approx(value, rel=1e-6)


def test_runs_that_lost_their_queries_are_left_out_of_the_pair() -> None:
    scores = drawn(1, 2, 3, 50, hits=True)
    for runs in scores.values():
        runs[2] = np.array([0.5])
    (found,) = contrasts(scores, list(scores))
    assert (found.runs, found.queries) == (2, 50)


def test_one_figure_each_tells_nothing() -> None:
    scores: Scores = {"a": {0: np.array([0.5])}, "b": {0: np.array([0.4])}}
    assert contrasts(scores, ["a", "b"]) == []


def test_every_process_gives_the_same_digits() -> None:
    program = """
import numpy as np
from mlbench.comparison.pairwise import contrasts
rng = np.random.default_rng(0)
scores = {loss: {f"run {i}": rng.random(50) for i in range(20)} for loss in "ab"}
(found,) = contrasts(scores, ["a", "b"])
print([repr(float(x[0])) for x in (found.mean, found.run_variance, found.query_variance)])
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(printed) == 1
