"""How long work tells how far it is: callables, each given what is done and what there is to do."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Done and total."""

ByteProgress = Callable[[int, int | None], None]
"""Bytes done and in all, None where that is not known."""

FileProgress = Callable[[str, int, int | None], None]
"""The file's name, then as ``ByteProgress``."""

PhaseProgress = Callable[[str, int, int], None]
"""The phase, then as ``Progress``."""
