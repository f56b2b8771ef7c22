"""Seeded damage: of text, bytes, tables and arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Rng = np.random.Generator

HOSTILE: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**63, 2**70, -(2**70)),
    *(0.0, -0.0, 0.5, -1.5, 1.0000000001, 1e-320, 1e308, math.inf, -math.inf, math.nan),
    *(True, False, "", " ", "none", "imagenet", "auto", "softtriple", "folder:", "folder:/", "nan"),
    *("../../x", "/", "a" * 5000, "\x00", "\x1b[31m", "é\u202e", "[red]", "%s{0}", "0", "f" * 64),
    *([], [1], [1, 1], [1, 2, 4, 8], [[1]], ["1"], {}, {"a": 1}, {"name": {}}),
)
"""Values that do not belong where they are put, or only just."""

_SNIPPETS = ("\x00", "'''", '"', "[[", "]", "{", "= =", "\n\n", "nan", "1e999", "\\", "[" * 3000)
_SNIPPETS += ("#", "\ufeff", "\u202e", "a." * 500, "-", "0x", "1_000", "\t", '\\ud800"', "9" * 5000)


def pick(rng: Rng, choices: Any) -> Any:
    """Return one of a sequence as it is; numpy's own choice would turn it into an array."""
    return choices[int(rng.integers(len(choices)))]


def span(rng: Rng, length: int) -> slice:
    """Return a random part of something so long, often a short one."""
    start = int(rng.integers(length + 1))
    return slice(start, start + int(rng.integers(1, pick(rng, (2, 9, max(length, 3))))))


def spoil_text(rng: Rng, text: str) -> str:
    """Return text cut off, shuffled, or with parts left out, doubled or put in."""
    part, way = span(rng, len(text)), int(rng.integers(6))
    if way == 0:
        return text[: part.start]
    if way == 1:
        return text[: part.start] + text[part.stop :]
    if way == 2:
        return text[: part.stop] + text[part.start :]
    if way == 3:
        return text[: part.start] + pick(rng, _SNIPPETS) + text[part.start :]
    if way == 4:
        lines = text.splitlines(keepends=True)
        rng.shuffle(lines)
        return "".join(lines)
    return text[: part.start] + chr(int(rng.integers(1, 0x500))) + text[part.start + 1 :]


def spoil_bytes(rng: Rng, content: bytes) -> bytes:
    """Return bytes cut off, with bits flipped, or with parts zeroed, left out or put in."""
    part, way = span(rng, len(content)), int(rng.integers(6))
    if way == 0:
        return content[: part.start]
    if way == 1:
        return content[: part.start] + content[part.stop :]
    if way == 2:
        return content[: part.start] + bytes(len(content[part])) + content[part.stop :]
    if way == 3:
        return content[: part.start] + rng.bytes(5) + content[part.start :]
    if way == 4:
        return content + content[part]
    spoilt = bytearray(content)
    for position in rng.integers(len(content), size=int(rng.integers(1, 9))):
        spoilt[int(position)] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def paths(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to every value of nested tables, the tables' own included."""
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from paths(value, (*above, key))


def changed(table: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy with another value at ``path``."""
    key, *rest = path
    inner = value if not rest else changed(table[key], tuple(rest), value)
    return {**table, key: inner}


def without(table: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy without the entry at ``path``."""
    key, *rest = path
    if rest:
        return {**table, key: without(table[key], tuple(rest))}
    return {k: v for k, v in table.items() if k != key}


def spoil_table(rng: Rng, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with one entry replaced, left out, renamed or added."""
    path, way = pick(rng, list(paths(table))), int(rng.integers(5))
    if way == 0:
        return without(table, path)
    if way == 1:
        typo = (*path[:-1], spoil_text(rng, path[-1]) or "x")
        return changed(without(table, path), typo, 1)
    if way == 2:
        return changed(table, (*path[:-1], "nonsense"), pick(rng, HOSTILE))
    return changed(table, path, pick(rng, HOSTILE))


def to_toml(table: Mapping[str, Any]) -> str:
    """Return a table as TOML; tables within it inline."""
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in table.items())


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)
