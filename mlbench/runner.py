"""Make runs: from a RunSpec to its record."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mlbench import provenance, store
from mlbench.augment import FeatureSource, Subset
from mlbench.baselines import BASELINES, pca
from mlbench.config import Plan
from mlbench.embed import embed
from mlbench.laboratory import Laboratory, Progress, TrainingPart, training_part
from mlbench.metrics import QueryResults, evaluate_queries, nmi, summarize
from mlbench.migrations import SCHEMA_VERSION
from mlbench.model import Embedder, build_head
from mlbench.record import (
    PROTOCOL_VERSION,
    Cost,
    DatasetFacts,
    EpochRow,
    RunRecord,
)
from mlbench.registry import LOSSES
from mlbench.spec import LossSpec, RunSpec
from mlbench.trainer import Epoch, Trainer, diverged


@dataclass(frozen=True)
class Trained:
    """A trained network with what its record will say of the training."""

    network: Embedder
    loss: nn.Module
    curve: tuple[EpochRow, ...]
    images_seen: int
    selected_epoch: int
    part: TrainingPart

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss was not finite."""
        return self.curve[-1].loss is None


def run_one(spec: RunSpec, lab: Laboratory) -> tuple[RunRecord, QueryResults | None]:
    """Make one run.

    Returns:
        its record, and the per-query results behind its metrics (None if it diverged).
    """
    set_precision(lab.recipe.training.precision)
    watch = Stopwatch()
    if spec.loss.name in BASELINES:
        return _baseline(spec, lab, watch)
    trained = train(spec, lab, watch)
    if trained.diverged:
        return _record(spec, lab, watch, trained, None), None
    with watch("evaluate"):
        embeddings = _embed_evaluated(trained.network, lab, spec.seed)
        results = _evaluate(embeddings, lab, spec.seed) if has_directions(embeddings) else None
    return _record(spec, lab, watch, trained, results), results.queries if results else None


def train(spec: RunSpec, lab: Laboratory, watch: Stopwatch) -> Trained:
    """Train the loss of ``spec`` from the start to the last epoch, or until it diverges."""
    with watch("prepare"):
        entry = LOSSES.get(spec.loss.name)
        part = training_part(lab.images("train").labels, lab.recipe, spec.seed, spec.fold)
        network = lab.network(spec.seed)
        num_classes = int(part.labels.max()) + 1
        loss = entry.build(num_classes, lab.recipe.head.dim, dict(spec.loss.params))
        loss = loss.to(lab.device)
        source = Subset(lab.inputs("train", spec.seed, augmented=True), part.members)
        trainer = Trainer(network, loss, entry, source, part.labels, lab.recipe, spec.seed)
        selection = _Selection(lab, spec, part, network)
    with watch("train"):
        rows = _epochs(trainer, selection, spec, lab)
    chosen = selection.restore(len(rows) - 1)
    seen = len(rows) * sum(trainer.sizes)
    return Trained(network, loss, tuple(rows), seen, chosen, part)


def _epochs(
    trainer: Trainer, selection: _Selection, spec: RunSpec, lab: Laboratory
) -> list[EpochRow]:
    rows = []
    for number in range(lab.recipe.schedule.epochs):
        epoch = trainer.epoch(number, _steps(lab, spec.loss.name, number))
        rows.append(_row(number, epoch, None if diverged(epoch) else selection.score(number)))
        if diverged(epoch) or selection.exhausted(number):
            break
    return rows


