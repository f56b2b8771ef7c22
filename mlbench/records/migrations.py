"""Records of older schemas, read as if they were of the newest; nothing is written back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlbench.errors import MlbenchError

SCHEMA_VERSION = 3


def migrate(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a record's plain table to the newest schema, one step after the other.

    Args:
        table: as read from its file; left as it is.
        where: the file, for messages.

    Raises:
        MlbenchError: the schema is newer than this mlbench, or none that ever was.
    """
    version = table.get("schema_version")
    if type(version) is not int or version < 1:
        raise MlbenchError(
            f"{where}: unknown schema_version {version!r}; the file may have been edited"
        )
    if version > SCHEMA_VERSION:
        raise MlbenchError(
            f"{where}: record of schema {version}, made by a newer mlbench (this one reads up to "
            f"schema {SCHEMA_VERSION}); upgrade mlbench to read it"
        )
    for step in range(version, SCHEMA_VERSION):
        table = {**_STEPS[step](table, where), "schema_version": step + 1}
    return table


def _from_1(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill in what schema 1 could not say: every run was eager, unbroken, and took all images."""
    table = _with(table, where, "dataset", skipped=[])
    table = _with(table, where, "provenance", execution="eager")
    table = _with(table, where, "cost", interruptions=0)
    return _added(table, where, queries_sha256=None)


def _from_2(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Leave the totals by class empty; ``mlbench results upgrade`` can make them."""
    return _added(table, where, class_totals=None)


def _with(table: dict[str, Any], where: str, section: str, **new: Any) -> dict[str, Any]:
    """Add entries to a section; one that is no table is left for the checks to name."""
    found = table.get(section)
    if not isinstance(found, dict):
        return table
    return {**table, section: _added(found, f"{where}: {section}", **new)}


def _added(table: dict[str, Any], where: str, **new: Any) -> dict[str, Any]:
    present = new.keys() & table.keys()
    if present:
        names = ", ".join(sorted(present))
        raise MlbenchError(
            f"{where}: {names} does not belong to its schema; the file may have been edited"
        )
    return {**table, **new}


_STEPS: dict[int, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    1: _from_1,
    2: _from_2,
}
"""By schema, the step to the next one."""
