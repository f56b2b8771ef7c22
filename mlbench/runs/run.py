"""Make runs: from a RunSpec to its record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mlbench.losses.baselines import BASELINES
from mlbench.metrics.evaluation import QueryResults
from mlbench.progress import PhaseProgress
from mlbench.recipes.spec import RunSpec, digest
from mlbench.records import provenance
from mlbench.records.migrations import SCHEMA_VERSION
from mlbench.records.provenance import Execution
from mlbench.records.record import PROTOCOL_VERSION, Cost, DatasetFacts, EpochRow, RunRecord
from mlbench.registry import LOSSES
from mlbench.runs.baselines import embed_baseline
from mlbench.runs.evaluation import (
    Evaluation,
    Selection,
    directed,
    embed_evaluated,
    evaluate_run,
    has_directions,
)
from mlbench.runs.ingredients import Ingredients, TrainingPart, training_part
from mlbench.system.interrupts import Interrupted
from mlbench.system.known_state import known_state
from mlbench.system.process import memory_released
from mlbench.training.batches import Subset
from mlbench.training.checkpoint import Checkpoints
from mlbench.training.network import Embedder
from mlbench.training.trainer import Epoch, Trainer, diverged


@dataclass(frozen=True)
class Trained:
    """A trained network with what its record will say of the training."""

    network: Embedder
    loss: nn.Module
    curve: tuple[EpochRow, ...]
    images_seen: int
    selected_epoch: int
    part: TrainingPart
    interruptions: int
    execution: Execution

    @property
    def diverged(self) -> bool:
        """Whether the last epoch's loss was not finite."""
        return self.curve[-1].loss is None


Keep = Callable[[RunRecord, Embedder, nn.Module | None, Tensor], None]


@memory_released()
def run_one(
    spec: RunSpec, ingredients: Ingredients, out: Path | None = None, keep: Keep | None = None
) -> tuple[RunRecord, QueryResults | None]:
    """Make one run.

    Args:
        spec: the run, of the ingredients' recipe.
        ingredients: what it needs.
        out: the results folder, to keep checkpoints there and to go on from them; None does not.
        keep: given the record, the network, its loss (None of a baseline) and its embeddings of
            the evaluated images.

    Returns:
        its record, and the per-query results behind its metrics (None if it diverged).

    Raises:
        Interrupted: a signal asked to stop; what was trained is in a checkpoint.
    """
    provenance.forget_peak_memory(ingredients.device.type)
    with known_state(ingredients.recipe.training.precision, spec.seed):
        return _run_one(spec, ingredients.of_split(spec.split), out, keep)


def _run_one(
    spec: RunSpec, ingredients: Ingredients, out: Path | None, keep: Keep | None
) -> tuple[RunRecord, QueryResults | None]:
    watch = Stopwatch()
    if spec.loss.name in BASELINES:
        return _baseline(spec, ingredients, watch, keep)
    trained = train(spec, ingredients, watch, out)
    if trained.diverged:
        return _record(spec, ingredients, watch, trained, None), None
    with watch("evaluate"):
        embeddings = embed_evaluated(trained.network, ingredients, spec.seed)
        results = (
            evaluate_run(embeddings, ingredients, spec.seed) if has_directions(embeddings) else None
        )
    record = _record(spec, ingredients, watch, trained, results)
    if keep is not None and results is not None:
        keep(record, trained.network, trained.loss, embeddings)
    return record, results.queries if results else None


def train(
    spec: RunSpec, ingredients: Ingredients, watch: Stopwatch, out: Path | None = None
) -> Trained:
    """Train the loss of ``spec`` to the last epoch, or until it diverges.

    Arguments are those of ``run_one``; phases are timed with ``watch``.
    """
    with watch("prepare"):
        entry = LOSSES.get(spec.loss.name)
        part = training_part(
            ingredients.images("train").labels, ingredients.recipe, spec.seed, spec.fold
        )
        # Before the network: what is computed here may seed the generators that training draws on.
        selection = Selection(ingredients, spec, part)
        kept = None if out is None else Checkpoints(out, spec, _identity(spec, ingredients))
        network = ingredients.network(spec.seed)
        num_classes = int(part.labels.max()) + 1
        loss = entry.build(num_classes, ingredients.recipe.head.dim, spec.loss.arguments)
        loss = loss.to(ingredients.device)
        source = Subset(ingredients.inputs("train", spec.seed, augmented=True), part.members)
        levels = ingredients.images("train").levels
        trainer = Trainer(
            network,
            loss,
            entry,
            source,
            part.labels,
            spec.trained,
            spec.seed,
            None if levels is None else levels[part.members],
        )
        training = _Training(trainer, selection, watch, kept)
        training.resume()
    if ingredients.files.compile:
        with watch("compile"):
            trainer.compile()
    with watch("train"):
        training.run(
            spec.trained.schedule.epochs, f"training {spec.loss.name}", ingredients.progress
        )
    rows = training.rows
    chosen = selection.restore(network, len(rows) - 1)
    seen = len(rows) * sum(trainer.sizes)
    return Trained(
        network,
        loss,
        tuple(rows),
        seen,
        chosen,
        part,
        training.interruptions,
        trainer.execution,
    )


def _identity(spec: RunSpec, ingredients: Ingredients) -> str:
    """Name whatever changes the course of a training."""
    facts = [spec.run_id, ingredients.dataset.fingerprint, LOSSES.get(spec.loss.name).source]
    here = [ingredients.device.type, ingredients.execution, provenance.software()]
    return digest([*facts, ingredients.weights_id, *here])


