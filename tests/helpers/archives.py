"""Small limits for archives, and what it is to be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlbench.errors import MlbenchError
from mlbench.system.archives import Limits, unpack

LIMITS = Limits(files=100, bytes=100_000)


def assert_refused(archive: Path, message: str, limits: Limits = LIMITS) -> None:
    """Check that it is refused in one line, and that nothing is left anywhere around it."""
    before = set(archive.parent.parent.rglob("*"))
    with pytest.raises(MlbenchError, match=message) as error:
        unpack(archive, "top", archive.parent / "out", limits)
    assert "\n" not in str(error.value)
    assert str(archive) in str(error.value)
    assert set(archive.parent.parent.rglob("*")) == before
