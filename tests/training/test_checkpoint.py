"""A run that is interrupted anywhere ends as one that never was."""

import io
import itertools
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK
from PIL import Image, ImageOps
from torch import nn

from mlbench.errors import MlbenchWarning
from mlbench.recipes.plan import Request, make_plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records import store
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES
from mlbench.runs.evaluation import Selection
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.outcomes import make_run
from mlbench.runs.run import run_one
from mlbench.system.files import _machine, atomic_file
from mlbench.system.interrupts import Interrupted
from mlbench.training import checkpoint
from mlbench.training.batches import FeatureSource
from mlbench.training.checkpoint import Checkpoints
from mlbench.training.network import Embedder
from mlbench.training.trainer import Batch, Trainer

CPU = torch.device("cpu")
STEPS = 3  # of an epoch: 24 images in batches of 8


def spec_and_ingredients(photos: Path, loss: str, **settings: Any) -> tuple[RunSpec, Ingredients]:
    given = {**QUICK, "batch.size": 8, "schedule.epochs": 2, **settings}
    request = Request(dataset=f"folder:{photos}", losses=(loss,), settings=tuple(given.items()))
    plan = make_plan(request)
    spec = plan.runs()[0]
    return spec, Ingredients(plan.recipe, plan.files, CPU, lambda *_: None)


def results(record: RunRecord) -> tuple[Any, ...]:
    curve = [(row.epoch, row.loss, row.score) for row in record.curve]
    return record.metrics, curve, record.selected_epoch, record.loss_report


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run gets to see it coming."""


@contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill the process after so many steps; expect a checkpoint at every one of them."""
    done = 0
    step = Trainer.step

    def counted(self: Trainer, batch: Batch) -> torch.Tensor:
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", counted)
        patch.setattr(Checkpoints, "due", lambda _: True)
        with pytest.raises(Killed):
            yield


def more(photos: Path) -> Path:
    """Twice as many classes, so that validation folds can be made."""
    for path in list(photos.rglob("*.png")):
        other = photos / f"{path.parent.name}b" / path.name
        other.parent.mkdir(exist_ok=True)
        with Image.open(path) as image:
            ImageOps.invert(image).save(other)
    return photos


VALIDATION = {"selection.rule": "validation", "selection.folds": 2, "selection.patience": 1}
FROZEN = {"backbone.trunk": "frozen"}
CROPS = {"input.train_crop": "random-resized", "input.min_area": 0.2, "input.flip": True}


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("softtriple", {"optimizer.name": "adam", **CROPS}),
        ("xbm", {"batch.micro": 3, "backbone.bn_stats": "frozen", "xbm.start": 2, **CROPS}),
        ("npairs", {"optimizer.name": "sgd", "schedule.warmup": 1}),
        ("triplet_distance_weighted", {"optimizer.name": "adamw", **VALIDATION}),
        ("margin", {"optimizer.name": "rmsprop", **FROZEN, "selection.rule": "test-best"}),
        ("proxy_anchor", {"head.kind": "relu-bn-linear", **FROZEN, **VALIDATION}),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, changes: Any
) -> None:
    spec, ingredients = spec_and_ingredients(more(photos), loss, **changes)
    whole, queries = run_one(spec, ingredients)
    out = tmp_path / "out"
    # After the first step, after the first epoch, and in the second.
    for steps in (1, len_of_epoch(whole) - 1, 1):
        with killed_after(steps, monkeypatch):
            run_one(*spec_and_ingredients(photos, loss, **changes), out)
    record, again = run_one(*spec_and_ingredients(photos, loss, **changes), out)
    assert results(record) == results(whole)
    assert record.cost.images_seen == whole.cost.images_seen
    assert (record.cost.interruptions, whole.cost.interruptions) == (3, 0)
    assert queries is not None
    assert again is not None
    np.testing.assert_array_equal(again.ap_at_r, queries.ap_at_r)


def len_of_epoch(record: RunRecord) -> int:
    return -(-record.dataset.train_images // 8)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_killed_while_it_is_scored_selects_the_same_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    changes = {**VALIDATION, "schedule.epochs": 3}
    whole, _ = run_one(*spec_and_ingredients(more(photos), "softtriple", **changes))

    def stop(_self: object, _network: object, number: int, score: Any = Selection.score) -> Any:
        if number == epoch:
            raise Interrupted(signal.SIGTERM)
        return score(_self, _network, number)

    with monkeypatch.context() as patch:
        patch.setattr(Selection, "score", stop)
        with pytest.raises(Interrupted):
            run_one(*spec_and_ingredients(photos, "softtriple", **changes), tmp_path)
    record, _ = run_one(*spec_and_ingredients(photos, "softtriple", **changes), tmp_path)
    assert results(record) == results(whole)


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 2])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(
    photos: Path, tmp_path: Path, steps: int
) -> None:
    spec, ingredients = spec_and_ingredients(photos, "softtriple")
    whole, _ = run_one(spec, ingredients)

    taken = itertools.count(1)

    def stop(phase: str, _done: int, _total: int) -> None:
        if phase.startswith("training") and next(taken) == steps:
            raise Interrupted(signal.SIGINT)

    ingredients.progress = stop
    with pytest.raises(Interrupted):
        run_one(spec, ingredients, tmp_path)
    (path,) = tmp_path.rglob("*.pt")
    position = torch.load(path, weights_only=True)["state"]["trainer"]["position"]
    assert position["epoch"] * STEPS + position["step"] == steps
    record, _ = run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    assert results(record) == results(whole)


