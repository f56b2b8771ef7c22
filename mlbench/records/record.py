"""The record of a finished run, and its JSON form."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_type_hints

import msgspec

from mlbench.errors import MlbenchError
from mlbench.interfaces import ParamValue
from mlbench.metrics.roc import Verification
from mlbench.recipes.spec import FORMER_PARAMS, LossSpec, Natural, Recipe, RunSpec
from mlbench.recipes.validation import build, check_value
from mlbench.records.migrations import SCHEMA_VERSION, migrate
from mlbench.records.provenance import Provenance
from mlbench.records.totals import PackedTotals, RunTotals

PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class DatasetFacts:
    """What was trained and tested on.

    Attributes:
        name: as in the recipe.
        fingerprint: SHA-256 over names, labels and contents of all images.
        train_images, train_classes: used for training (after hold-out and folds).
        test_images, test_classes: evaluated.
        skipped: names of bad images that were left out of both sides; sorted.
    """

    name: str
    fingerprint: str
    train_images: int
    train_classes: int
    test_images: int
    test_classes: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch of the curve.

    Attributes:
        epoch: 0-based.
        loss: mean over its images; None if not finite.
        seconds: wall time of its training steps.
        score: what the selection rule judged it by (MAP@R on validation classes, or for
            ``test-best`` R@1 on test classes); None for rule ``last``.
    """

    epoch: int
    loss: float | None
    seconds: float
    score: float | None


@dataclass(frozen=True)
class Cost:
    """What the run took.

    Attributes:
        images_seen: training images, repeats counted.
        seconds: wall time by phase (``prepare``, ``train``, ``evaluate``).
        images_per_second: of training; 0 for a baseline.
        peak_memory_mb: of the process up to the end of the run; on a GPU, of the run's tensors.
        interruptions: how often the run was continued from a checkpoint.
    """

    images_seen: int
    seconds: dict[str, float]
    images_per_second: float
    peak_memory_mb: float
    interruptions: Natural


@dataclass(frozen=True)
class RunRecord:
    """The saved result of one run: settings, data, metrics, cost and environment.

    Attributes:
        schema_version: version of the record format.
        recipe_id: identifier (hash) of ``recipe``.
        recipe: training and evaluation configuration that all runs of a table share.
        loss: name of the loss or baseline.
        loss_source: ``built-in``, or the distribution (and its version) that provides the loss.
        params: all hyperparameters of the loss, including defaults.
        seed: random seed of initialisation, batch order and augmentation.
        fold: class-disjoint fold that was excluded from training, or None.
        dataset: data set that was trained and tested on.
        protocol_version: version of the evaluation protocol.
        weights_id: identifier of the backbone's initial weights.
        status: ``ok``, or ``diverged`` if the loss became NaN or infinite.
        selected_epoch: 0-based epoch whose network was evaluated; None for a baseline.
        metrics: ``R@k``, ``NMI``, ``MAP@R``, ``R-Precision`` and, if the recipe asks for them,
            ``P@k``, ``mAP@k`` and ``TAR@FAR=f`` as fractions, and the counts ``n_query``,
            ``n_gallery``, ``n_lone``; empty if diverged.
        loss_report: diagnostics that the loss reports after training, such as
            ``distinct_centers``.
        curve: one row per epoch.
        cost: time and memory.
        provenance: software and hardware.
        queries_sha256: checksum of the per-query scores in the ``.npz`` next to the record;
            None if there is none, or it cannot be checked.
        class_totals: ``totals`` in the form in which they are saved; None if diverged, and in
            records of schema 1 and 2 that were not upgraded.
        split: number of the random split of the classes (``datasets.resplit``); None, which the
            JSON omits, is the data set's own.
        needs: requirements of the loss, as in ``mlbench list losses``; empty for a baseline, and
            where it was not recorded.
        verification: how well a threshold separates pairs of test images; None, which the JSON
            omits, if the recipe does not ask for it or the run diverged.
    """

    schema_version: int
    recipe_id: str
    recipe: Recipe
    loss: str
    loss_source: str
    params: dict[str, ParamValue]
    seed: Natural
    fold: Natural | None
    dataset: DatasetFacts
    protocol_version: int
    weights_id: str
    status: Literal["ok", "diverged"]
    selected_epoch: int | None
    metrics: dict[str, int | float]
    loss_report: dict[str, float]
    curve: tuple[EpochRow, ...]
    cost: Cost
    provenance: Provenance
    queries_sha256: str | None
    class_totals: PackedTotals | None
    needs: str = ""
    split: Natural | None = None
    verification: Verification | None = None

    @functools.cached_property
    def totals(self) -> RunTotals | None:
        """What the metrics are means of, by test class; None where ``class_totals`` is."""
        return None if self.class_totals is None else self.class_totals.unpack()

    @property
    def spec(self) -> RunSpec:
        """The run that this is the record of."""
        loss = LossSpec(self.loss, tuple(sorted(self.params.items())))
        return RunSpec(self.recipe, loss, self.seed, self.fold, self.split)

    def to_json(self) -> str:
        """Return the record as indented JSON; its last entry is the checksum of all others."""
        table = asdict(self)
        text = dump({n: part for n, part in table.items() if (n, part) not in _LATER.items()})
        return f'{text.removesuffix(_END)}{_MARK}{sha256(text.encode())}"{_END}'

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> RunRecord:
        """Read a record of this or an older schema, every key and value checked.

        Args:
            text: the file's content.
            where: the file, for messages.

        Raises:
            MlbenchError: not JSON, not a record, of a newer schema, its parts contradict, or it is
                not what was written.
        """
        content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
        record = _read_whole(content)
        if record is None:
            return _read_checked(content, where)
        _check_consistent(record, where)
        return record


