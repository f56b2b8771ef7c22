"""Controls of the whole chain from training to marks: what must be equal, at chance, or unmarked.

Each control knows its answer beforehand. Runs are short, on a part of the embedded glyphs, and
nothing is written but the cache of pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mlbench.comparison.best import Standing, compare_with_best
from mlbench.comparison.crossed import ClassTotals, components
from mlbench.datasets import glyphs
from mlbench.interfaces import Dataset, DatasetEntry, ImageSet
from mlbench.progress import PhaseProgress
from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.records.record import RunRecord
from mlbench.records.totals import RunTotals
from mlbench.registry import DATASETS, LOSSES
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import run_one

ALLOWED = 0.2
"""Share of tables of equal losses that may leave one out. Nominal are 0.05, but each table draws
three of five runs with replacement for each of four losses, and three times the same run, which
shows no noise of seeds, comes up for some loss in a sixth of the tables."""

FOUND = 0.9
"""Share of tables in which a loss that is far ahead is to be the only one marked, at least."""

_GAP = 0.2
_METRIC = "R@1"
_CLASSES, _IMAGES = 50, 24
_LOSSES = ("softtriple", "softmax_norm", "triplet", "contrastive")
_RUNS, _DRAWN, _TABLES = 5, 3, 400
_QUICK = {"schedule.epochs": 1, "schedule.milestones": [], "evaluation.nmi_restarts": 1}
_FROZEN = {**_QUICK, "backbone.trunk": "frozen", "backbone.bn_stats": "frozen"}

Totals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Control:
    """How one control came out.

    Attributes:
        name: what was controlled.
        passed: whether the known answer came out.
        found: what came out, and what was to.
    """

    name: str
    passed: bool
    found: str


def run_controls(progress: PhaseProgress) -> Iterator[Control]:
    """Make the runs of the controls and yield the results one by one.

    Args:
        progress: called with phase, done and total.

    Raises:
        MlbenchError: the runs cannot be made here.
    """
    with _registered():
        yield from _same_loss_twice(progress)
        yield _one_center(progress)
        yield _permuted_labels(progress)
        yield from _made_equal(progress)


@contextmanager
def _registered() -> Iterator[None]:
    """Have what the controls run on under names of its own."""
    again = replace(LOSSES.get("softtriple"), name="softtriple_again")
    small = DatasetEntry(name="glyphs_small", target=_small, summary="", needs_root=False)
    permuted = replace(small, name="glyphs_permuted", target=_permuted)
    with LOSSES.lent(again), DATASETS.lent(small), DATASETS.lent(permuted):
        yield


def _small(root: Path | None) -> Dataset:
    """Return the first classes of either side of the glyphs, and the first images of each."""
    whole = glyphs.load(root)
    return replace(
        whole,
        name="glyphs_small",
        train=_part(whole.train),
        test=_part(whole.test),
        fingerprint=hashlib.sha256(f"{whole.fingerprint} small".encode()).hexdigest(),
    )


def _part(images: ImageSet) -> ImageSet:
    kept = np.concatenate([np.flatnonzero(images.labels == c)[:_IMAGES] for c in range(_CLASSES)])
    return ImageSet(
        tuple(images.names[i] for i in kept),
        images.labels[kept],
        images.class_names[:_CLASSES],
        lambda i: images.read(int(kept[i])),
    )


def _permuted(root: Path | None) -> Dataset:
    """Return the same images with labels that say nothing of them."""
    small, rng = _small(root), np.random.default_rng(0)
    sides = {
        side: replace(images, labels=rng.permutation(images.labels))
        for side, images in (("train", small.train), ("test", small.test))
    }
    return replace(small, name="glyphs_permuted", **sides)


def _records(
    progress: PhaseProgress,
    what: str,
    seeds: int,
    settings: Mapping[str, object],
    *losses: str,
    dataset: str = "glyphs_small",
) -> dict[str, list[RunRecord]]:
    """Return records of short runs, by loss."""
    asked = Request(
        recipe="default",
        dataset=dataset,
        losses=losses,
        seeds=seeds,
        settings=tuple(settings.items()),
    )
    plan: Plan = make_plan(asked)
    ingredients = Ingredients(plan.recipe, plan.files, torch.device("cpu"), lambda *_: None)
    specs, found = plan.runs(), {name: list[RunRecord]() for name in losses}
    for number, spec in enumerate(specs):
        progress(f"control: {what}", number, len(specs))
        found[spec.loss.name].append(run_one(spec, ingredients)[0])
    return found


def _same_loss_twice(progress: PhaseProgress) -> Iterator[Control]:
    names = ("softtriple", "softtriple_again")
    records = _records(progress, "one loss under two names", 2, _QUICK, *names)
    yield _equal("one loss under two names: values", *records.values())
    standing = _standing(*_totals(records))
    zero = all(each.gap == 0 and each.reaches_zero for each in standing.behind.values())
    behind = ", ".join(
        f"{100 * b.gap:g} ({100 * b.low:g} to {100 * b.high:.1f})" for b in standing.behind.values()
    )
    yield Control(
        "one loss under two names: table",
        zero and len(standing.marked) == len(names),
        f"gap: {behind}; {len(standing.marked)} of 2 marked",
    )


def _one_center(progress: PhaseProgress) -> Control:
    settings = {**_QUICK, "softtriple.centers_per_class": 1, "softtriple.margin": 0.0}
    names = ("softtriple", "softmax_norm")
    records = _records(progress, "SoftTriple with one center", 2, settings, *names)
    return _equal("SoftTriple with K = 1 and margin 0, and SoftMax_norm", *records.values())


def _equal(name: str, first: Sequence[RunRecord], second: Sequence[RunRecord]) -> Control:
    """Compare the figures of two rows, those of training included, to the last bit."""
    figures = [
        [(r.metrics, r.class_totals, [row.loss for row in r.curve]) for r in row]
        for row in (first, second)
    ]
    gap = max(
        abs(a.metrics[metric] - b.metrics[metric])
        for a, b in zip(first, second, strict=True)
        for metric in a.metrics
    )
    passed = figures[0] == figures[1]
    return Control(name, passed, "bit-identical" if passed else f"different, by up to {gap:.2g}")


def _permuted_labels(progress: PhaseProgress) -> Control:
    """Train and test on labels that say nothing: R@1 is that of a random other image.

    Two images that are each other's neighbours hit or miss together, so that the variance is up to
    twice that of independent queries.
    """
    found = _records(
        progress, "labels permuted", 3, _QUICK, "softtriple", dataset="glyphs_permuted"
    )
    records = found["softtriple"]
    queries = _CLASSES * _IMAGES
    chance = (_IMAGES - 1) / (queries - 1)
    allowed = 4 * (2 * chance * (1 - chance) / queries) ** 0.5
    scores = [float(record.metrics[_METRIC]) for record in records]
    return Control(
        "labels permuted",
        all(abs(score - chance) <= allowed for score in scores),
        f"R@1 {', '.join(f'{100 * score:.1f}' for score in scores)}; chance is "
        f"{100 * chance:.1f} ± {100 * allowed:.1f}",
    )


def _made_equal(progress: PhaseProgress) -> Iterator[Control]:
    records = _records(progress, "losses made equal", _RUNS, _FROZEN, *_LOSSES)
    totals, queries = _totals(records)
    progress("control: tables of losses made equal", 0, 0)
    wrong = share_of_tables(
        equalised(totals, queries), queries, lambda marked: len(marked) < len(_LOSSES)
    )
    yield Control(
        f"losses made equal, {_TABLES} tables",
        wrong <= ALLOWED,
        f"{100 * wrong:.1f} % leave out one of them; at most {100 * ALLOWED:g} % are allowed",
    )
    ahead = equalised(totals, queries, _GAP)
    right = share_of_tables(ahead, queries, lambda marked: marked == {"0"})
    yield Control(
        f"one loss put {100 * _GAP:g} points ahead, {_TABLES} tables",
        right >= FOUND,
        f"{100 * right:.1f} % mark it alone; at least {100 * FOUND:g} % should",
    )


def _totals(records: Mapping[str, Sequence[RunRecord]]) -> tuple[Totals, Totals]:
    """Return ``(L, S, G)`` totals of the metric, and ``(G,)`` queries."""
    known: list[list[RunTotals]] = [
        [record.totals for record in row if record.totals] for row in records.values()
    ]
    totals = np.array([[run.sums[_METRIC] for run in row] for row in known])
    return totals, known[0][0].queries.astype(np.float64)


def equalised(totals: Totals, queries: Totals, gap: float = 0.0) -> Totals:
    """Return ``(L, S, G)`` totals moved to equal means, the first row ``gap`` ahead of them."""
    means = totals.sum(axis=2).mean(axis=1) / queries.sum()
    shift = means.mean() - means
    shift[0] += gap
    return totals + shift[:, None, None] * queries


def share_of_tables(
    totals: Totals, queries: Totals, holds: Callable[[frozenset[str]], bool]
) -> float:
    """Return in which share of tables something holds of the marked rows.

    Args:
        totals: ``(L, S, G)`` that each table draws its runs, for each row, and its classes from.
        queries: ``(G,)`` of each class.
        holds: given the numbers of the marked rows.
    """
    rng, (rows, runs, classes) = np.random.default_rng(0), totals.shape
    count = 0
    for _ in range(_TABLES):
        drawn = rng.integers(classes, size=classes)
        chosen = [totals[row][rng.integers(runs, size=_DRAWN)][:, drawn] for row in range(rows)]
        count += holds(_standing(np.array(chosen), queries[drawn]).marked)
    return count / _TABLES


def _standing(totals: Totals, queries: Totals) -> Standing:
    rows = {str(number): ClassTotals(each, queries) for number, each in enumerate(totals)}
    return compare_with_best(components(rows, deterministic=()))
