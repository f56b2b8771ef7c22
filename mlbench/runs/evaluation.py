"""How a network is judged, in and after training."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlbench.metrics.evaluation import (
    Others,
    QueryResults,
    evaluate_queries,
    nmi,
    summarize,
)
from mlbench.metrics.roc import Verification
from mlbench.metrics.sides import as_sides
from mlbench.metrics.ties import TIE
from mlbench.metrics.verification import accept_rates, compare_pairs
from mlbench.recipes.spec import RunSpec
from mlbench.records.totals import RunTotals, totals_by_class
from mlbench.runs.ingredients import Ingredients, TrainingPart, Validation
from mlbench.training.embed import embed
from mlbench.training.network import Embedder


class Selection:
    """Remembers the network of the best epoch, if the recipe selects one."""

    def __init__(self, ingredients: Ingredients, spec: RunSpec, part: TrainingPart) -> None:
        self.rule, self.patience = (
            ingredients.recipe.selection.rule,
            ingredients.recipe.selection.patience,
        )
        self.ingredients, self.seed = ingredients, spec.seed
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        if self.rule == "validation":
            self.validation = ingredients.validation(part, spec.seed)
        elif self.rule == "test-best":
            for side in ingredients.evaluated:
                ingredients.inputs(side, spec.seed)

    def score(self, network: Embedder, epoch: int) -> float | None:
        """Return what the rule judges the epoch by; keep its network if it is the best so far."""
        if self.rule == "last":
            return None
        value = self._value(network)
        if value is None:
            return None
        if self.best is None or value > self.best[0] + TIE:
            self.best = value, epoch, copy.deepcopy(network.state_dict())
        return value

    def _value(self, network: Embedder) -> float | None:
        """Return MAP@R on validation classes or R@1 on test classes; None without directions."""
        if self.rule == "validation":
            embeddings = embed(network, self.validation.source)
            search, metric = functools.partial(validate, validation=self.validation), "MAP@R"
        else:
            embeddings = embed_evaluated(network, self.ingredients, self.seed)
            search, metric = functools.partial(_retrieve, ingredients=self.ingredients), "R@1"
        return summarize(search(embeddings))[metric] if has_directions(embeddings) else None

    def exhausted(self, epoch: int) -> bool:
        """Tell whether the recipe's patience is at its end."""
        return bool(self.best and self.patience and epoch - self.best[1] >= self.patience)

    def restore(self, network: Embedder, last: int) -> int:
        """Give the network the weights to be evaluated and return their epoch."""
        if self.best is None:
            return last
        network.load_state_dict(self.best[2])
        return self.best[1]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one network on the test images, their totals by class, and results by query.

    Attributes:
        metrics: as in the record.
        totals: by class.
        queries: results by query.
        pairs: the verification, if the recipe asks for it and there are pairs.
    """

    metrics: dict[str, int | float]
    totals: RunTotals
    queries: QueryResults
    pairs: Verification | None


def has_directions(embeddings: Tensor) -> bool:
    """Tell whether all embeddings are finite and none is zero; else the network has diverged."""
    return bool(torch.isfinite(embeddings).all() and embeddings.any(dim=1).all())


def directed(features: Tensor) -> Tensor:
    """Give all-zero features, such as a blank image's after ReLU, one common direction."""
    blank = ~features.any(dim=1, keepdim=True)
    return features.masked_fill(blank, 1.0)


def embed_evaluated(network: nn.Module, ingredients: Ingredients, seed: int) -> Tensor:
    """Embed the queries and below them the gallery, if there is one."""
    return torch.cat(
        [embed(network, ingredients.inputs(side, seed)) for side in ingredients.evaluated]
    )


def _retrieve(embeddings: Tensor, ingredients: Ingredients) -> QueryResults:
    """Search each query among the others, or in the gallery if the data set has one."""
    asked = ingredients.recipe.evaluation
    queries, others = _sides(embeddings, ingredients)
    labels = ingredients.images("test").labels
    return evaluate_queries(queries, labels, **others, ks=asked.ks, depths=asked.depths)


def _sides(embeddings: Tensor, ingredients: Ingredients) -> tuple[Tensor, Others]:
    """Return the queries, and what they are searched in, on the device of the runs."""
    tested, gallery = ingredients.images("test"), ingredients.dataset.gallery
    embeddings = embeddings.to(ingredients.device)
    if gallery is None:
        return embeddings, {"groups": tested.groups}
    queries, rows = embeddings.split([len(tested), len(gallery)])
    return queries, {
        "gallery": rows,
        "gallery_labels": gallery.labels,
        "groups": tested.groups,
        "gallery_groups": gallery.groups,
    }


def validate(embeddings: Tensor, validation: Validation) -> QueryResults:
    """Search each validation image among the others."""
    return evaluate_queries(embeddings, validation.labels, groups=validation.groups)


def evaluate_run(embeddings: Tensor, ingredients: Ingredients, seed: int) -> Evaluation:
    """Evaluate the embeddings of all evaluated sides; NMI is of the queries alone.

    Neighbours are the same on every device; k-means stays on the CPU, where NMI is.
    """
    labels, asked = ingredients.images("test").labels, ingredients.recipe.evaluation
    results = _retrieve(embeddings, ingredients)
    clustering = nmi(embeddings[: len(labels)], labels, restarts=asked.nmi_restarts, seed=seed)
    totals = totals_by_class(results.scores, labels, ingredients.dataset.test_numbers)
    metrics = {**summarize(results), "NMI": clustering}
    pairs = None
    if asked.verification:
        queries, others = _sides(embeddings, ingredients)
        pairs = compare_pairs(*as_sides(queries, labels, **others))
        metrics |= accept_rates(pairs) if pairs else {}
    return Evaluation(metrics, totals, results, pairs)
