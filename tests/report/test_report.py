"""The report: one HTML file of all results."""

import base64
import hashlib
import io
import json
import re
import shutil
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.command import said
from helpers.factorial import study_records
from helpers.runs import record
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from mlbench.cli import main
from mlbench.comparison.advice import advise
from mlbench.comparison.comparison import Comparison, compare
from mlbench.comparison.ladder import ladder
from mlbench.comparison.rows import Row
from mlbench.datasets.folder import load as load_folder
from mlbench.errors import printable
from mlbench.interfaces import Dataset, ImageSet
from mlbench.metrics.evaluation import evaluate_queries, summarize
from mlbench.metrics.roc import Interval, Verification
from mlbench.recipes.plan import Plan, Request, make_plan
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.records import scores, store
from mlbench.records.record import EpochRow, RunRecord
from mlbench.report import maps, plots, write_report
from mlbench.report import page as page_module
from mlbench.report.classes import QueryFigures, query_figures
from mlbench.report.data import embeddings_of
from mlbench.report.effects import shown_effects
from mlbench.report.gallery import choose
from mlbench.report.groups import groups
from mlbench.report.ladders import ladders
from mlbench.report.plots import name_rows
from mlbench.report.style import COLOURS, styles
from mlbench.report.svg import Picture, draw
from mlbench.report.thumbnails import Album
from mlbench.tables.layout import sheet

HOSTILE_CLASS = "x<img src=x onerror=alert(1)>&\"'_$x$"
HOSTILE_LOSS = "</script><script>alert('loss')</script>$\\frac{$"
LOSSES = ("npairs", "softtriple", HOSTILE_LOSS)


@dataclass
class Element:
    """An element of a page: what the tests ask of it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Parsed(HTMLParser):
    """The elements of a page, in the order of their opening tags."""

    elements: list[Element] = field(default_factory=list)
    opened: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.elements.append(element)
        if tag not in ("meta", "link", "input", "img", "br"):
            self.opened.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self.opened and self.opened.pop().tag != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self.opened:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = attributes.items()
        return [e for e in self.elements if e.tag == tag and wanted <= e.attributes.items()]


def parsed(text: str) -> Parsed:
    found = Parsed()
    found.feed(text)
    return found


def block(text: str, suffix: str) -> dict[str, Any]:
    """Return the JSON block whose id ends in ``suffix``."""
    blocks = [e for e in parsed(text).all("script") if e.attributes.get("id", "").endswith(suffix)]
    return json.loads(blocks[0].text)


@dataclass(frozen=True)
class Study:
    """A results folder with the data behind it."""

    folder: Path
    photos: Path
    dataset: Dataset
    embeddings: dict[tuple[str, int], np.ndarray]

    def text(self, name: str = "again.html") -> str:
        out = self.folder.parent / name
        write_report(self.folder, out, self.photos.parent)
        return out.read_text(encoding="utf-8")


def make_photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d1", "d_2", HOSTILE_CLASS):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((160, 120)).save(folder / name / f"{i}.png")
    return folder


def make_record(spec: RunSpec, dataset: Dataset, embeddings: np.ndarray) -> tuple[RunRecord, Any]:
    queries = evaluate_queries(embeddings, dataset.test.labels, ks=spec.recipe.evaluation.ks)
    facts = replace(
        record(spec).dataset, name=dataset.name, fingerprint=dataset.fingerprint, test_images=24
    )
    curve = tuple(EpochRow(i, 2.0 / (i + 1 + spec.seed), 0.1, None) for i in range(3))
    metrics = {**summarize(queries), "NMI": 0.5}
    return record(spec, dataset=facts, metrics=metrics, curve=curve), queries


def make_study(folder: Path) -> Study:
    photos = make_photos(folder / "photos")
    dataset = load_folder(str(photos), None)
    plan = make_plan(Request(dataset=f"folder:{photos}", losses=("npairs",)))
    rng, embeddings = np.random.default_rng(1), {}
    centres = rng.normal(size=(3, 4))
    for number, loss in enumerate((*LOSSES, "pca")):
        for seed in (0, 1):
            noise = rng.normal(size=(24, 4)) * (0.5 + number)
            embeddings[loss, seed] = (centres[dataset.test.labels] + noise).astype(np.float16)
            made = make_record(
                RunSpec(plan.recipe, LossSpec(loss), seed), dataset, embeddings[loss, seed]
            )
            path = store.save(folder / "results", *made)
            if loss != "pca":
                np.save(path.with_suffix(".embeddings.npy"), embeddings[loss, seed])
    return Study(folder / "results", photos, dataset, embeddings)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(study: Study) -> str:
    return study.text("report.html")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures empty, which take most of the time, where a test is about the rest."""

    def empty(name: str, title: str, *_: object) -> Picture:
        return Picture(Markup(""), title)

    monkeypatch.setattr(plots, "draw", empty)


