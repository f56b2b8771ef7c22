"""Finished runs told to experiment trackers: TensorBoard and MLflow.

A run is told when it is finished, from its record, by the process that hands out the runs. So every
executor is tracked alike, no training waits for a tracker, and a tracker shows what the record
says.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlbench.errors import MlbenchWarning, not_installed, unknown_name

if TYPE_CHECKING:
    from mlbench.records.record import RunRecord

EXPERIMENT = "mlbench"
"""Name of the MLflow experiment that holds the runs."""

_NEEDS = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
KINDS = tuple(_NEEDS)

_MLFLOW_BATCH = 100  # parameters in a request, as the server accepts them; it takes more metrics
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that is not there should cost seconds once, not minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker that a user asked for.

    Attributes:
        kind: ``tensorboard`` or ``mlflow``.
        where: a folder for TensorBoard, a tracking URI for MLflow; "" for the default.
    """

    kind: str
    where: str = ""


def parse_tracker(text: str) -> TrackerSpec:
    """Read ``KIND[:WHERE]``; MlbenchError if the kind is unknown or its package not installed."""
    kind, _, where = text.partition(":")
    if kind not in _NEEDS:
        raise unknown_name("tracker", kind, _NEEDS)
    if any(importlib.util.find_spec(package) is None for package in _NEEDS[kind]):
        raise not_installed(f"--track {kind} needs the package {_NEEDS[kind][0]}", kind)
    return TrackerSpec(kind, where)


class Tracker(Protocol):
    """Takes finished runs."""

    def log(self, name: str, record: RunRecord) -> None:
        """Take one run; may raise whatever its service raises."""
        ...


class Tracking:
    """Tells trackers of finished runs. One that fails is named in a warning and told no more.

    Args:
        specs: the trackers.
        out: the results folder, in which they keep their files unless told otherwise.
    """

    def __init__(self, specs: Sequence[TrackerSpec], out: Path) -> None:
        self._trackers: dict[str, Callable[[], Tracker] | Tracker] = {
            f"{spec.kind}:{spec.where}".rstrip(":"): _opener(spec, out) for spec in specs
        }

    def log(self, path: Path, record: RunRecord) -> None:
        """Tell every tracker of a run, named after the ``path`` of its record."""
        name = f"{path.parent.name}/{path.stem}"
        for label in list(self._trackers):
            try:
                self._tell(label, name, record)
            except Exception as error:  # whatever a service may raise must not end a run
                del self._trackers[label]
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                warnings.warn(
                    f"--track {label}: logging stopped: {reason}", MlbenchWarning, stacklevel=2
                )

    def _tell(self, label: str, name: str, record: RunRecord) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracker's own code
            tracker = self._trackers[label]
            if callable(tracker):
                tracker = self._trackers[label] = tracker()
            tracker.log(name, record)


def _opener(spec: TrackerSpec, out: Path) -> Callable[[], Tracker]:
    if spec.kind == "tensorboard":
        return lambda: TensorBoard(Path(spec.where) if spec.where else out / "tensorboard")
    default = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.resolve() / 'mlflow.db'}"
    return lambda: MLflow(spec.where or default)


def parameters(record: RunRecord) -> dict[str, Any]:
    """Return what a run was made with, flat: recipe fields, loss, its parameters, seed, fold."""
    own = {f"{record.loss}.{name}": value for name, value in record.params.items()}
    parts = {"fold": record.fold, "split": record.split}
    chance = {"seed": record.seed, **{k: "" if v is None else v for k, v in parts.items()}}
    return {**record.recipe.flat(), "loss": record.loss, **own, **chance}


def curves(record: RunRecord) -> dict[str, list[tuple[int, float]]]:
    """Return loss and score as ``(epoch, value)``, without epochs that have none."""
    values = {
        "loss": [(row.epoch, row.loss) for row in record.curve],
        "score": [(row.epoch, row.score) for row in record.curve],
    }
    known = {name: [(e, v) for e, v in rows if v is not None] for name, rows in values.items()}
    return {name: rows for name, rows in known.items() if rows}


class TensorBoard:
    """Writes each run into a folder of its own, as TensorBoard compares them.

    Args:
        folder: to be given to ``tensorboard --logdir``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, name: str, record: RunRecord) -> None:
        """Write curves, parameters and final metrics."""
        from torch.utils.tensorboard import SummaryWriter

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in parameters(record).items()
        }
        with SummaryWriter(str(self.folder / name)) as writer:
            for curve, rows in curves(record).items():
                for epoch, value in rows:
                    writer.add_scalar(curve, value, epoch)
            # Into the run's own folder: without a name it would make another run of each.
            writer.add_hparams(plain, dict(record.metrics), run_name=".")


class MLflow:
    """Writes each run as a run of the experiment ``mlbench``.

    Args:
        uri: tracking URI, such as ``sqlite:////tmp/mlflow.db`` or ``http://host:5000``.
    """

    def __init__(self, uri: str) -> None:
        for name, value in _MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        made = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        self._experiment: str = made

    def log(self, name: str, record: RunRecord) -> None:
        """Write curves, parameters and final metrics."""
        tags = {"recipe_id": record.recipe_id, "status": record.status}
        run = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        self._log_parameters(run, parameters(record))
        finals = {_mlflow_name(key): [(0, value)] for key, value in record.metrics.items()}
        self._log_metrics(run, {**curves(record), **finals})
        self._client.set_terminated(run, "FINISHED" if record.status == "ok" else "FAILED")

    def _log_parameters(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(run, params=params[start : start + _MLFLOW_BATCH])

    def _log_metrics(self, run: str, values: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, v, now, step) for key, rows in values.items() for step, v in rows]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + _MLFLOW_BATCH])


def _mlflow_name(metric: str) -> str:
    """Return a metric's name without the ``@`` that MLflow refuses."""
    return metric.replace("@", "_at_")
