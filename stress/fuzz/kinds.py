"""What is damaged, how it is read, and what a valid result must look like."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import planted
from fuzz.driver import Trial, WrongSuccessError
from fuzz.mutations import (
    HOSTILE,
    Rng,
    changed,
    paths,
    pick,
    spoil_bytes,
    spoil_table,
    spoil_text,
    to_toml,
)
from fuzz.runs import run
from PIL import Image

from mlbench.cli.embeddings import _measure as measure
from mlbench.comparison.comparison import compare
from mlbench.datasets import cub200, folder
from mlbench.datasets.checks import check_dataset
from mlbench.datasets.decode import decode
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset
from mlbench.metrics.embeddings import read_embeddings
from mlbench.metrics.evaluation import evaluate, evaluate_queries
from mlbench.recipes.plan import Request, make_plan, parse_setting
from mlbench.recipes.reading import load_recipe, recipe_names, recipe_text
from mlbench.recipes.spec import Recipe, RunSpec
from mlbench.recipes.validation import build
from mlbench.records import scores, store
from mlbench.records.record import RunRecord, dump, sha256
from mlbench.tables.formats import render


def recipe(rng: Rng, number: int, where: Path) -> None:
    """Put every hostile value at every key of a recipe in turn, then spoil recipes at random."""
    table = tomllib.loads(recipe_text("default"))
    systematic = [(path, value) for path in paths(table) for value in HOSTILE]
    path = where / "recipe.toml"
    if number < len(systematic):
        key, value = systematic[number]
        _write_toml(path, changed(table, key, value))
        _check_recipe(load_recipe(str(path)), key, value)
    elif number % 2:
        path.write_text(spoil_text(rng, recipe_text(pick(rng, recipe_names()))))
        _check_recipe(load_recipe(str(path)))
    else:
        _write_toml(path, spoil_table(rng, table))
        _check_recipe(load_recipe(str(path)))


def _write_toml(path: Path, table: Mapping[str, Any]) -> None:
    path.write_bytes(to_toml(table).encode(errors="surrogatepass"))


def _check_recipe(found: Recipe, key: tuple[str, ...] = (), value: Any = None) -> None:
    """Check that a recipe says what its file says, and survives its own plain form."""
    if len(key) == 2 and json.dumps(found.flat()[".".join(key)]) not in (
        json.dumps(value),
        json.dumps(float(value) if type(value) is int else value),
    ):
        raise WrongSuccessError(f"{key} {value!r} was read as {found.flat()['.'.join(key)]!r}")
    again = build(Recipe, json.loads(json.dumps(asdict(found))), "again")
    if again != found or again.recipe_id != found.recipe_id:
        raise WrongSuccessError("the recipe is another one after writing and reading")


def benchmark(rng: Rng, number: int, where: Path) -> None:
    """Spoil a benchmark file with a recipe of its own, on a base."""
    table = {
        "seeds": 2,
        "recipe": {"base": "default", "schedule": {"epochs": 2}, "losses": {"npairs": {}}},
        "losses": ["softtriple", {"name": "triplet", "margin": 0.3}],
    }
    path = where / "benchmark.toml"
    if number % 3:
        _write_toml(path, spoil_table(rng, table))
    else:
        path.write_bytes(spoil_bytes(rng, to_toml(table).encode()))
    _check_plan(Request(benchmark=path))


def setting(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Give hostile values and names to ``--set``, ``--losses``, ``--dataset``, ``--backbone``."""
    keys = [".".join(p) for p in paths(asdict(load_recipe("default")))]
    key = pick(rng, (pick(rng, keys), "loss.margin", "softtriple.tau", "epochs", "lr", "x", ""))
    text = f"{key}={pick(rng, HOSTILE)}"
    settings = (parse_setting(spoil_text(rng, text) if number % 2 else text),)
    dataset, backbone = (str(pick(rng, HOSTILE)) if rng.random() < 0.2 else None for _ in range(2))
    _check_plan(Request(settings=settings, dataset=dataset, backbone=backbone))


