"""What a bug report needs to say of the machine, gathered without loading torch."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from mlbench._version import DISTRIBUTION, __version__
from mlbench.errors import MlbenchError
from mlbench.records import provenance
from mlbench.registry import BACKBONES, DATASETS, LOSSES
from mlbench.system.files import cache_dir

_PREFIXES = ("MLBENCH_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "CUBLAS_")
_PREFIXES += ("NVIDIA_VISIBLE", "TORCH", "PYTORCH_", "PYTHONHASHSEED", "RAY_", "MALLOC_", "GLIBC_")
"""Of environment variables that can change a result or a speed."""

_SECRET = re.compile("TOKEN|PASSWORD|SECRET|KEY|AUTH|CREDENTIAL")
"""In the name of a variable whose value is nobody's business."""

_GPU_FIELDS = "name,driver_version,memory.total"


def environment() -> dict[str, dict[str, Any]]:
    """Return the facts in sections: plain values, lists and dictionaries, ready for JSON."""
    return {
        "mlbench": _mlbench(),
        "machine": _machine(),
        "threads": _threads(),
        "packages": _packages(),
        "plugins": _plugins(),
        "cache": _cache(),
        "variables": _variables(),
    }


def _variables() -> dict[str, str]:
    return {
        name: "(set, not shown)" if _SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES)
    }


def _mlbench() -> dict[str, Any]:
    commit, dirty = provenance.git_state()
    source = provenance.source_digest()
    return {"version": __version__, "source": source, "commit": commit, "dirty": dirty}


def _machine() -> dict[str, Any]:
    gpus = provenance.nvidia_smi(_GPU_FIELDS)
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": provenance.processor(),
        "memory_gb": _memory_gb(),
        "gpus": gpus.splitlines(),
    }


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError, AttributeError):  # not on this system
        return None


def _threads() -> dict[str, Any]:
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    return {"cores": os.cpu_count(), "usable": cores, "quota": _cpu_quota()}


def _cpu_quota() -> float | None:
    """Return how many cores a container may use at once; None without such a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _packages() -> dict[str, str]:
    """Return the versions of all that mlbench may use and that is installed."""
    named = set(provenance.PACKAGES)
    with suppress(PackageNotFoundError):  # run from a checkout that is not installed
        named |= {re.split(r"[^\w.-]", line)[0] for line in requires(DISTRIBUTION) or ()}
    versions = {}
    for name in sorted(named):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _plugins() -> dict[str, Any]:
    registries = {"losses": LOSSES, "datasets": DATASETS, "backbones": BACKBONES}
    found = {
        kind: [f"{e.name} ({e.source})" for e in each.entries() if e.source != "built-in"]
        for kind, each in registries.items()
    }
    return {**found, "problems": [line for each in registries.values() for line in each.problems]}


def _cache() -> dict[str, Any]:
    try:
        folder = cache_dir()
    except MlbenchError as error:
        return {"problem": str(error)}
    sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"folder": str(folder), "files": len(sizes), "size_mb": round(sum(sizes) / 1e6, 1)}


def flat(facts: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the facts as lines of name and text; empty sections say so."""
    lines = []
    for section, values in facts.items():
        lines += [(f"{section}.{name}", _text(value)) for name, value in values.items()]
        lines += [] if values else [(section, "none")]
    return lines


def _text(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(value) or "none"
    return "none" if value is None else str(value)