class _Selection:
    """Remembers the network of the best epoch, if the recipe selects one."""

    def __init__(
        self, lab: Laboratory, spec: RunSpec, part: TrainingPart, network: Embedder
    ) -> None:
        self.rule, self.patience = lab.recipe.selection.rule, lab.recipe.selection.patience
        self.network, self.lab, self.seed = network, lab, spec.seed
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        if self.rule == "validation":
            self.labels = lab.images("train").labels[part.validation]
            self.source = Subset(lab.inputs("train", spec.seed), part.validation)

    def score(self, epoch: int) -> float | None:
        """Return what the rule judges the epoch by; keep its network if it is the best so far."""
        if self.rule == "last":
            return None
        value = self._value()
        if value is None:
            return None
        if self.best is None or value > self.best[0]:
            self.best = value, epoch, copy.deepcopy(self.network.state_dict())
        return value

    def _value(self) -> float | None:
        """Return MAP@R on the validation classes or R@1 on the test classes, if there are any."""
        if self.rule == "validation":
            embeddings = embed(self.network, self.source)
        else:
            embeddings = _embed_evaluated(self.network, self.lab, self.seed)
        if not has_directions(embeddings):
            return None
        if self.rule == "validation":
            return summarize(evaluate_queries(embeddings, self.labels))["MAP@R"]
        return summarize(_retrieve(embeddings, self.lab))["R@1"]

    def exhausted(self, epoch: int) -> bool:
        return bool(self.best and self.patience and epoch - self.best[1] >= self.patience)

    def restore(self, last: int) -> int:
        """Give the network the weights to be evaluated and return their epoch."""
        if self.best is None:
            return last
        self.network.load_state_dict(self.best[2])
        return self.best[1]


@dataclass(frozen=True)
class Results:
    """Metrics of one network on the test images, and the per-query results behind them."""

    metrics: dict[str, int | float]
    queries: QueryResults


def has_directions(embeddings: Tensor) -> bool:
    """Tell whether all embeddings are finite and none is zero; else the network has diverged."""
    return bool(torch.isfinite(embeddings).all() and embeddings.any(dim=1).all())


def _directed(features: Tensor) -> Tensor:
    """Give all-zero features, such as a blank image's after ReLU, one common direction."""
    blank = ~features.any(dim=1, keepdim=True)
    return features.masked_fill(blank, 1.0)


def _embed_evaluated(network: nn.Module, lab: Laboratory, seed: int) -> Tensor:
    """Embed the queries and below them the gallery, if there is one."""
    return torch.cat([embed(network, lab.inputs(side, seed)) for side in lab.evaluated])


def _retrieve(embeddings: Tensor, lab: Laboratory) -> QueryResults:
    """Search each query among the others, or in the gallery if the data set has one."""
    labels, ks = lab.images("test").labels, lab.recipe.evaluation.ks
    gallery = lab.dataset.gallery
    if gallery is None:
        return evaluate_queries(embeddings, labels, ks=ks)
    queries, rows = embeddings.split([len(labels), len(gallery)])
    return evaluate_queries(queries, labels, gallery=rows, gallery_labels=gallery.labels, ks=ks)


def _evaluate(embeddings: Tensor, lab: Laboratory, seed: int) -> Results:
    """Evaluate the embeddings of all evaluated sides; NMI is of the queries alone."""
    labels = lab.images("test").labels
    queries = _retrieve(embeddings, lab)
    restarts = lab.recipe.evaluation.nmi_restarts
    clustering = nmi(embeddings[: len(labels)], labels, restarts=restarts, seed=seed)
    return Results({**summarize(queries), "NMI": clustering}, queries)


def _baseline(
    spec: RunSpec, lab: Laboratory, watch: Stopwatch
) -> tuple[RunRecord, QueryResults | None]:
    with watch("prepare"):
        test = torch.cat([lab.features(side, spec.seed) for side in lab.evaluated])
        if spec.loss.name == "untrained":
            torch.manual_seed(spec.seed)
            head = build_head(lab.recipe.head, test.shape[1])
            test = embed(head, FeatureSource(test))
        elif spec.loss.name == "pca":
            test = pca(lab.features("train", spec.seed), test, lab.recipe.head.dim)
    with watch("evaluate"):
        results = _evaluate(_directed(test), lab, spec.seed)
    return _record(spec, lab, watch, None, results), results.queries


