"""Built-in losses."""

from mlbench.interfaces import LossEntry

BUILTIN: tuple[LossEntry, ...] = ()
