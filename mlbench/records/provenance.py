"""Where and with what a run was made."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.resources
import os
import platform
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = ("torch", "torchvision", "timm", "pytorch-metric-learning", "numpy", "scikit-learn")
Execution = Literal["eager", "compile", "cuda-graph"]


@dataclass(frozen=True)
class Provenance:
    """Software and hardware of a run.

    Attributes:
        mlbench: version of mlbench.
        source: SHA-256 (12 hex digits) of mlbench's own Python and TOML files as they were run.
        commit: git commit of mlbench's own checkout, or "" if it is not run from one.
        dirty: whether that checkout had uncommitted changes to mlbench's files.
        python: version.
        packages: versions of the packages that may change a result.
        device: ``cpu`` or ``cuda``.
        hardware: model of the processor or GPU.
        driver: of the GPU, or "".
        threads: of torch on the CPU.
        system: operating system and machine.
        execution: how the training step was executed.
    """

    mlbench: str
    source: str
    commit: str
    dirty: bool
    python: str
    packages: dict[str, str]
    device: str
    hardware: str
    driver: str
    threads: int
    system: str
    execution: Execution


def collect(device: str, execution: Execution = "eager") -> Provenance:
    """Return the provenance of a run made now.

    Args:
        device: ``cpu`` or ``cuda``.
        execution: how its training step was executed.
    """
    import torch

    from mlbench._version import __version__

    commit, dirty = git_state()
    return Provenance(
        mlbench=__version__,
        source=source_digest(),
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages=_package_versions(),
        device=device,
        hardware=torch.cuda.get_device_name() if device == "cuda" else processor(),
        driver=nvidia_smi("driver_version").partition("\n")[0] if device == "cuda" else "",
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        execution=execution,
    )


def software() -> dict[str, str]:
    """Return what of the software may change a result: mlbench's source, package versions."""
    return {"source": source_digest(), **_package_versions()}


def forget_peak_memory(device: str) -> None:
    """Let the peak of a GPU's memory begin anew; that of the process cannot be forgotten."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb(device: str) -> float:
    """Return the peak memory in MB.

    On ``cuda`` the memory of tensors on the GPU since ``forget_peak_memory``, images that are kept
    there included and CUDA's own context not; else the memory of this process so far.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def source_digest() -> str:
    """Return the first 12 hex digits of the SHA-256 of mlbench's own Python and TOML files."""
    package = _package()
    total = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".toml")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


@functools.cache
def git_state() -> tuple[str, bool]:
    """Return commit and dirty flag of the checkout that holds this file, never of the user's."""
    package = _package()
    if not (package.parent / ".git").exists():
        return "", False
    commit = _output(["git", "-C", str(package), "rev-parse", "HEAD"])
    changes = _output(["git", "-C", str(package), "status", "--porcelain", "--", "."])
    return commit, bool(changes)


def _package() -> Path:
    """Return the folder of the package ``mlbench``, wherever in it this module lies."""
    return Path(str(importlib.resources.files("mlbench")))


def processor() -> str:
    """Return the model of the processor and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


@functools.cache
def nvidia_smi(fields: str) -> str:
    """Return fields (comma-separated) of each GPU, a line each; "" if there is none."""
    return _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