def _read_checked(content: bytes, where: str) -> RunRecord:
    """Read a record, every key and value checked one by one, so that what is wrong is named."""
    try:
        table = _strict_json(content.decode())
    except (ValueError, RecursionError) as error:
        raise MlbenchError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(table, dict) or "schema_version" not in table:
        raise MlbenchError(f"{where}: not a record of mlbench (no schema_version)")
    checksum = table.pop("checksum", None)
    record = build(RunRecord, migrate(table, where), where)
    record = replace(record, params=_with_former(record.loss, record.params))
    _check_consistent(record, where)
    if table["schema_version"] > 1 and checksum != sha256(dump(table).encode()):
        raise MlbenchError(
            f"{where}: its content does not match its checksum; it was edited or damaged: "
            "restore it, or delete it and repeat the run"
        )
    return record


_SHARED = ("recipe", "dataset", "provenance")
"""Parts that many records have in common, so that each text of them is read only once."""


def _read_whole(content: bytes) -> RunRecord | None:
    """Read a record that is as ``to_json`` wrote it, in a thirtieth of the time; or return None.

    What has its checksum needs no check of every value; what was never written by this schema, such
    as an older one's, has to be read by ``_read_checked``.
    """
    try:
        found = msgspec.structs.asdict(_WHOLE.decode(content))
        parts = {name: part for name, part in found.items() if part is not msgspec.UNSET}
        keys, checksum = len(parts), parts.pop("checksum")
        if not _is_as_written(content, checksum, keys):
            return None
        parts |= {name: _read_shared(name, bytes(parts[name])) for name in _SHARED}
        parts["params"] = _with_former(parts["loss"], parts["params"])
        return RunRecord(**parts)
    except (MlbenchError, ValueError, RecursionError):
        return None


def _with_former(loss: str, params: dict[str, ParamValue]) -> dict[str, ParamValue]:
    """Return parameters with those that the loss had before they were declared."""
    return FORMER_PARAMS.get(loss, {}) | params


def _is_as_written(content: bytes, checksum: str, keys: int) -> bool:
    """Tell whether the checksum is of all that stands before it, which holds so many keys.

    Nothing follows the checksum; keys stand at the start of lines, which no text in JSON begins.
    """
    start, _, end = content.rpartition(_MARK.encode())
    once = content.count(_KEY) == keys
    as_it_ends = f'{checksum}"{_END}'.encode()
    return once and end == as_it_ends and checksum == sha256(start + _END.encode())


def _strict_json(text: str) -> Any:
    """Read JSON; ValueError for a key twice in one table, of which readers take either."""
    return json.loads(text, object_pairs_hook=_table)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' occurs twice")
    return table


@functools.lru_cache(maxsize=1024)
def _read_shared(name: str, text: bytes) -> Any:
    return check_value(_HINTS[name], _strict_json(text.decode()), "")


