"""Numbers as callers give them: Python's, NumPy's or torch's. Imports neither of the two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlbench.errors import MlbenchError

LARGEST_SEED = 2**63 - 1
_TOO_LONG = 2**1000  # for a float; Python does not even print integers of 4,300 digits


def plain(value: Any) -> Any:
    """Return scalars and arrays of NumPy or torch as Python's own, within lists and tables too.

    What is neither comes back as it is, for its type to be checked where it is used; integers of
    more than 300 digits as infinity, which no check takes and every message can show.
    """
    if isinstance(value, int):
        return value if abs(value) < _TOO_LONG else _infinity(value)
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([plain(each) for each in value])
    if isinstance(value, type) or not hasattr(value, "tolist"):
        return value
    try:
        content = value.tolist()
        # NumPy's extended precision has no counterpart, and stays as it is.
        return float(content) if hasattr(content, "tolist") else _extended(content)
    except (TypeError, ValueError, RuntimeError):  # no values: a tensor on the meta device
        return value


def _infinity(value: int) -> float:
    return math.inf if value > 0 else -math.inf


def _extended(content: Any) -> Any:
    return plain(content) if isinstance(content, list | int) else content


def whole_number(value: object, what: str, low: int, high: int | None = None) -> int:
    """Return an integer of Python, NumPy or torch as ``int``.

    Args:
        value: as the caller gave it.
        what: its name, for messages.
        low: the least value.
        high: the greatest; None for no bound.

    Raises:
        MlbenchError: it is no integer, or out of range.
    """
    number = plain(value)
    if type(number) is not int or number < low or (high is not None and number > high):
        bound = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise MlbenchError(f"{what}: {number!r} must be an integer {bound}")
    return number


def check_seed(value: object, what: str = "seed") -> int:
    """Return a seed as ``int``; MlbenchError unless it is an integer in 0 .. 2^63 - 1."""
    return whole_number(value, what, 0, LARGEST_SEED)
