"""Where mlbench keeps what it can make again."""

import os
from pathlib import Path

import platformdirs


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder of the cache: ``$MLBENCH_CACHE``, or the user's cache folder."""
    root = os.environ.get("MLBENCH_CACHE") or platformdirs.user_cache_dir("mlbench")
    folder = Path(root, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