class _Training:
    """The training of one run: its curve so far, and all of it into checkpoints and back."""

    def __init__(
        self, trainer: Trainer, selection: Selection, watch: Stopwatch, kept: Checkpoints | None
    ) -> None:
        self.trainer, self.selection, self.watch, self.kept = trainer, selection, watch, kept
        self.rows: list[EpochRow] = []
        self.interruptions = 0

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        state = self.kept.load() if self.kept else None
        if state is None:
            return
        self.rows = [EpochRow(**row) for row in state["curve"]]
        self.interruptions = state["interruptions"] + 1
        self.watch.seconds.update(state["seconds"])
        self.selection.best = state["best"]
        self.trainer.restore(state["trainer"])

    def save(self) -> None:
        """Write a checkpoint, if any are kept."""
        if self.kept is None:
            return
        self.kept.save(
            {
                "curve": [asdict(row) for row in self.rows],
                "interruptions": self.interruptions,
                "seconds": self.watch.so_far(),
                "best": self.selection.best,
                "trainer": self.trainer.state(),
            }
        )

    def run(self, epochs: int, phase: str, progress: PhaseProgress) -> None:
        """Train up to so many ``epochs``; Interrupted leaves a checkpoint.

        ``progress`` is told the phase with the last epoch's loss, and the images done and in all.
        """
        images = list(accumulate(self.trainer.sizes, initial=0))

        def after_step(done: int, _: int) -> None:
            loss = f", loss {self.rows[-1].loss:.4g}" if self.rows else ""
            before = len(self.rows) * images[-1]
            progress(phase + loss, before + images[done], epochs * images[-1])
            self._save_if_due()

        try:
            while not self._finished(epochs):
                self._epoch(after_step)
                self._save_if_due()
        except Interrupted:
            self.save()
            raise

    def _epoch(self, after_step: Callable[[int, int], None]) -> None:
        number = len(self.rows)
        epoch = self.trainer.epoch(number, after_step)
        score = None if diverged(epoch) else self.selection.score(self.trainer.network, number)
        self.rows.append(_row(number, epoch, score))

    def _finished(self, epochs: int) -> bool:
        if not self.rows:
            return False
        last = self.rows[-1]
        return last.loss is None or len(self.rows) == epochs or self.selection.exhausted(last.epoch)

    def _save_if_due(self) -> None:
        if self.kept is not None and self.kept.due():
            self.save()


def _baseline(
    spec: RunSpec, ingredients: Ingredients, watch: Stopwatch, keep: Keep | None
) -> tuple[RunRecord, QueryResults | None]:
    with watch("prepare"):
        network, embeddings = embed_baseline(spec, ingredients)
    with watch("evaluate"):
        results = evaluate_run(directed(embeddings), ingredients, spec.seed)
    record = _record(spec, ingredients, watch, None, results)
    if keep is not None:
        keep(record, network, None, embeddings)
    return record, results.queries


def _record(
    spec: RunSpec,
    ingredients: Ingredients,
    watch: Stopwatch,
    trained: Trained | None,
    results: Evaluation | None,
) -> RunRecord:
    train_labels = trained.part.labels if trained else ingredients.images("train").labels
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
        split=spec.split,
        dataset=DatasetFacts(
            name=ingredients.dataset.name,
            fingerprint=ingredients.dataset.fingerprint,
            train_images=len(train_labels),
            train_classes=len(np.unique(train_labels)),
            test_images=len(ingredients.dataset.test),
            test_classes=len(ingredients.dataset.test.class_names),
            skipped=ingredients.dataset.skipped,
        ),
        protocol_version=PROTOCOL_VERSION,
        weights_id=ingredients.weights_id,
        status="ok" if results else "diverged",
        selected_epoch=trained.selected_epoch if trained else None,
        metrics=results.metrics if results else {},
        loss_report=_report(trained.loss) if trained and results else {},
        curve=trained.curve if trained else (),
        cost=Cost(
            images_seen=seen,
            seconds=seconds,
            images_per_second=seen / training_seconds if seen else 0.0,
            peak_memory_mb=provenance.peak_memory_mb(ingredients.device.type),
            interruptions=trained.interruptions if trained else 0,
        ),
        provenance=provenance.collect(
            ingredients.device.type, trained.execution if trained else "eager"
        ),
        queries_sha256=None,
        needs=LOSSES.get(spec.loss.name).needs if trained else "",
        verification=results.pairs if results else None,
        class_totals=results.totals.pack() if results else None,
    )


def _report(loss: nn.Module) -> dict[str, float]:
    report: Callable[[], dict[str, float]] | None = getattr(loss, "report", None)
    return report() if report is not None else {}


def _row(number: int, epoch: Epoch, score: float | None) -> EpochRow:
    loss = None if diverged(epoch) else epoch.loss
    return EpochRow(number, loss, epoch.seconds, score)


class Stopwatch:
    """Adds up wall seconds by phase: ``with watch("train"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as part of ``phase``."""
        self._running = phase, time.perf_counter()
        try:
            yield
        finally:
            self.seconds, self._running = self.so_far(), None

    def so_far(self) -> dict[str, float]:
        """Return the seconds by phase, those of the phase under way included."""
        if self._running is None:
            return dict(self.seconds)
        phase, started = self._running
        passed = time.perf_counter() - started
        return {**self.seconds, phase: self.seconds.get(phase, 0.0) + passed}
