"""Does a record come out again? Its run is made anew and compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mlbench.errors import MlbenchError
from mlbench.losses.baselines import BASELINES
from mlbench.progress import PhaseProgress
from mlbench.recipes.plan import Files
from mlbench.records import provenance
from mlbench.records.record import PROTOCOL_VERSION, RunRecord
from mlbench.registry import LOSSES
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.run import run_one
from mlbench.system.files import check_path, file_sha256
from mlbench.system.known_state import known_state


@dataclass(frozen=True)
class Finding:
    """One thing in which a record and the run made anew are compared.

    Attributes:
        what: was compared.
        recorded: its value in the record.
        now: its value now.
        same: whether they are equal, to the last bit.
        judged: False for what may differ without a result being another: versions, hardware.
        remark: by how much they differ, if that can be said.
    """

    what: str
    recorded: str
    now: str
    same: bool
    judged: bool = True
    remark: str = ""


@dataclass(frozen=True)
class Verification:
    """What was found, and whether the run was made again.

    Attributes:
        findings: ingredients, results (if the run was made), environment.
        made: False if an ingredient differs, so that the results could not be the same.
    """

    findings: tuple[Finding, ...]
    made: bool

    @property
    def identical(self) -> bool:
        """Whether all that is judged is equal."""
        return self.made and all(each.same for each in self.findings if each.judged)


def files_for(record: RunRecord, data_root: Path | None, weights: Path | None) -> Files:
    """Return where the ingredients of a record's run lie here.

    Args:
        record: of the run.
        data_root: folder of its data set.
        weights: file of its initial weights, if its recipe names one by SHA-256.

    Raises:
        MlbenchError: the folder of its images is not there; the weights file cannot be read, is
            another one, or is needed and not given.
    """
    wanted = record.recipe.backbone.weights
    by_file = wanted not in ("imagenet", "none")
    if by_file != (weights is not None):
        given = f"is the file with SHA-256 {wanted[:12]}..." if by_file else f"is {wanted!r}"
        mend = "pass its path with --weights" if by_file else "leave --weights out"
        raise MlbenchError(f"backbone.weights of the record {given}; {mend}")
    if weights is not None and _sha256(weights) != wanted:
        raise MlbenchError(f"{weights}: not the file with SHA-256 {wanted[:12]}... of the record")
    _check_folder(record.dataset.name, data_root)
    on_bad_image = "skip" if record.dataset.skipped else "error"
    compiled = record.provenance.execution != "eager"
    return Files(data_root, weights, on_bad_image, compile=compiled)


def _check_folder(name: str, data_root: Path | None) -> None:
    """Raise MlbenchError if ``name`` is a folder or table, which a record names without path."""
    kind, colon, given = name.partition(":")
    if not colon or kind not in ("folder", "table"):
        return
    path = Path(data_root or "", given)
    check_path(path)
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise MlbenchError(
            f"data set '{name}' of the record is not at {path}; pass the folder that contains it "
            f"with "
            "--data-root"
        )


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise MlbenchError(f"{path}: cannot be read ({error.strerror or error})") from error


def verify(
    record: RunRecord, files: Files, device: torch.device, report: PhaseProgress
) -> Verification:
    """Make the run of a record again, training included, and compare. Nothing is written.

    Args:
        record: of the run.
        files: where the data set and the weights lie here.
        device: to run on.
        report: called with phase, done and total.

    Raises:
        MlbenchError: the run cannot be made here: no data, no weights, an unknown loss.
    """
    ingredients = Ingredients(record.recipe, files, device, report)
    with known_state(record.recipe.training.precision, record.seed):
        compared = tuple(_compare_ingredients(record, ingredients))
    environment = tuple(_environment(record.provenance, provenance.collect(device.type)))
    if not all(each.same for each in compared):
        return Verification((*compared, *environment), made=False)
    ingredients.prepare()
    made, _ = run_one(record.spec, ingredients)
    return Verification((*compared, *compare_results(record, made), *environment), made=True)


def _compare_ingredients(record: RunRecord, ingredients: Ingredients) -> Iterator[Finding]:
    """Compare what a run is made of: the data, the weights, the loss, the evaluator."""
    name = record.loss
    source = "built-in" if name in BASELINES else LOSSES.get(name).source
    yield _finding("data", record.dataset.fingerprint[:12], ingredients.dataset.fingerprint[:12])
    yield _finding("weights", record.weights_id, ingredients.weights_id)
    yield _finding("loss source", record.loss_source, source)
    yield _finding("protocol version", record.protocol_version, PROTOCOL_VERSION)


def compare_results(recorded: RunRecord, made: RunRecord) -> list[Finding]:
    """Compare the results of two runs; seconds and memory are none."""
    findings = [
        _finding(what, getattr(recorded, what), getattr(made, what))
        for what in ("status", "selected_epoch")
    ]
    findings += _figures("", recorded.metrics, made.metrics)
    findings += _figures("loss report: ", recorded.loss_report, made.loss_report)
    for what in ("loss", "score"):
        curves = [[getattr(row, what) for row in each.curve] for each in (recorded, made)]
        findings.append(_curve(f"{what} by epoch", *curves))
    return findings


def _figures(
    prefix: str, recorded: Mapping[str, float], made: Mapping[str, float]
) -> Iterator[Finding]:
    for name in dict.fromkeys([*recorded, *made]):
        old, new = recorded.get(name), made.get(name)
        remark = "" if old is None or new is None or old == new else f"{new - old:+.2g}"
        yield _finding(prefix + name, old, new, remark=remark)


def _curve(what: str, old: Sequence[float | None], new: Sequence[float | None]) -> Finding:
    texts = [f"{len(each)} epochs, last {each[-1] if each else None}" for each in (old, new)]
    pairs = list(zip(old, new, strict=False))
    other = [number for number, (a, b) in enumerate(pairs) if a != b]
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    remark = f"from epoch {other[0]} on, by at most {max(gaps, default=0):.2g}" if other else ""
    return Finding(what, *texts, same=old == new, remark=remark)


def _environment(recorded: provenance.Provenance, now: provenance.Provenance) -> Iterator[Finding]:
    """Compare versions and hardware, which may differ without a result being another."""
    old, new = (_flat(asdict(each)) for each in (recorded, now))
    for name in dict.fromkeys([*old, *new]):
        yield _finding(name, old.get(name), new.get(name), judged=False)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in table.items() if k != "packages"}, **table["packages"]}


def _finding(
    what: str, old: object, new: object, *, judged: bool = True, remark: str = ""
) -> Finding:
    return Finding(what, str(old), str(new), old == new, judged, remark)
