"""What somebody else could put into a shared folder or an archive, and odd arguments."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.driver import WrongSuccessError
from fuzz.mutations import HOSTILE, Rng, pick, spoil_bytes

import mlbench
from mlbench.backbones.weights import read_state
from mlbench.comparison.cache import summarise
from mlbench.errors import MlbenchError
from mlbench.metrics.embeddings import read_embeddings
from mlbench.metrics.evaluation import QueryResults
from mlbench.models.index import open_index
from mlbench.recipes.reading import load_recipe
from mlbench.records import scores, store
from mlbench.records.record import RunRecord
from mlbench.registry import LOSSES
from mlbench.report.data import embeddings_of
from mlbench.runs.claims import run_claim
from mlbench.system import files as paths
from mlbench.system.archives import Limits, unpack
from mlbench.training import checkpoint

_PRECIOUS = b"precious"


def special_files(rng: Rng, where: Path, made: RunRecord, results: QueryResults) -> None:
    """Plant something at a place of a results folder, read the folder, and write into it.

    Args:
        rng: of this input.
        where: an empty folder.
        made: a record.
        results: its per-query results.
    """
    mine, out = where / "mine", where / "out"
    mine.mkdir()
    (mine / "file").write_bytes(_PRECIOUS)
    path = store.save(out, made, results)
    place = pick(rng, _places(out, path, made))
    place.parent.mkdir(exist_ok=True)
    with suppress(OSError):
        place.unlink()
    with suppress(FileExistsError, OSError):
        _plant(rng, place, mine)
    try:
        _read(out, path, made)
        _write(out, made, results)
    finally:
        contents = [file.name for file in mine.iterdir()]
        if contents != ["file"] or (mine / "file").read_bytes() != _PRECIOUS:
            raise WrongSuccessError(f"something was written through {place.name}")


def _places(out: Path, path: Path, made: RunRecord) -> list[Path]:
    temporary = f".{path.name}.{paths._machine()}-{os.getpid()}-0123456789abcdef.tmp"
    spec = made.spec
    return [
        *(path, path.with_name("x.json"), path.with_suffix(".npz"), path.with_suffix(".index.npz")),
        *(path.with_suffix(".safetensors"), path.with_suffix(".embeddings.npy")),
        *(out / ".claims", out / ".claims" / ".gitignore", out / ".checkpoints"),
        *checkpoint._slots(out, spec),
        *(path.with_name(temporary), out / "a.json", out / "recipe.toml", out / "w.pth"),
    ]


def _plant(rng: Rng, place: Path, mine: Path) -> None:
    way = int(rng.integers(9))
    if way == 0:
        os.mkfifo(place)
    elif way == 1:
        place.symlink_to(pick(rng, ("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem")))
    elif way == 2:
        place.symlink_to(mine / "file")
    elif way == 3:
        place.symlink_to(mine)
    elif way == 4:
        place.symlink_to(pick(rng, (place, mine / "new", Path("nowhere"))))
    elif way == 5:
        place.mkdir()
    elif way == 6:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(place))
    elif way == 7:
        with place.open("wb") as file:
            file.truncate(1 << 42)  # with holes, so it takes no room
    else:
        os.link(mine / "file", place)


def _read(out: Path, path: Path, made: RunRecord) -> None:
    readers: tuple[Callable[[], object], ...] = (
        lambda: summarise(out),
        lambda: store.read_results(out),
        lambda: store.find(out, made.spec, "", ""),
        lambda: scores.read_scores(path),
        lambda: scores.query_neighbors(path),
        lambda: embeddings_of(path, 60),
        lambda: open_index(path),
        lambda: load_recipe(str(out / "recipe.toml")),
        lambda: read_state(out / "w.pth"),
        lambda: read_embeddings(path.with_suffix(".npz")),
        lambda: mlbench.load_model(path),
        lambda: checkpoint.Checkpoints(out, made.spec, "this").load(),
    )
    for read in readers:
        with suppress(MlbenchError):
            read()


def _write(out: Path, made: RunRecord, results: QueryResults) -> None:
    with run_claim(out, made.spec):
        checkpoint.Checkpoints(out, made.spec, "this").save({"a": 1})
        store.save(out, made, results)


_LIMITS = Limits(files=50, bytes=1_000_000)


def archive(rng: Rng, number: int, where: Path) -> None:
    """Unpack a tar or zip that is damaged, or has entries that none should have."""
    folder, path = where / "folder", where / "folder" / "a"
    folder.mkdir()
    content = _zip(rng) if number % 2 else _tar(rng)
    path.write_bytes(spoil_bytes(rng, content) if rng.random() < 0.5 else content)
    try:
        unpack(path, "top", folder / "out", _LIMITS)
    finally:
        left = {file.name for file in where.iterdir()} | {file.name for file in folder.iterdir()}
        if not left <= {"folder", "a", "out"}:
            raise WrongSuccessError(f"{sorted(left)} lie around the archive")
    files = [file for file in (folder / "out").rglob("*") if not file.is_dir()]
    if any(file.is_symlink() or not file.is_file() for file in files):
        raise WrongSuccessError("something else than files was unpacked")
    if len(files) > _LIMITS.files or sum(f.stat().st_size for f in files) > _LIMITS.bytes:
        raise WrongSuccessError("more was unpacked than is allowed")


_GOOD = tuple(f"top/{n}.jpg" for n in range(9))
_NAMES = (
    *_GOOD,
    *_GOOD,
    "top/a",
    "top/b/c",
    "../x",
    "/x",
    "top/../../x",
    "top/a\x00b",
    "top/\u202e",
    "C:x",
    "top",
)
_NAMES += ("top/" + "n" * 300, "top/" + "d/" * 3000 + "x", "other", "top//a", "", ".")


def _tar(rng: Rng) -> bytes:
    buffer = io.BytesIO()
    mode = pick(rng, ("w", "w:gz", "w:bz2", "w:xz"))
    form = pick(rng, (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as file:
        for _ in range(int(rng.integers(1, 5))):
            info = tarfile.TarInfo(pick(rng, _NAMES).replace("\x00", ""))
            content = rng.bytes(int(rng.integers(50)))
            info.size = len(content)
            info.type = pick(rng, (*[b"0"] * 40, *(bytes([c]) for c in b"1234567LKSxgXV")))
            info.linkname = pick(rng, _NAMES).replace("\x00", "")
            if rng.random() < 0.2:
                key = pick(rng, ("size", "path", "GNU.sparse.map", "GNU.sparse.major", "mtime"))
                info.pax_headers = {key: str(pick(rng, HOSTILE))[:50].replace("\x00", "")}
            with suppress(UnicodeEncodeError):
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _zip(rng: Rng) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", pick(rng, (0, 8, 12, 14))) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(int(rng.integers(1, 5))):
            info = zipfile.ZipInfo(pick(rng, _NAMES) or "x")
            info.external_attr = int(pick(rng, (0, 0, 0, 8, 8, 8, 4, 10, 2, 15))) << 28
            info.compress_type = file.compression
            file.writestr(info, bytes(int(pick(rng, (0, 10, 99, 100_000, 100_000, 2_000_000)))))
    return buffer.getvalue()


def weights(rng: Rng, number: int, where: Path) -> None:
    """Damage a weights file of either kind."""
    import safetensors.torch

    state = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    path = where / ("w.safetensors" if number % 2 else "w.pth")
    if number % 2:
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    read_state(path)


_ODD: tuple[Any, ...] = (
    *(None, object(), b"x", {1}, range(3), np.float32(1), np.int64(-1), np.array([]), np.array(1)),
    *(np.ones((3, 2)), np.ones((3, 2), object), np.array(["a"]), np.array([np.nan]), -1, 1 << 70),
    *(torch.ones(3, 2), torch.ones(3, 2, dtype=torch.complex64), torch.empty(0, 2), lambda: 1),
    *(10**5000, -(10**5000), "x" * 300, "x" * 300 + ".toml", "a\0.toml", np.ones(12, np.ulonglong)),
)
"""Values that no argument is made for, besides those of files."""


def arguments(rng: Rng, number: int, where: Path) -> None:
    """Call a function of the Python API with one or two arguments that it is not made for."""
    (_evaluate, _build, _run)[number % 3](rng, where)


def _odd(rng: Rng) -> Any:
    return pick(rng, (*HOSTILE, *_ODD))


def _evaluate(rng: Rng, where: Path) -> None:  # noqa: ARG001
    given: dict[str, Any] = {"embeddings": rng.normal(size=(12, 3)), "labels": np.arange(12) % 3}
    names = ("embeddings", "labels", "gallery", "gallery_labels", "ks", "nmi_restarts", "seed")
    for _ in range(int(rng.integers(1, 3))):
        given[pick(rng, (*names, "memory_mb"))] = _odd(rng)
    restarts = given.get("nmi_restarts")
    if isinstance(restarts, int | float) and restarts > 10**6:  # asks for years, rightly
        return
    with np.errstate(all="ignore"):
        found = mlbench.evaluate(**given)
    if not all(0 <= found[name] <= 1 for name in ("R-Precision", "MAP@R", "NMI") if name in found):
        raise WrongSuccessError(f"{found}")


def _build(rng: Rng, where: Path) -> None:  # noqa: ARG001
    entry = pick(rng, [each for each in LOSSES.entries() if not each.prefix])
    given: dict[str, Any] = {"name": entry.name, "num_classes": 4, "embedding_dim": 3}
    for _ in range(int(rng.integers(1, 3))):
        given[pick(rng, (*given, *entry.defaults))] = _odd(rng)
    large = [v for v in given.values() if isinstance(v, int | float) and abs(v) > 10**6]
    if not large:  # what would fill the memory is asked for rightly
        mlbench.build_loss(**given)


def _run(rng: Rng, where: Path) -> None:
    """Name data that are not there, so that nothing is trained whatever else is accepted."""
    given: dict[str, Any] = {"loss": "npairs", "dataset": "folder:none", "data_root": where}
    names = ("loss", "recipe", "dataset", "data_root", "backbone", "settings", "seed", "fold")
    for _ in range(int(rng.integers(1, 3))):
        given[pick(rng, (*names, "device", "on_bad_image"))] = _odd(rng)
    if given["dataset"] is not None:
        mlbench.run(**given)
        raise WrongSuccessError("a run of no data was made")
