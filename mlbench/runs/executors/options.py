"""Where the runs of a plan are made: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExecutorOptions:
    """What a user asked for; importing this costs nothing.

    Attributes:
        name: ``local`` or ``ray``.
        jobs: processes of the local executor; 1 makes the runs in this process.
        address: of the Ray cluster, as ``ray.init`` takes it.
        gpus_per_run: GPUs that Ray keeps for a run, also a part of one; None for one where the
            cluster has GPUs and the device is not ``cpu``.
        cpus_per_run: cores that Ray keeps for a run, and its threads.
    """

    name: Literal["local", "ray"] = "local"
    jobs: int = 1
    address: str = "auto"
    gpus_per_run: float | None = None
    cpus_per_run: float = 1.0