_HINTS = get_type_hints(RunRecord, include_extras=True)
_LATER = {f.name: f.default for f in fields(RunRecord) if f.default is not MISSING}
"""Parts that were added after records had been written; left out where they say nothing."""
_PARTS: dict[str, Any] = {
    **_HINTS,
    **dict.fromkeys(_SHARED, msgspec.Raw),
    "schema_version": Literal[SCHEMA_VERSION],
    "checksum": str,
}
_WHOLE = msgspec.json.Decoder(
    msgspec.defstruct(
        "_WHOLE",
        [
            *(part for part in _PARTS.items() if part[0] not in _LATER),
            *((name, _PARTS[name] | msgspec.UnsetType, msgspec.UNSET) for name in _LATER),
        ],
        forbid_unknown_fields=True,
        gc=False,
    )
)
_END = "\n}\n"
_MARK = ',\n "checksum": "'
_KEY = b'\n "'


def dump(table: dict[str, Any]) -> str:
    """Return the canonical form of a record's table: what the checksum is of."""
    return json.dumps(table, indent=1, allow_nan=False) + "\n"


def sha256(content: bytes) -> str:
    """Return the SHA-256 (hex) of a content, such as a record's canonical form."""
    return hashlib.sha256(content).hexdigest()


def _check_consistent(record: RunRecord, where: str) -> None:
    """Refuse a recipe and figures that no run gives; such a record was edited or damaged."""
    if record.recipe.recipe_id != record.recipe_id:
        raise MlbenchError(
            f"{where}: recipe_id does not match the recipe; the file may have been edited"
        )
    if record.status == "diverged":
        if record.metrics or record.class_totals or record.verification:
            raise MlbenchError(
                f"{where}: status is 'diverged' but there are metrics; the file may have been "
                f"edited"
            )
        return
    evaluation, pairs = record.recipe.evaluation, record.verification
    recalls = [f"R@{k}" for k in sorted(evaluation.ks)]
    deep = [f"{name}@{k}" for k in evaluation.depths for name in ("P", "mAP")]
    accepted = [f"TAR@FAR={point.far:g}" for point in pairs.points] if pairs else []
    fractions = {*recalls, "NMI", "MAP@R", "R-Precision", *deep, *accepted}
    wanted = fractions | {"n_query", "n_gallery", "n_lone"}
    if set(record.metrics) != wanted:
        wrong = ", ".join(sorted(set(record.metrics) ^ wanted))
        raise MlbenchError(
            f"{where}: metrics are missing or unexpected ({wrong}); the file may have been edited"
        )
    for name in fractions:
        if not -1e-9 <= record.metrics[name] <= 1 + 1e-9:
            raise MlbenchError(
                f"{where}: {name} is {record.metrics[name]}; it must be between 0 and 1"
            )
    for low, high in (*pairwise(recalls), ("MAP@R", "R-Precision")):
        if record.metrics[low] > record.metrics[high] + 1e-9:
            raise MlbenchError(
                f"{where}: {low} is above {high}, which is impossible; the file may have been "
                f"edited"
            )
    _check_totals(record, where)


_TOTALS_TOLERANCE = 1e-6
"""Of a mean: sums are rounded to 2^-24, and in older records made from single precision."""


def _check_totals(record: RunRecord, where: str) -> None:
    """Refuse totals by class that do not add up to the metrics."""
    try:
        totals = record.totals
    except ValueError as error:
        raise MlbenchError(f"{where}: class_totals cannot be read ({error})") from error
    if totals is None:
        return
    summed = {"n_query": int(totals.queries.sum()), **totals.means}
    needed = ("MAP@R", *(f"R@{k}" for k in record.recipe.evaluation.ks))
    for name in dict.fromkeys([*summed, *needed]):
        wanted, found = record.metrics.get(name, math.nan), summed.get(name, math.nan)
        if not abs(wanted - found) <= _TOTALS_TOLERANCE:
            raise MlbenchError(
                f"{where}: class_totals give {name} {found}, metrics {wanted}; the file may have "
                f"been edited"
            )
    if len(totals.classes) != record.dataset.test_classes:
        raise MlbenchError(
            f"{where}: class_totals are of {len(totals.classes)} classes, the data set has "
            f"{record.dataset.test_classes}; the file may have been edited"
        )