def _check_plan(request: Request) -> None:
    """Check that a plan has runs, and no two the same identity."""
    plan = make_plan(request)
    if len({run.run_id for run in plan.runs()[:50]}) != len(plan.runs()[:50]) or not plan.losses:
        raise WrongSuccessError("two runs of a plan have one identity")


@cache
def _sample() -> tuple[RunRecord, Any]:
    """Return a record as a run leaves it, and its per-query results."""
    plan = make_plan(Request(losses=("softtriple",)))
    fixtures = Path(__file__).parents[2] / "tests" / "fixtures" / "records" / "schema2"
    found = next(iter(store.read_results(fixtures).records.values()))
    rows = np.random.default_rng(0).normal(size=(60, 8))
    queries = evaluate_queries(rows, np.arange(60) % 6)
    spec = RunSpec(plan.recipe, plan.losses[0], 0)
    recipe_id = spec.recipe.recipe_id
    recalls = {f"R@{k}": float(h) for k, h in zip(queries.ks, queries.hits.mean(0), strict=True)}
    figures = {**found.metrics, **recalls, "MAP@R": float(queries.ap_at_r.mean())}
    figures["R-Precision"] = float(queries.r_precision.mean())
    made = replace(found, recipe=spec.recipe, recipe_id=recipe_id, metrics=figures)
    return replace(made, loss="softtriple", params=dict(spec.loss.params), seed=0), queries


def record(rng: Rng, number: int, where: Path) -> None:
    """Damage a record's file by bytes, by entry, or by entry with its checksum made to fit."""
    made, queries = _sample()
    path = store.save(where, made, queries)
    content = path.read_bytes()
    if number % 3 == 0:
        path.write_bytes(spoil_bytes(rng, content))
        if store.load(path) != _as_saved(content):
            raise WrongSuccessError("a damaged record was read as another one")
        return
    table = spoil_table(rng, json.loads(content))
    if number % 3 == 2 and table.get("schema_version") == made.schema_version:
        table.pop("checksum", None)
        with suppress(ValueError):  # NaN has no JSON
            table["checksum"] = sha256(dump(table).encode())
    path.write_text(json.dumps(table))
    found = store.load(path)
    if number % 3 == 1 and found != _as_saved(content):
        raise WrongSuccessError("an edited record was taken")
    _check_record(found, path)


def _as_saved(content: bytes) -> RunRecord:
    return RunRecord.from_json(content.decode(), "saved")


def _check_record(found: RunRecord, path: Path) -> None:
    """Check that a record can be written, read, compared and shown."""
    if RunRecord.from_json(found.to_json(), "again") != found:
        raise WrongSuccessError("the record is another one after writing and reading")
    comparisons = compare({path: found})
    for form in ("text", "markdown", "latex", "html", "csv", "json"):
        render(comparisons, form)


