"""What a run leaves: one JSON a run, per-query scores, trials."""

from mlbench.records.migrations import SCHEMA_VERSION
from mlbench.records.record import PROTOCOL_VERSION, RunRecord
from mlbench.records.store import load_results, read_results, save

__all__ = [
    "PROTOCOL_VERSION",
    "SCHEMA_VERSION",
    "RunRecord",
    "load_results",
    "read_results",
    "save",
]