def best_first(comparison: Comparison) -> tuple[Row, ...]:
    order = sorted(comparison.rows, key=lambda row: row.estimates["R@1"].mean, reverse=True)
    return tuple(sorted(order, key=lambda row: not row.baseline))


def test_the_page_opens_on_the_advice_and_the_best_loss(study: Study, text: str) -> None:
    (comparison,) = compare(store.read_results(study.folder).records)
    page = parsed(text)
    leads = [e.text for e in page.all("p") if e.attributes.get("class") == "lead"]
    assert leads == [advise(replace(comparison, rows=best_first(comparison)))]
    assert "npairs has the highest R@1" in leads[0]
    drawn = [e for e in page.all("input") if e.attributes["type"] == "radio"]
    assert "checked" in drawn[0].attributes
    assert block(text, "-data")["gallery"]["rows"][0]["label"] == "npairs"


def test_the_table_is_the_one_that_mlbench_prints(study: Study, text: str) -> None:
    (comparison,) = compare(store.read_results(study.folder).records)
    wanted = sheet(replace(comparison, rows=best_first(comparison)))
    page = parsed(text)
    buttons = [button.text for button in page.all("button")]
    assert tuple(buttons[: len(wanted.header)]) == wanted.header
    cells = [e.text for e in page.elements if e.tag == "td" or e.attributes.get("scope") == "row"]
    flat = [cell for line in wanted.lines for cell in line.cells]
    assert cells[: len(flat)] == flat
    bold = [strong.text for strong in page.all("strong")]
    assert bold[: sum(sum(line.bold) for line in wanted.lines)] == [
        cell
        for line in wanted.lines
        for cell, is_bold in zip(line.cells, line.bold, strict=True)
        if is_bold
    ]
    for note in wanted.notes:
        assert any(note == item.text for item in page.all("li"))


