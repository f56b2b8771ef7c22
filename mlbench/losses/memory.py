"""Cross-batch memory around a loss of pairs (Wang et al., CVPR 2020)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError, unknown_name
from mlbench.losses.batch import PairLoss
from mlbench.losses.entries_pairs import PAIRS

COMPARABLE = (
    "contrastive_cosine",
    "contrastive",
    "triplet",
    "ranked_list",
    "circle",
    "supcon",
    "ntxent",
    "intra_pair_variance",
)
"""Losses that can compare a batch with other images than its own."""


class CrossBatchMemory(nn.Module):
    """A loss of pairs within a batch, and of the batch against the embeddings of earlier ones.

    A batch is put into the memory after its loss is computed, so that no image meets its own copy;
    once the memory is full, the oldest embeddings leave it.

    Args:
        num_classes: ``C``.
        embedding_dim: ``D``.
        loss: the loss of pairs, with its declared parameters.
        memory: how many embeddings are kept, ``M``.
        start: the step from which they are kept and compared with.
        weight: of the loss against the memory.

    Attributes:
        rows: buffer of shape ``(M, D)``.
        classes: buffer of shape ``(M,)``, -1 where there is no embedding yet.

    Raises:
        MlbenchError: the loss compares a batch with nothing but itself, or no memory.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        loss: str,
        memory: int,
        start: int,
        weight: float,
    ) -> None:
        super().__init__()
        if loss not in COMPARABLE:
            raise unknown_name("loss of pairs for xbm.loss", loss, COMPARABLE)
        if memory < 1 or start < 0:
            raise MlbenchError("xbm: memory must be at least 1, start at least 0")
        entry = next(entry for entry in PAIRS if entry.name == loss)
        module = entry.build(num_classes, embedding_dim, entry.defaults)
        assert isinstance(module, PairLoss)
        self.loss, self.start, self.weight = module, start, weight
        self.rows: Tensor
        self.classes: Tensor
        self.oldest: Tensor
        self.register_buffer("rows", torch.zeros(memory, embedding_dim))
        self.register_buffer("classes", torch.full((memory,), -1))
        self.register_buffer("oldest", torch.tensor(0))

    def forward(self, embeddings: Tensor, labels: Tensor, context: Mapping[str, Any]) -> Tensor:
        """Return the scalar loss of unit ``(B, D)`` embeddings and int64 ``(B,)`` labels."""
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.to(self.rows.dtype)
            loss = self.loss(x, labels)
            if context["step"] < self.start:
                return loss
            loss = loss + self.weight * self.loss.against(x, labels, self.rows, self.classes)
            if self.training:
                self._remember(x.detach(), labels)
            return loss

    def _remember(self, x: Tensor, y: Tensor) -> None:
        """Put a batch in the place of the oldest rows; those of the graph stay as they are."""
        size = len(self.rows)
        x, y = x[-size:], y[-size:]
        places = (self.oldest + torch.arange(len(x), device=x.device)) % size
        self.rows = self.rows.index_copy(0, places, x)
        self.classes = self.classes.index_copy(0, places, y)
        self.oldest = (self.oldest + len(x)) % size