def special(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Plant special files and links in a results folder."""
    planted.special_files(rng, where, *_sample())


def queries(rng: Rng, number: int, where: Path) -> None:
    """Damage the per-query results beside a record; what is read must be what was saved."""
    made, results = _sample()
    path = store.save(where, made, results)
    beside = path.with_suffix(".npz")
    whole = scores.read_scores(path)
    assert whole is not None
    beside.write_bytes(spoil_bytes(rng, beside.read_bytes()))
    digest = store.load(path).queries_sha256
    found = scores.read_scores(path, digest if number % 2 else None)
    neighbors = scores.query_neighbors(path, digest)
    if neighbors is not None and (neighbors != results.neighbors[:, :10]).any():
        raise WrongSuccessError("damaged neighbours were taken")
    if found is None:
        raise MlbenchError("left out")
    if (found.ap_at_r != whole.ap_at_r).any() or any(
        (found.hits[name] != hits).any() for name, hits in whole.hits.items()
    ):
        raise WrongSuccessError("damaged scores were taken")


def embeddings(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Evaluate arrays with one thing wrong with them, or nothing."""
    rows: Any = rng.normal(size=(int(rng.integers(1, 40)), int(rng.integers(1, 9))))
    labels: Any = rng.integers(0, 5, len(rows))
    options: dict[str, Any] = {"nmi_restarts": 1}
    rows = rows.astype(pick(rng, ("f2", "f4", "f8", "i4", "u1", "c8", "O", "?", "U5")))
    way, at = int(rng.integers(8)), int(rng.integers(len(rows)))
    if way == 0 and rows.dtype.kind == "f":
        rows[at] = pick(rng, (np.nan, np.inf, -np.inf, 0.0, 1e-40, 6e4))
    elif way == 1:
        rows = pick(rng, (rows[0], rows[None], rows[:0], rows[:, :0], rows.tolist(), None, "x", 3))
    elif way == 2:
        labels = labels.astype(pick(rng, ("f8", "u1", "i2", "O", "?", "U3")))
    elif way == 3:
        labels = pick(rng, (labels[:-1], labels[None], labels.tolist(), None, [[1], [1, 2]], "x"))
    elif way == 4:
        options["ks"] = pick(rng, ((1, 10**9), (0,), (), (1, 1), (2.5,), "1", None, 3, (2**70,)))
    elif way == 5:
        options["gallery"] = pick(rng, (rows, rows[:, :1], rows[:1], None, "x"))
        options["gallery_labels"] = pick(rng, (labels, labels[:1], None))
    elif way == 6:
        name = pick(rng, ("nmi_restarts", "seed", "memory_mb"))
        options[name] = pick(rng, (0, -1, *(() if name == "nmi_restarts" else (2**31, 2**70))))
    _check_metrics(rows, labels, evaluate(rows, labels, **options))


def embedding_files(rng: Rng, number: int, where: Path) -> None:
    """Damage a file of embeddings, or save arrays of odd types whole; evaluate what is read."""
    rows = rng.normal(size=(int(rng.integers(2, 30)), int(rng.integers(1, 6))))
    classes: Any = rng.integers(0, 4, len(rows))
    arrays: dict[str, Any] = {"embeddings": rows, "labels": classes}
    if rng.random() < 0.3:
        arrays |= {"gallery": rows[::-1], "gallery_labels": classes[::-1]}
    path, damage = where / "rows.npz", number % 3 > 0
    if not damage:
        name = pick(rng, list(arrays))
        kind = pick(rng, ("f2", ">f4", "f8", "u1", "u2", "u8", "i8", "c8", "O", "?", "U4", "S3"))
        arrays[name] = np.asfortranarray(arrays[name].astype(kind))
        arrays = arrays if rng.random() < 0.8 else {**arrays, name: pick(rng, HOSTILE[:20])}
    pick(rng, (np.savez, np.savez_compressed))(path, **arrays)
    if damage:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    found = read_embeddings(path)
    if damage and ((found.queries != rows).any() or (found.labels != classes).any()):
        raise WrongSuccessError("damaged embeddings were taken")
    limits: Any = {"memory_mb": 16, "device": "cpu"}
    figures, _ = measure(found, 1, ks=(1, 2), depths=(), verification=False, **limits)
    _check_metrics(found.queries, found.labels, figures)


def _check_metrics(rows: Any, labels: Any, found: Mapping[str, float]) -> None:
    """Check that figures are fractions, of rows with directions and of whole labels."""
    counts = ("n_query", "n_gallery", "n_lone")
    if not all(-1e-9 <= v <= 1 + 1e-9 for k, v in found.items() if k not in counts):
        raise WrongSuccessError(f"figures that are no fractions: {found}")
    values, classes = np.asarray(rows, dtype=np.float64), np.asarray(labels)
    if not (np.isfinite(values).all() and values.any(axis=1).all() and classes.dtype.kind in "iu"):
        raise WrongSuccessError("rows without direction, or labels that are no numbers, were taken")
    if found["n_query"] != len(values) or len(classes) != len(values):
        raise WrongSuccessError("another number of queries than of rows")


def _draw(path: Path, value: int, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def cub(rng: Rng, number: int, where: Path) -> None:
    """Damage one of the index files of a small CUB."""
    names = [f"{c:03}.class/{c}_{i}.jpg" for c in range(1, 5) for i in range(3)]
    for value, name in enumerate(names):
        _draw(where / "images" / name, value)
    lines = {
        "classes": [f"{c} {c:03}.class" for c in range(1, 5)],
        "images": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "image_class_labels": [f"{i} {int(name[:3])}" for i, name in enumerate(names, 1)],
    }
    spoilt = pick(rng, list(lines))
    for name, content in lines.items():
        whole = ("\n".join(content) + "\n").encode()
        if name == spoilt:
            whole = _spoil_lines(rng, whole) if number % 2 else spoil_bytes(rng, whole)
        (where / f"{name}.txt").write_bytes(whole)
    sides = (cub200._Side("training", 1, 2, 6), cub200._Side("test", 3, 4, 6))
    _check_dataset(cub200._load(where, *sides))


def _spoil_lines(rng: Rng, content: bytes) -> bytes:
    return spoil_text(rng, content.decode()).encode(errors="surrogatepass")


def tree(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Make a folder of class folders with something odd in it."""
    for value in range(int(rng.integers(0, 7)) * 2):
        _draw(where / "photos" / f"c{value // 2}" / f"{value}.png", value)
    (where / "photos").mkdir(exist_ok=True)
    for _ in range(int(rng.integers(0, 4))):
        _oddity(rng, where / "photos")
    dataset = folder.load("photos", where)
    _check_dataset(dataset)


def _oddity(rng: Rng, photos: Path) -> None:
    inside = photos / pick(rng, ("c0", "c1", "new", "x\ny", "é\u202e", "[red]", " ", ".hidden"))
    inside.mkdir(exist_ok=True)
    name = pick(rng, ("a.png", "b.JPG", "a b\n.png", "n.txt", ".h.png", "\udcff.png", "x" * 200))
    path, way = inside / name, int(rng.integers(6))
    if path.exists() or path.is_symlink():
        return
    if way == 0:
        path.write_bytes(rng.bytes(20))
    elif way == 1:
        path.symlink_to(pick(rng, (photos, inside, path, Path("nowhere"), Path("/dev/null"))))
    elif way == 2:
        path.mkdir()
    elif way == 3:
        os.mkfifo(path)
    elif way == 4:
        _draw(inside / "deep" / "er" / "a.png", 3)
    else:
        path.touch()


def _check_dataset(dataset: Dataset) -> None:
    """Check that a data set keeps its promises and that its images decode."""
    check_dataset(dataset)
    for side in (dataset.train, dataset.test):
        for i in range(len(side)):
            _check_image(side.read(i))


def image(rng: Rng, number: int, where: Path) -> None:  # noqa: ARG001
    """Damage an image file of any of several formats and modes."""
    mode = pick(rng, ("RGB", "L", "RGBA", "P", "1", "CMYK", "I", "F", "LA", "I;16"))
    form = pick(rng, ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "ico", "tga"))
    path = where / "image"
    canvas = Image.fromarray(rng.integers(0, 255, (12, 15, 3), dtype=np.uint8))
    try:
        canvas.convert(mode).save(path, form)
    except (OSError, ValueError, KeyError):  # the format has no such mode
        canvas.save(path, "png")
    path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    _check_image(decode(path))


def _check_image(pixels: Any) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise WrongSuccessError(f"an image decoded to {pixels.dtype} {pixels.shape}")


KINDS: dict[str, tuple[Trial, float]] = {
    "recipe files": (recipe, 28),
    "benchmark files": (benchmark, 12),
    "settings": (setting, 12),
    "records": (record, 16),
    "per-query results": (queries, 6),
    "embeddings": (embeddings, 10),
    "embedding files": (embedding_files, 10),
    "CUB index files": (cub, 4),
    "folder trees": (tree, 4),
    "image files": (image, 14),
    "special files": (special, 8),
    "archives": (planted.archive, 12),
    "weights files": (planted.weights, 6),
    "arguments": (planted.arguments, 14),
    "runs": (run, 0.5),
}
"""Each kind of input, and its share of all inputs."""