def test_nothing_is_loaded_from_elsewhere(text: str) -> None:
    page = parsed(text)
    for element in page.elements:
        assert element.tag not in ("link", "iframe", "object", "embed", "form", "base")
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert element.attributes.get(key, "#").startswith("#")
    assert "url(" not in "".join(e.text for e in page.all("style"))
    (policy,) = (
        e.attributes["content"]
        for e in page.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (script,) = (e.text for e in page.all("script") if "type" not in e.attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_hostile_names_stay_text(text: str) -> None:
    page = parsed(text)
    assert not page.all("img")
    assert not any("onerror" in e.attributes for e in page.elements)
    kinds = Counter(e.attributes.get("type", "script") for e in page.all("script"))
    assert kinds == {"script": 1, "application/json": 2}
    assert HOSTILE_LOSS in [e.text for e in page.all("th")]
    assert any(HOSTILE_CLASS in e.text for e in page.all("desc"))
    assert HOSTILE_CLASS in [e.text for e in page.all("th")]
    assert "</script" not in text[text.index("application/json") :].partition("</script>")[0]
    (album,) = (e for e in page.all("script") if e.attributes.get("id", "").startswith("images-"))
    assert json.loads(album.text)["classes"] == ["d1", "d_2", HOSTILE_CLASS]


def test_ids_are_unique_and_every_reference_leads_somewhere(text: str) -> None:
    page = parsed(text)
    ids = Counter(e.attributes["id"] for e in page.elements if "id" in e.attributes)
    assert max(ids.values()) == 1
    for element in page.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert element.attributes.get(key, next(iter(ids))) in ids
        for key in ("href", "xlink:href"):
            target = element.attributes.get(key)
            assert target is None or target[1:] in ids
    for clip in re.findall(r"url\(#([^)]*)\)", text):
        assert clip in ids
    pictures = page.all("svg", role="img")
    assert len(pictures) >= 8
    assert all("aria-labelledby" in e.attributes for e in pictures)


def test_figures_take_their_colours_from_the_page(text: str) -> None:
    drawn = re.findall(r"<svg role=\"img\".*?</svg>", text, flags=re.DOTALL)
    assert not any(re.search(r"#[0-9a-f]{6}\b", svg) for svg in drawn)
    assert any("var(--c0)" in svg for svg in drawn)
    css = text[text.index("<style>") : text.index("</style>")]
    for name in set(re.findall(r"var\((--[\w-]+)\)", text)) - {"--hue"}:
        assert f"{name}:" in css


def test_the_same_records_give_the_same_file(study: Study, text: str, tmp_path: Path) -> None:
    shutil.copytree(study.folder, tmp_path / "moved")
    write_report(tmp_path / "moved", tmp_path / "again.html", study.photos.parent)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_the_gallery_shows_what_each_loss_found(study: Study, text: str) -> None:
    data, album = block(text, "-data")["gallery"], block(text, study.dataset.fingerprint[:12])
    labels = study.dataset.test.labels
    assert album["labels"] == labels.tolist()
    assert tuple(row["label"] for row in data["rows"]) == LOSSES
    assert data["classes"] == [0, 1, 2]
    for query in data["queries"]:
        for row, nearest in zip(data["rows"], query["nearest"], strict=True):
            unit = study.embeddings[row["label"], 0].astype(np.float64)
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            similarity = unit @ unit[query["image"]]
            similarity[query["image"]] = -np.inf
            assert nearest == np.argsort(-similarity)[:5].tolist()
            assert {str(i) for i in nearest} <= album["pictures"].keys()
    assert album["pictures"].keys() == album["names"].keys()
    assert all(study.dataset.test.names[int(i)] == name for i, name in album["names"].items())
    picture = base64.b64decode(album["pictures"][str(data["queries"][0]["image"])])
    assert picture[:4] == b"RIFF"


def test_every_picture_is_embedded_once(study: Study, text: str) -> None:
    pictures = block(text, study.dataset.fingerprint[:12])["pictures"].values()
    assert len(pictures) == 24
    assert all(text.count(each) == 1 for each in pictures)


@pytest.mark.usefixtures("no_figures")
def test_pictures_keep_to_their_budget(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "PICTURE_BUDGET", 5000)
    small = study.text()
    pictures = block(small, study.dataset.fingerprint[:12])["pictures"]
    assert 0 < sum(map(len, pictures.values())) <= 5000
    shown = block(small, "-data")["gallery"]["queries"]
    needed = {str(i) for query in shown for near in query["nearest"] for i in near}
    assert needed <= pictures.keys()


def test_the_map_has_a_point_for_each_image_and_right_ones_are_marked(
    study: Study, text: str
) -> None:
    data = block(text, "-data")["map"]
    assert sorted(data["points"]) == list(range(24))
    results = store.read_results(study.folder).records
    for each in data["maps"]:
        (path,) = (p for p, r in results.items() if (r.loss, r.seed) == (each["label"], 0))
        hits = scores.query_scores(path, "R@1")
        assert hits is not None
        assert each["right"] == hits[data["points"]].tolist()
        assert np.shape(each["places"]) == (24, 2)


@pytest.mark.usefixtures("no_figures")
def test_without_the_images_the_rest_is_there(study: Study) -> None:
    moved = study.photos.rename(study.photos.with_name("elsewhere"))
    try:
        missing = study.text()
    finally:
        moved.rename(study.photos)
    notes = [e.text for e in parsed(missing).all("p", **{"class": "missing"})]
    assert len(notes) == 3
    assert all("is not a folder" in note and "\n" not in note for note in notes)
    assert "R@1: npairs reaches" in missing
    assert "application/json" in missing
    Image.new("RGB", (9, 9)).save(study.photos / "d1" / "new.png")
    try:
        assert "differ from those used in the records" in study.text()
    finally:
        (study.photos / "d1" / "new.png").unlink()


@pytest.mark.usefixtures("no_figures")
def test_old_records_say_what_they_lack(study: Study, tmp_path: Path) -> None:
    for path, made in store.read_results(study.folder).records.items():
        with np.load(path.with_suffix(".npz")) as arrays:
            kept = {name: arrays[name] for name in arrays if name != "neighbors"}
        target = store.save(tmp_path / "old", replace(made, queries_sha256=None), None)
        np.savez_compressed(target.with_suffix(".npz"), **kept)
    write_report(tmp_path / "old", tmp_path / "old.html", study.photos.parent)
    notes = [e.text for e in parsed((tmp_path / "old.html").read_text()).all("p")]
    assert any("contain no neighbours" in note for note in notes)
    assert any("mlbench run --keep-model" in note for note in notes)
    assert "The 10 worst classes" not in notes


def command(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.mark.usefixtures("no_figures")
def test_damaged_records_are_named_and_left_out(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.folder, tmp_path / "results")
    (tmp_path / "results" / "<b>.json").write_text("{")
    output = tmp_path / "new" / "r.html"
    result = command(tmp_path / "results", "-o", output)
    assert result.exit_code == 0, result.output
    assert "Warning: skipped" in result.stderr
    page = parsed(output.read_text(encoding="utf-8"))
    assert "1 damaged record skipped" in page.all("p", **{"class": "warning"})[0].text
    assert any(e.text.startswith("<b>.json: not valid JSON") for e in page.all("li"))


def test_what_cannot_be_reported_is_one_line(study: Study, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "file").touch()
    output = tmp_path / "out.html"
    refused = (
        ((tmp_path / "none", "-o", output), "no results folder"),
        ((tmp_path, "-o", output), "no readable record"),
        ((study.folder, "-o", tmp_path), "is a folder"),
        ((study.folder, "-o", tmp_path / "file" / "r.html"), "cannot write"),
    )
    for arguments, words in refused:
        result = command(*arguments)
        assert result.exit_code == 2
        (line,) = said(result)
        assert words in line
    assert not output.exists()


def test_runs_that_diverged_and_other_recipes_have_their_place(tmp_path: Path) -> None:
    plan = make_plan(Request(dataset="cub200", losses=("npairs",), seeds=2))
    longer = (("schedule.epochs", 9),)
    other = make_plan(Request(dataset="cub200", losses=("npairs",), settings=longer))
    first, second = plan.runs()
    store.save(tmp_path, record(first), None)
    store.save(tmp_path, record(second, status="diverged", metrics={}), None)
    store.save(tmp_path, record(other.runs()[0], status="diverged", metrics={}, curve=()), None)
    write_report(tmp_path, tmp_path / "r.html")
    page = parsed((tmp_path / "r.html").read_text())
    assert "2 comparisons" in page.all("h1")[0].text
    assert any(e.text == "1 (1 diverged)" for e in page.all("td"))


@pytest.mark.parametrize("rule", ["validation", "test-best"])
def test_scores_by_epoch_are_drawn(tmp_path: Path, rule: str) -> None:
    rules = (("selection.rule", rule), ("selection.folds", 2))
    (spec, *_) = make_plan(Request(dataset="cub200", losses=("npairs",), settings=rules)).runs()
    curve = (EpochRow(0, 1.0, 0.1, 0.25), EpochRow(1, 0.5, 0.1, 0.5), EpochRow(2, None, 0.1, None))
    store.save(tmp_path, record(spec, curve=curve), None)
    write_report(tmp_path, tmp_path / "r.html")
    page = parsed((tmp_path / "r.html").read_text())
    wanted = {"validation": "MAP@R on validation", "test-best": "R@1 on test"}[rule]
    (title,) = (e.text for e in page.all("title") if "by epoch" in e.text)
    assert title.startswith(wanted)


def test_rows_keep_their_runs(study: Study) -> None:
    results = store.read_results(study.folder).records
    places = [
        replace(r, provenance=replace(r.provenance, device="cuda")) if r.seed else r
        for r in results.values()
    ]
    records = dict(zip(results, places, strict=True))
    path, first = next(iter(results.items()))
    repeats = {**results, path.with_name("zz.json"): replace(first, loss_report={})}
    for given_records in (results, records, repeats):
        (group,) = groups(given_records)
        assert tuple(e.row for e in group.entries) == best_first(compare(given_records)[0])
        for entry in group.entries:
            assert len(entry.runs) == entry.row.runs
            mean = np.mean([r.metrics["R@1"] for r in entry.runs.values()])
            assert entry.row.estimates["R@1"].mean == pytest.approx(mean)


def test_the_roc_is_the_mean_of_runs_where_all_have_it(study: Study) -> None:
    (group,) = groups(store.read_results(study.folder).records)
    drawn = styles([e.label for e in group.entries], [])
    assert plots.roc_plot(group, drawn, "roc") is None

    entry = next(entry for entry in group.trained if entry.runs)
    rate = Interval(0.1, 0.0, 0.2)
    curves = [((0.01, 0.25), (1.0, 1.0)), ((0.1, 0.5), (1.0, 1.0)), ((0.1, 0.7), (1.0, 1.0))]
    made = next(iter(entry.runs.values()))
    runs = [replace(made, verification=Verification(9, 90, rate, (), roc)) for roc in curves]
    measured = [replace(entry, runs={Path(str(i)): run}) for i, run in enumerate(runs)]
    pair = replace(entry, runs=dict(zip(map(Path, "ab"), runs[1:], strict=True)))
    for each, words in zip(
        (*measured, pair), ("25.0 percent at FAR 0.01", "50.0", "70.0", "60.0"), strict=True
    ):
        picture = plots.roc_plot(replace(group, entries=(each,)), drawn, "roc")
        assert picture is not None
        assert words in picture.svg


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1))
def test_recall_by_class_is_the_share_of_hits(pairs: list[tuple[int, bool]]) -> None:
    classes = np.array([0, 1, 2, 3, *(c for c, _ in pairs)])
    hits = np.array([1.0, 0, 0, 1, *(float(hit) for _, hit in pairs)])
    figures = QueryFigures(("a",), hits[None], hits[None])
    for c in range(4):
        of_class = [hit for own, hit in zip(classes, hits, strict=True) if own == c]
        wanted = sum(of_class) / len(of_class)
        assert figures.by_class(classes, 4)[0, c] == pytest.approx(wanted)


def test_query_figures_average_runs_and_leave_out_what_does_not_fit(study: Study) -> None:
    (group,) = groups(store.read_results(study.folder).records)
    assert query_figures(group.trained, 23) is None
    figures = query_figures(group.trained, 24)
    assert figures is not None
    for entry, found in zip(group.trained, figures.found, strict=True):
        assert found.mean() == pytest.approx(entry.row.estimates["R@1"].mean)


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_hardest_of_each_class_comes_first(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.repeat(np.arange(5), 4))
    found, ap = rng.integers(0, 3, (2, rows, 20)) / 2
    choices = choose(QueryFigures(("x",) * rows, found, ap), classes, 5)
    assert len({choice.query for choice in choices}) == len(choices)
    first = [choice.query for choice in choices[:5]]
    key = [(found[:, q].mean(), ap[:, q].mean()) for q in range(20)]
    assert {int(classes[q]) for q in first} == set(range(5))
    assert [key[q] for q in first] == sorted(key[q] for q in first)
    for q in first:
        assert key[q] == min(key[other] for other in range(20) if classes[other] == classes[q])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_the_sample_of_a_map_is_even_over_classes(sizes: list[int], most: int) -> None:
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "POINTS", most)
        points = maps.sample(classes)
    assert len(set(points.tolist())) == len(points) == min(most, len(classes))
    assert (np.diff(classes[points]) >= 0).all()
    taken = np.bincount(classes[points], minlength=len(sizes))
    for size, count in zip(sizes, taken, strict=True):
        assert count == size or count >= taken.max() - 1