def _record(
    spec: RunSpec,
    lab: Laboratory,
    watch: Stopwatch,
    trained: Trained | None,
    results: Results | None,
) -> RunRecord:
    train_labels = trained.part.labels if trained else lab.images("train").labels
    seconds = dict(watch.seconds)
    seen = trained.images_seen if trained else 0
    training_seconds = sum(row.seconds for row in trained.curve) if trained else 0.0
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        recipe_id=spec.recipe.recipe_id,
        recipe=spec.recipe,
        loss=spec.loss.name,
        loss_source=LOSSES.get(spec.loss.name).source if trained else "built-in",
        params=dict(spec.loss.params),
        seed=spec.seed,
        fold=spec.fold,
        dataset=DatasetFacts(
            name=lab.dataset.name,
            fingerprint=lab.dataset.fingerprint,
            train_images=len(train_labels),
            train_classes=len(np.unique(train_labels)),
            test_images=len(lab.dataset.test),
            test_classes=len(lab.dataset.test.class_names),
            skipped=(),
        ),
        protocol_version=PROTOCOL_VERSION,
        weights_id=lab.weights_id,
        status="ok" if results else "diverged",
        selected_epoch=trained.selected_epoch if trained else None,
        metrics=results.metrics if results else {},
        loss_report=_report(trained.loss) if trained and results else {},
        curve=trained.curve if trained else (),
        cost=Cost(
            images_seen=seen,
            seconds=seconds,
            images_per_second=seen / training_seconds if seen else 0.0,
            peak_memory_mb=provenance.peak_memory_mb(lab.device.type),
            interruptions=0,
        ),
        provenance=provenance.collect(lab.device.type),
        queries_sha256=None,
    )


def _report(loss: nn.Module) -> dict[str, float]:
    report: Callable[[], dict[str, float]] | None = getattr(loss, "report", None)
    return report() if report is not None else {}


def _row(number: int, epoch: Epoch, score: float | None) -> EpochRow:
    loss = None if diverged(epoch) else epoch.loss
    return EpochRow(number, loss, epoch.seconds, score)


def _steps(lab: Laboratory, loss: str, epoch: int) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        lab.progress(f"training {loss}", epoch * total + done, lab.recipe.schedule.epochs * total)

    return report


def set_precision(precision: str) -> None:
    """Let CUDA use TF32 only if the recipe says so (fp32 is exact fp32 everywhere)."""
    allow = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow
    torch.backends.cudnn.allow_tf32 = allow


class Stopwatch:
    """Adds up wall seconds by phase: ``with watch("train"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as part of ``phase``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def find_record(spec: RunSpec, lab: Laboratory, out: Path) -> RunRecord | None:
    """Return the record of a run under ``out``, if it was made with the same data and loss."""
    source = "built-in" if spec.loss.name in BASELINES else LOSSES.get(spec.loss.name).source
    return store.find(out, spec, lab.dataset.fingerprint, source)


@dataclass(frozen=True)
class Outcome:
    """A cell of the plan after its turn: its record, its file, and whether it was there before."""

    record: RunRecord
    path: Path
    reused: bool


def with_baselines(plan: Plan) -> list[RunSpec]:
    """Return the plan's runs, those of the baselines first (for each seed; they need no fold)."""
    baselines = [
        RunSpec(plan.recipe, LossSpec(name), seed)
        for name in BASELINES
        for seed in range(plan.seeds)
    ]
    return baselines + plan.runs()


def run_all(
    plan: Plan, specs: Sequence[RunSpec], out: Path, device: torch.device, progress: Progress
) -> Iterator[Outcome]:
    """Make those of ``specs`` (of the plan's recipe) that have no record under ``out`` yet.

    Raises:
        MlbenchError: the data or the weights are not there or bad; named before the first run.
    """
    store.check_writable(out)
    lab = Laboratory(plan.recipe, plan.files, device, progress)
    known = [(spec, find_record(spec, lab, out)) for spec in specs]
    if any(record is None for _, record in known):
        lab.prepare()
    for spec, record in known:
        if record is not None:
            yield Outcome(record, store.record_path(out, spec), reused=True)
            continue
        made, queries = run_one(spec, lab)
        yield Outcome(made, store.save(out, made, queries), reused=False)
