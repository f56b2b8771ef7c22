"""Built-in datasets."""

from mlbench.interfaces import DatasetEntry

BUILTIN: tuple[DatasetEntry, ...] = ()
