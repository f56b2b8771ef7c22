"""A process of the local executor. Nothing here imports torch before its threads are set."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from multiprocessing.connection import Connection
from typing import Any

from mlbench.errors import DataWarning
from mlbench.system.interrupts import Interrupted, install
from mlbench.system.streams import plain_streams


def serve(pipe: Connection, name: str, threads: int, gpu: str | None) -> None:
    """Make the runs that come through ``pipe`` until it ends or SIGTERM comes.

    Args:
        pipe: brings ``(RunSpec, Site)``, takes ``Phase`` and ``Finished``.
        name: of this process, for people.
        threads: of torch and all other libraries.
        gpu: the one to see, as in ``CUDA_VISIBLE_DEVICES``; None to leave that as it is.
    """
    # Ctrl-C reaches every process of a terminal; the parent passes it on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        with install(), plain_streams(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # the parent has said so
            _serve(pipe, name, threads)
    except (Interrupted, EOFError, BrokenPipeError):
        os._exit(0)  # Python would take seconds to clear torch away, while the parent waits


def _serve(pipe: Connection, name: str, threads: int) -> None:
    import torch

    from mlbench.runs.executors.crew import Finished
    from mlbench.runs.executors.maker import Maker

    torch.set_num_threads(threads)

    def report(phase: Any) -> None:
        pipe.send(phase)

    maker = Maker(name, report)
    while True:
        spec, site = pipe.recv()
        outcome = maker.make(spec, site)
        pipe.send(Finished(spec, outcome))
        if outcome and outcome.device_lost:
            raise EOFError  # the parent starts another process in its place


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