def test_a_run_is_the_same_whatever_was_made_before_it(photos: Path) -> None:
    changes = {**FROZEN, "selection.rule": "test-best"}
    spec, ingredients = spec_and_ingredients(photos, "margin", **changes)
    alone, _ = run_one(*spec_and_ingredients(photos, "margin", **changes))
    run_one(RunSpec(spec.recipe, LossSpec("features"), spec.seed), ingredients)
    run_one(*spec_and_ingredients(photos, "npairs", **changes)[:1], ingredients)
    after, _ = run_one(spec, ingredients)
    assert results(after) == results(alone)


def test_short_runs_write_none(photos: Path, tmp_path: Path) -> None:
    run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seconds_add_up(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_after(4, monkeypatch):
        run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    (newest, _) = sorted(tmp_path.rglob("*.pt"), key=lambda p: -p.stat().st_mtime_ns)
    kept = torch.load(newest, weights_only=True)["state"]
    kept["seconds"]["train"] += 100
    kept["trainer"]["position"]["seconds"] += 100
    identity = torch.load(newest, weights_only=True)["identity"]
    torch.save({"identity": identity, "state": kept}, newest)
    record, _ = run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    assert 100 < record.cost.seconds["train"] < 110
    assert 100 < record.curve[1].seconds < 110
    assert record.cost.seconds["prepare"] > kept["seconds"]["prepare"]
    assert record.cost.images_per_second == pytest.approx(
        record.cost.images_seen / sum(row.seconds for row in record.curve)
    )


def test_the_record_takes_the_place_of_the_checkpoints(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after(4, monkeypatch):
        run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    assert len(list(tmp_path.rglob("*.pt"))) == 2
    spec, ingredients = spec_and_ingredients(photos, "softtriple")
    left = tmp_path / ".checkpoints" / f"{spec.run_id}-1.pt"
    before = left.read_bytes()
    outcome = make_run(spec, ingredients, tmp_path)
    assert outcome is not None
    assert not outcome.reused
    assert not left.parent.exists()

    left.parent.mkdir()
    left.write_bytes(before)  # as if killed between the two
    assert store.find(tmp_path, spec, ingredients.dataset.fingerprint, "built-in") is not None
    assert left.exists()  # reading removes nothing
    outcome = make_run(spec, ingredients, tmp_path)
    assert outcome is not None
    assert outcome.reused
    assert not left.parent.exists()


def test_other_data_start_anew(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after(4, monkeypatch):
        run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    next(photos.rglob("7.png")).unlink()
    record, _ = run_one(*spec_and_ingredients(photos, "softtriple"), tmp_path)
    assert record.cost.interruptions == 0
    assert list(tmp_path.rglob("*.pt")) == []


LOSS_NAMES = [entry.name for entry in LOSSES.entries() if not entry.prefix]


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_goes_on_from_its_state(photos: Path, name: str) -> None:
    """What a loss remembers is in its parameters and buffers, or in the generators of torch."""
    _, ingredients = spec_and_ingredients(photos, name, **FROZEN)

    def trainer() -> Trainer:
        entry = LOSSES.get(name)
        network = Embedder(nn.Identity(), nn.Linear(16, 8))
        # A memory that begins later would never be seen here.
        at_once = {"start": 0} if "start" in entry.defaults else {}
        loss = entry.build(4, 8, {**entry.defaults, **at_once})
        features = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
        labels = np.arange(32) % 4
        return Trainer(network, loss, entry, FeatureSource(features), labels, ingredients.recipe, 5)

    torch.manual_seed(1)
    whole = trainer()
    states: list[dict[str, Any]] = []
    losses = [whole.epoch(0, lambda *_: states.append(packed(whole.state()))).loss]
    losses.append(whole.epoch(1).loss)
    for state in states:
        again = trainer()
        again.restore(state)
        assert [again.epoch(0).loss, again.epoch(1).loss] == losses


def packed(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


class TestCheckpoints:
    @pytest.fixture
    def spec(self, photos: Path) -> RunSpec:
        return spec_and_ingredients(photos, "npairs")[0]

    def saved(self, out: Path, spec: RunSpec, count: int) -> list[Path]:
        """Write checkpoints 0 .. count - 1; return the files, the newest first."""
        kept = Checkpoints(out, spec, "this")
        for number in range(count):
            kept.save({"number": number, "weights": torch.full((2000,), float(number))})
            for path in (out / ".checkpoints").iterdir():  # clocks of file systems are coarse
                os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
        return sorted((out / ".checkpoints").iterdir(), key=lambda p: -p.stat().st_mtime_ns)

    def test_two_are_kept(self, spec: RunSpec, tmp_path: Path) -> None:
        assert len(self.saved(tmp_path, spec, 5)) == 2
        state = Checkpoints(tmp_path, spec, "this").load()
        assert state is not None
        assert state["number"] == 4

    def test_the_next_replaces_the_older(self, spec: RunSpec, tmp_path: Path) -> None:
        newest, _ = self.saved(tmp_path, spec, 4)
        before = newest.read_bytes()
        kept = Checkpoints(tmp_path, spec, "this")
        kept.load()
        kept.save({"number": 4})
        assert newest.read_bytes() == before

    @pytest.mark.parametrize("content", [b"", b"PK", None])
    def test_a_damaged_one_is_passed_by(
        self, spec: RunSpec, tmp_path: Path, content: bytes | None
    ) -> None:
        newest, _ = self.saved(tmp_path, spec, 2)
        whole = newest.read_bytes()
        newest.write_bytes(whole[: len(whole) // 2] if content is None else content)
        with pytest.warns(MlbenchWarning, match=r"checkpoint .* is damaged") as warned:
            state = Checkpoints(tmp_path, spec, "this").load()
        assert len(warned) == 1
        assert state is not None
        assert state["number"] == 0
        assert not newest.exists()

    def test_a_changed_byte_is_never_trained_on(self, spec: RunSpec, tmp_path: Path) -> None:
        newest, older = self.saved(tmp_path, spec, 2)
        whole, before = newest.read_bytes(), older.read_bytes()
        for place in range(0, len(whole), 89):
            content = bytearray(whole)
            content[place] ^= 0x10
            newest.write_bytes(content)
            older.write_bytes(before)
            os.utime(older, ns=(0, 0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MlbenchWarning)
                state = Checkpoints(tmp_path, spec, "this").load()
            assert state is not None
            assert state["weights"].tolist() == [float(state["number"])] * 2000

    def test_nothing_whole_is_the_start(self, spec: RunSpec, tmp_path: Path) -> None:
        for path in self.saved(tmp_path, spec, 2):
            path.write_bytes(b"")
        with pytest.warns(MlbenchWarning):
            assert Checkpoints(tmp_path, spec, "this").load() is None

    def test_another_identity_is_removed(self, spec: RunSpec, tmp_path: Path) -> None:
        self.saved(tmp_path, spec, 2)
        assert Checkpoints(tmp_path, spec, "other").load() is None
        assert list((tmp_path / ".checkpoints").iterdir()) == []

    def test_code_in_a_checkpoint_is_not_run(self, spec: RunSpec, tmp_path: Path) -> None:
        (path,) = self.saved(tmp_path, spec, 1)
        torch.save({"identity": "this", "state": Trap(tmp_path / "sprung")}, path)
        with pytest.warns(MlbenchWarning):
            assert Checkpoints(tmp_path, spec, "this").load() is None
        assert not (tmp_path / "sprung").exists()

    def test_time_tells_when_the_next_is_due(
        self, spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        kept = Checkpoints(tmp_path, spec, "this")
        now = checkpoint.INTERVAL_SECONDS - 1
        assert not kept.due()
        now += 1
        assert kept.due()
        kept.save({})
        assert not kept.due()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class TestAtomicFile:
    def test_what_a_dead_writer_left_goes_at_once(self, tmp_path: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path\n"
            "from mlbench.system.files import atomic_file\n"
            "with atomic_file(Path(sys.argv[1])) as file: os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", script, tmp_path / "dead"], check=False)
        (left,) = tmp_path.iterdir()
        with atomic_file(tmp_path / "alive") as file:
            file.write(b"x")
            with atomic_file(tmp_path / "other"):
                pass
        assert not left.exists()
        assert {path.name for path in tmp_path.iterdir()} == {"alive", "other"}

    def test_other_machines_and_living_writers_keep_theirs(self, tmp_path: Path) -> None:
        machine = _machine()
        names = {
            f".a.{machine}-{os.getppid()}-1.tmp",  # alive
            ".a.00000000-999999999-1.tmp",  # of another machine
            f".a.{machine}-{2**63}-1.tmp",  # no process id
            ".a.tmp",
        }
        for name in names:
            (tmp_path / name).touch()
        with atomic_file(tmp_path / "a"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == names | {"a"}

    def test_content_is_on_disk_before_the_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[tuple[str, object]] = []
        replace, fsync = os.replace, os.fsync

        def synced(handle: int) -> None:
            done.append(("sync", os.path.realpath(f"/proc/self/fd/{handle}")))
            fsync(handle)

        def renamed(old: str, new: str, **folders: int) -> None:
            assert (tmp_path / old).read_bytes() == b"new"
            done.append(("rename", new))
            replace(old, new, **folders)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", renamed)
        with atomic_file(tmp_path / "a") as file:
            file.write(b"new")
        kinds = [kind for kind, _ in done]
        assert kinds == ["sync", "rename", "sync"]
        assert str(done[0][1]).endswith(".tmp")
        assert done[2][1] == str(tmp_path)