def test_a_layout_is_seeded_and_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], 10)
    embeddings = (10 * np.eye(3)[classes] + rng.normal(size=(30, 3))).astype(np.float32)
    places = maps.layout(embeddings)
    assert (places == maps.layout(embeddings)).all()
    assert places.min() >= 0
    assert places.max() <= maps.SIZE
    middles = np.stack([places[classes == c].mean(axis=0) for c in range(3)])
    nearest = np.linalg.norm(places[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == classes).all()


def test_umap_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Umap:
        def __init__(self, **options: object) -> None:
            assert options["random_state"] == 0

        def fit_transform(self, unit: np.ndarray) -> np.ndarray:
            return unit[:, :2]

    module = types.ModuleType("umap")
    module.__dict__.update(UMAP=Umap, __spec__=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "umap", module)
    assert maps.method() == "UMAP"
    places = maps.layout(np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    assert places[0, 0] == pytest.approx(maps.SIZE * 0.98)


@pytest.mark.parametrize("damage", ["missing", "bytes", "short", "flat", "nan", "pickle"])
def test_embeddings_that_are_not_the_runs_own_are_left_out(tmp_path: Path, damage: str) -> None:
    path, file = tmp_path / "a.b.json", tmp_path / "a.b.embeddings.npy"
    good = np.ones((5, 2), np.float16)
    np.save(file, good)
    found = embeddings_of(path, 5)
    assert found is not None
    assert (found == good).all()
    if damage == "missing":
        file.unlink()
    elif damage == "bytes":
        file.write_bytes(b"\x93NUMPY")
    else:
        bad: Any = {
            "short": good[:4],
            "flat": good[:, 0],
            "nan": good * np.nan,
            "pickle": np.array([{}] * 5, dtype=object),
        }
        np.save(file, bad[damage], allow_pickle=damage == "pickle")
    assert embeddings_of(path, 5) is None


def images(count: int, value: int) -> ImageSet:
    def read(i: int) -> np.ndarray:
        return np.full((6, 9, 3), value + i, np.uint8)

    names = tuple(f"{value}-{i}" for i in range(count))
    return ImageSet(names, np.arange(count) % 2, ("a", "b"), read)


def test_an_album_numbers_the_gallery_after_the_queries() -> None:
    plain = Album(Dataset("x", images(2, 0), images(4, 10), "f"))
    assert (plain.offset, plain.searched, len(plain.labels)) == (0, 4, 4)
    both = Album(Dataset("x", images(2, 0), images(4, 10), "f", gallery=images(3, 200)))
    assert (both.offset, both.searched) == (4, 3)
    assert both.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert both.names == {}
    assert not both.take([0])
    both.grant(10_000)
    assert both.take([0, 4])
    assert both.names == {0: "10-0", 4: "200-0"}
    query, found = (Image.open(io.BytesIO(base64.b64decode(both.taken[i]))) for i in (0, 4))
    assert query.size == found.size == (6, 6)
    assert np.asarray(query).mean() < 50 < 150 < np.asarray(found).mean()


def ladder_plans() -> list[Plan]:
    start, end = (make_plan(Request(recipe=r, losses=("softtriple",))) for r in ("blog", "paper"))
    return [rung.plan for rung in ladder(start, end)]


def test_a_ladder_is_known_by_its_rungs() -> None:
    plans = ladder_plans()
    rungs = {
        Path(f"{number}.json"): record(plan.runs()[0], 0.1 * number)
        for number, plan in enumerate(plans)
    }
    bystander = make_plan(Request(losses=("softtriple",))).runs()[0]
    (found,) = ladders({**rungs, Path("x.json"): record(bystander)})
    assert len(found.sheet.lines) == len(plans)
    assert [line.cells[2] for line in found.sheet.lines] == [
        f"{10 * number:.1f}" for number in range(len(plans))
    ]
    assert "after each change: start 0.0" in found.picture.svg
    broken = {path: r for path, r in rungs.items() if path.stem != "4"}
    assert max((len(each.sheet.lines) for each in ladders(broken)), default=0) <= 4


def test_the_page_shows_a_factorial_study() -> None:
    records = {Path(f"{name}.json"): run for name, run in study_records().items()}
    (found,) = shown_effects(records)
    assert found.sheet.title == "softtriple: effects of 7 factors, 2^(7-3), resolution IV"
    assert "Effects on R@1 in percentage points: input +4.9 ± 0.4" in found.picture.svg
    assert "var(--good)" in found.picture.svg
    del records[Path("row-03.json")]
    assert shown_effects(records) == []
    bare = {path: replace(run, class_totals=None) for path, run in records.items()}
    assert shown_effects(bare) == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [((10, 12, 11, 12), False), ((10, 12, 12, 15), False), ((10, 12, 15, 18), True)],
)
def test_cost_is_drawn_where_losses_differ_in_it(seconds: tuple[int, ...], shown: bool) -> None:
    plan = make_plan(Request(dataset="cub200", losses=("npairs", "triplet"), seeds=2))
    made = {}
    for spec in plan.runs():
        first = ("npairs", "triplet").index(spec.loss.name) * 2 + spec.seed
        cost = replace(record(spec).cost, seconds={"train": float(seconds[first])})
        made[Path(f"{first}.json")] = record(spec, cost=cost)
    (group,) = groups(made)
    looks = styles(["npairs", "triplet"], [])
    titles = [picture.title for picture in plots.cost_plots(group, looks, "c")]
    assert titles == ["Training time against R@1"] * shown


def test_every_loss_has_its_own_mark() -> None:
    names = [f"loss{i}" for i in range(COLOURS**2)]
    found = styles(names, ["pca"])
    assert len({(s.colour, s.marker) for s in found.values()}) == len(names) + 1
    assert found == styles(reversed(names), ["pca"])


def test_a_figure_survives_any_name() -> None:
    name = '\u9ce5\x0b<&">$\\f$ id="x"' + "z" * 300
    picture = draw("n", name, name, (3, 2), lambda axes: name_rows(axes, [name]))
    page = parsed(str(picture.svg))
    assert [e.text for e in (*page.all("title"), *page.all("desc"))] == [printable(name)] * 2
    assert len(page.all("svg")) == 1
    assert any("鳥" in e.text for e in page.all("text"))


def test_a_long_label_keeps_its_loss_and_the_end_of_its_parameters() -> None:
    label = "softtriple (centers_per_class=20, gamma=0.328, la=73.3, tau=0.0)"
    picture = draw("n", "t", "d", (3, 2), lambda axes: name_rows(axes, [label]))
    texts = [element.text for element in parsed(str(picture.svg)).all("text")]
    assert "softtriple" in texts
    (parameters,) = (text for text in texts if text.startswith("("))
    assert parameters.endswith("tau=0.0)")
    assert len(parameters) == 34


def test_figures_are_written_as_files_that_stand_alone(study: Study, text: str) -> None:
    folder = study.folder.parent / "figures"
    page = folder / "page.html"
    arguments = ["report", str(study.folder), "-o", str(page), "--figures", str(folder)]
    arguments += ["--data-root", str(study.photos.parent)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert page.read_text(encoding="utf-8") == text
    titles = [e.text for e in parsed(text).all("title")[1:]]
    files = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    assert len(files) == len(titles) > 5
    namespace = "{http://www.w3.org/2000/svg}"
    for content in files.values():
        root = ElementTree.fromstring(content)
        assert root.tag == f"{namespace}svg"
        assert "var(" not in content
        title = root.findtext(f"{namespace}title")
        assert root.findtext(f"{namespace}text") == title
        assert title in titles
    assert "softtriple" in files["comparison-1-at-k"]


def test_figures_that_cannot_be_written_are_one_line(study: Study, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(
        main, ["report", str(study.folder), "-o", str(page), "--figures", str(page)]
    )
    assert result.exit_code != 0
    assert len(re.findall("Error", result.stderr)) == 1
    assert "cannot write" in result.stderr


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(text: str, study: Study) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no chromium with chromedriver here (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    still = "--force-prefers-reduced-motion"  # or clicks miss what still scrolls
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", still):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        opened.set_script_timeout(20)
        opened.get((study.folder.parent / "report.html").as_uri())
        yield opened


def column(browser: Any, number: int) -> list[str]:
    script = """return [...document.querySelector("table").tBodies[0].rows]
        .map((row) => row.cells[arguments[0]].textContent)"""
    return browser.execute_script(script, number)


def test_a_click_or_a_key_sorts_the_table(browser: Any) -> None:
    button = browser.find_elements("css selector", "table th button")[1]
    assert button.text == "R@1"
    before = column(browser, 1)
    figures = sorted(before, key=lambda cell: float(cell.split()[0]))
    button.click()
    assert column(browser, 1) == figures[::-1]
    order = "return arguments[0].closest('th').ariaSort"
    assert browser.execute_script(order, button) == "descending"
    button.send_keys("\ue007")  # Enter
    assert column(browser, 1) == figures
    assert browser.execute_script(order, button) == "ascending"
    first = browser.find_elements("css selector", "table th button")[0]
    first.click()
    assert column(browser, 0) == sorted(column(browser, 0), key=str.lower)
    assert browser.execute_script(order, button) == "none"


def near(browser: Any, selector: str) -> Any:
    """Scroll to a part that is made when it comes near, and wait for it."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    corner = ActionChains(browser).w3c_actions  # where the pointer is over no image
    corner.pointer_action.move_to_location(1, 1)
    corner.perform()
    part = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView()", part)
    WebDriverWait(browser, 20).until(lambda _: part.find_element("class name", "status").text)
    return part


def test_the_gallery_switches_by_class_and_loss(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    gallery = near(browser, ".gallery")
    Select(gallery.find_element("tag name", "select")).select_by_visible_text(HOSTILE_CLASS)
    cards = gallery.find_elements("tag name", "article")
    assert cards
    assert {card.find_element("tag name", "strong").text for card in cards} == {HOSTILE_CLASS}
    assert len(cards[0].find_elements("class name", "answers")) == 3
    for answer in cards[0].find_elements("tag name", "li"):
        words = answer.find_element("tag name", "img").get_attribute("alt")
        right = answer.get_attribute("class") == "right"
        assert words.startswith("right: " if right else "wrong: ")
        assert words.endswith(HOSTILE_CLASS) == right
        assert answer.text == ("✓" if right else "✗")
    gallery.find_elements("css selector", "input")[0].click()
    assert len(gallery.find_elements("css selector", "article:first-child .answers")) == 2
    assert "2 of 3 losses" in gallery.find_element("class name", "status").text


def test_the_map_shows_pictures_to_keys_and_switches_by_loss(browser: Any) -> None:
    part = near(browser, ".map")
    assert len(part.find_elements("css selector", ".plane path")) == 24
    card = part.find_element("class name", "card")
    assert not card.is_displayed()
    browser.execute_script("arguments[0].querySelector('[tabindex=\"0\"]').focus()", part)
    assert card.is_displayed()
    seen = set()
    for _ in range(3):
        browser.switch_to.active_element.send_keys("\ue015")  # arrow down: the next class
        seen.add(card.text.rpartition(",")[0])
    assert seen == {HOSTILE_CLASS, "d1", "d_2"}
    assert card.find_element("tag name", "img").get_property("naturalWidth") == 112
    status = part.find_element("class name", "status").text
    part.find_elements("css selector", "input[type=radio]")[2].click()
    assert part.find_element("class name", "status").text != status


def test_the_browser_finds_nothing_wrong_and_asks_nobody(browser: Any) -> None:
    near(browser, ".map")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"].partition(":")[0]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert "data" in asked
    assert set(asked) <= {"file", "data"}


def test_a_narrow_page_does_not_scroll_sideways(browser: Any) -> None:
    metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        widths = "return [document.documentElement.scrollWidth, innerWidth]"
        needed, there = browser.execute_script(widths)
        assert needed <= there == 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
