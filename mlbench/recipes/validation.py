"""Plain tables, as TOML or JSON give them, checked against the types of dataclasses."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mlbench.errors import MlbenchError, unknown_name
from mlbench.scalars import plain

T = TypeVar("T")

_KIND_NAMES: dict[type, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    types.NoneType: "nothing",
}


@dataclass(frozen=True)
class Range:
    """Bounds of a number; ``low`` itself is excluded if ``open_low``."""

    low: float
    high: float = float("inf")
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return low if self.high == float("inf") else f"{low} and at most {self.high:g}"


def build(cls: type[T], table: object, where: str) -> T:
    """Build the (nested) dataclass ``cls`` from plain ``table``, every key and value checked.

    A field that has a default may be missing.

    Args:
        cls: the dataclass.
        table: nested dictionaries, as TOML or JSON give them.
        where: the file, for messages.

    Raises:
        MlbenchError: a key is unknown (near misses are named) or missing, or a value is wrong.
    """
    if not isinstance(table, Mapping):
        raise MlbenchError(f"{where}: expected a table, got {table!r}")
    hints = field_types(cls)
    for key in table:
        if key not in hints:
            error = unknown_name("key", str(key), hints)
            raise MlbenchError(f"{where}: {error}")
    missing = [name for name in _required(cls) if name not in table]
    if missing:
        raise MlbenchError(f"{where}: missing {', '.join(missing)}")
    return cls(**{k: check_value(hints[k], v, _join(where, k)) for k, v in table.items()})


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their ranges."""
    return get_type_hints(cls, include_extras=True)


@functools.cache
def _required(cls: Any) -> tuple[str, ...]:
    """Return the names of the fields that have no default."""
    return tuple(field.name for field in fields(cls) if field.default is MISSING)


def check_value(kind: Any, value: object, where: str) -> Any:
    """Return ``value`` as ``kind`` (a field's type); MlbenchError if it does not fit.

    Scalars and arrays of NumPy and torch count as Python's own.
    """
    return _checker(kind)(plain(value), where)


_Checker = Callable[[Any, str], Any]


@functools.cache
def _checker(kind: Any) -> _Checker:
    """Return the check of a type, taken apart once for all values."""
    if is_dataclass(kind):
        return functools.partial(build, kind)  # type: ignore[arg-type]
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return functools.partial(_check_range, _checker(args[0]), args[1])
    if origin is Literal:
        return functools.partial(_check_choice, args)
    if origin in (Union, types.UnionType):
        return functools.partial(_check_union, {each: _checker(each) for each in args})
    if origin is tuple:
        return functools.partial(_check_list, _checker(args[0]))
    if origin is dict:
        return functools.partial(_check_table, _checker(args[1]))
    return functools.partial(_check_scalar, kind)


def _check_range(check: _Checker, allowed: Range, value: object, where: str) -> Any:
    checked = check(value, where)
    if checked not in allowed:
        raise MlbenchError(f"{where}: {value!r} must be {allowed}")
    return checked


def _check_choice(choices: tuple[object, ...], value: object, where: str) -> Any:
    if value not in choices:
        raise MlbenchError(f"{where}: {value!r} is not one of {', '.join(map(str, choices))}")
    return value


def _check_union(checks: Mapping[Any, _Checker], value: object, where: str) -> Any:
    exact = checks.get(type(value))
    if exact is not None:
        return exact(value, where)
    problems = []
    for check in checks.values():
        try:
            return check(value, where)
        except MlbenchError as error:
            problems.append(str(error).removeprefix(f"{where}: "))
    raise MlbenchError(f"{where}: {'; '.join(problems)}")


def _check_list(check: _Checker, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise MlbenchError(f"{where}: expected a list, got {value!r}")
    return tuple(check(item, where) for item in value)


def _check_table(check: _Checker, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise MlbenchError(f"{where}: expected a table, got {value!r}")
    return {str(k): check(v, _join(where, str(k))) for k, v in value.items()}


def _check_scalar(kind: type, value: object, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float) and value - value != 0:
        raise MlbenchError(f"{where}: {value!r} is not a finite number")
    if type(value) is not kind:
        raise MlbenchError(f"{where}: expected {_KIND_NAMES[kind]}, got {value!r}")
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"
