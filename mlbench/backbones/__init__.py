"""Built-in backbones."""

from mlbench.interfaces import BackboneEntry

BUILTIN: tuple[BackboneEntry, ...] = ()
