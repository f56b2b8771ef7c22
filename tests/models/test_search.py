"""Folders embedded, indexed and searched with a kept model."""

import json
import os
import shutil
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.command import said
from helpers.settings import QUICK
from PIL import Image

import mlbench
from mlbench.cli import main
from mlbench.errors import DataWarning, MlbenchError
from mlbench.metrics.roc import Interval, OperatingPoint
from mlbench.models.index import open_index
from mlbench.models.search import threshold
from mlbench.records import store
from mlbench.records.record import RunRecord


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Path:
    made = mlbench.run(
        "triplet",
        dataset=f"folder:{photos}",
        settings=QUICK | {"evaluation.verification": True, "evaluation.depths": [3, 100]},
        out=tmp_path / "out",
        keep_model=True,
    )
    return store.record_path(tmp_path / "out", made.spec)


def mlbench_(*command: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(part) for part in command])


def refusal(*command: object) -> str:
    """Return the one line with which a command refuses."""
    result = mlbench_(*command)
    assert result.exit_code == 2, result.output
    (line,) = said(result)
    return line


def test_embed_writes_what_eval_reads(photos: Path, tmp_path: Path, run: Path) -> None:
    output = tmp_path / "e.npz"
    result = mlbench_("embed", run, photos, "-o", output)
    assert result.exit_code == 0, result.output
    with np.load(output, allow_pickle=False) as arrays:
        found = dict(arrays)
    names = [f"class{c}/{i}.png" for c in range(6) for i in range(8)]
    assert found["paths"].tolist() == names
    assert found["labels"].tolist() == [name[:6] for name in names]
    assert found["embeddings"].dtype == np.float32
    model = mlbench.load_model(run, device="cpu")
    expected = model.embed([photos / name for name in names])
    np.testing.assert_allclose(found["embeddings"], expected.numpy(), atol=1e-6)
    evaluated = mlbench_("eval", output, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.stdout)["n_class"] == 6


def test_images_outside_of_class_folders_have_no_labels(
    photos: Path, tmp_path: Path, run: Path
) -> None:
    shutil.copy(photos / "class0" / "0.png", photos / "top.png")
    output = tmp_path / "e.npz"
    assert mlbench_("embed", run, photos, "-o", output).exit_code == 0
    with np.load(output, allow_pickle=False) as arrays:
        assert set(arrays) == {"embeddings", "paths"}
        assert "top.png" in arrays["paths"]


def test_bad_images_stop_or_are_left_out(photos: Path, tmp_path: Path, run: Path) -> None:
    (photos / "class1" / "3.png").write_bytes(b"no image")
    (photos / "class2" / "0.png").write_bytes(b"")
    output = tmp_path / "e.npz"
    line = refusal("embed", run, photos, "-o", output)
    assert "2 unreadable images" in line
    assert "class1/3.png" in line
    assert "--on-bad-image skip" in line
    assert not output.exists()
    result = mlbench_("embed", run, photos, "-o", output, "--on-bad-image", "skip")
    assert result.exit_code == 0
    assert "skipped 2" in result.stderr
    with np.load(output, allow_pickle=False) as arrays:
        assert len(arrays["embeddings"]) == len(arrays["paths"]) == len(arrays["labels"]) == 46
        row = arrays["paths"].tolist().index("class5/7.png")
        kept = arrays["embeddings"][row]
    expected = mlbench.load_model(run, device="cpu").embed([photos / "class5" / "7.png"])
    np.testing.assert_allclose(kept, expected[0].numpy(), atol=1e-6)


def test_ctrl_c_leaves_no_file(
    photos: Path, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlbench.models.model.decoded", stop)
    result = mlbench_("embed", run, photos, "-o", tmp_path / "e.npz")
    assert result.exit_code == 130
    assert said(result) == ["Stopped."]
    assert list(tmp_path.glob("*e.npz*")) == []


def test_search_ranks_by_cosine(photos: Path, tmp_path: Path, run: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    query = tmp_path / "query.png"
    Image.open(photos / "class3" / "2.png").rotate(180).save(query)
    result = mlbench_("search", run, query, "--top", 5, "--json")
    assert result.exit_code == 0, result.output
    (answer,) = json.loads(result.stdout)
    assert answer["query"] == str(query)

    paths = sorted(photos.rglob("*.png"))
    model = mlbench.load_model(run, device="cpu")
    cosines = (model.embed(paths).double() @ model.embed([query])[0].double()).numpy()
    expected = np.argsort(-cosines, kind="stable")[:5]
    assert [hit["path"] for hit in answer["results"]] == [str(paths[i]) for i in expected]
    found = [hit["similarity"] for hit in answer["results"]]
    assert found == pytest.approx(cosines[expected].tolist(), abs=1e-6)
    table = mlbench_("search", run, query, "--top", 5).stdout
    assert [table.count(str(paths[i].relative_to(photos))) for i in expected] == [1] * 5


def test_an_index_elsewhere_and_several_queries(photos: Path, tmp_path: Path, run: Path) -> None:
    index = tmp_path / "sub" / "shop.npz"
    assert mlbench_("index", run, photos / "class0", "-o", index).exit_code == 0
    queries = (photos / "class4", photos / "class0" / "6.png")
    result = mlbench_("search", index, *queries, "--top", 100, "--json")
    answers = json.loads(result.stdout)
    assert [Path(a["query"]).parent.name for a in answers] == ["class4"] * 8 + ["class0"]
    counts = [len(a["results"]) for a in answers]
    assert counts == [8] * 8 + [7], "no more than there are, and not the query itself"
    own = str(photos / "class0" / "6.png")
    assert own not in [hit["path"] for hit in answers[-1]["results"]]


def test_a_copy_of_the_query_is_left_out_and_its_class_is_marked(
    photos: Path, tmp_path: Path, run: Path
) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    (tmp_path / "class3").mkdir()
    copy = shutil.copy(photos / "class3" / "2.png", tmp_path / "class3" / "copy.png")
    (answer,) = json.loads(mlbench_("search", run, copy, "--top", 48, "--json").stdout)
    hits = {hit["path"]: hit["same_class"] for hit in answer["results"]}
    assert len(hits) == 47
    assert str(photos / "class3" / "2.png") not in hits
    assert sum(hits.values()) == 7
    elsewhere = shutil.copy(copy, tmp_path / "copy.png")
    (answer,) = json.loads(mlbench_("search", run, elsewhere, "--json").stdout)
    assert {hit["same_class"] for hit in answer["results"]} == {None}


def test_index_and_run_may_move_together(photos: Path, tmp_path: Path, run: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    shutil.move(tmp_path / "out", tmp_path / "moved")
    index = tmp_path / "moved" / run.parent.name / f"{run.stem}.index.npz"
    assert mlbench_("search", index, photos / "class0" / "0.png").exit_code == 0


def test_files_changed_or_gone_are_named(photos: Path, tmp_path: Path, run: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    (photos / "class0" / "0.png").unlink()
    os.utime(photos / "class0" / "1.png", (1, 1))
    sheet = tmp_path / "sheet.html"
    arguments = (run, photos / "class0" / "3.png", "--top", 48)
    result = mlbench_("search", *arguments, "--json", "--html", sheet)
    assert result.exit_code == 0, result.output
    assert "gone since indexed: 1 of 48: class0/0.png" in result.stderr
    assert "changed since indexed: 1 of 48: class0/1.png" in result.stderr
    hits = {Path(hit["path"]).name: hit for hit in json.loads(result.stdout)[0]["results"]
            if "class0" in hit["path"]}  # fmt: skip
    assert [hits[f"{i}.png"]["state"] for i in range(3)] == ["gone", "changed", "same"]
    text = sheet.read_text()
    assert text.count("gone since indexed") == text.count("changed since indexed") == 1
    shutil.rmtree(photos / "class1")
    assert "gone since indexed: 9 of 48" in mlbench_("search", *arguments).stderr


def test_an_index_of_another_model_is_refused(photos: Path, tmp_path: Path, run: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    other = mlbench.run(
        "npairs",
        dataset=f"folder:{photos}",
        settings=QUICK,
        out=tmp_path / "out",
        keep_model=True,
    )
    wrong = store.record_path(tmp_path / "out", other.spec)
    shutil.copy(run.with_suffix(".index.npz"), wrong.with_suffix(".index.npz"))
    query = photos / "class0" / "0.png"
    run.with_suffix(".safetensors").write_bytes(wrong.with_suffix(".safetensors").read_bytes())
    assert "made with another model than" in refusal("search", run, query)
    run.with_suffix(".safetensors").unlink()
    assert "of this index no longer exists" in refusal("search", run, query)


def test_an_index_beside_another_run_is_refused(photos: Path, tmp_path: Path, run: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    copy = run.with_name("copy.json")
    shutil.copy(run, copy)
    shutil.copy(run.with_suffix(".index.npz"), copy.with_suffix(".index.npz"))
    found = refusal("search", copy, photos / "class0" / "0.png")
    assert f"is an index of {run.name}; make one" in found


def test_wrong_input_is_one_line(photos: Path, tmp_path: Path, run: Path) -> None:
    query = photos / "class0" / "0.png"
    assert "no index" in refusal("search", run, query)
    assert "no folder" in refusal("index", run, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no images in or below" in refusal("index", run, tmp_path / "empty")
    assert mlbench_("index", run, photos).exit_code == 0
    assert "no file" in refusal("search", run, tmp_path / "nowhere.png")
    assert "not an image" in refusal("search", run, run)
    assert "no images in or below" in refusal("search", run, tmp_path / "empty")
    assert "not an index" in refusal("search", run.with_suffix(".npz"), query)


@pytest.mark.parametrize("damage", ["cut", "pickle", "shape", "escape"])
def test_a_damaged_index_is_one_line(photos: Path, tmp_path: Path, run: Path, damage: str) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    index = run.with_suffix(".index.npz")
    with np.load(index) as arrays:
        found = dict(arrays)
    paths = found["paths"]
    change = {
        "cut": paths,
        "pickle": paths.astype(object),
        "shape": paths[:-1],
        "escape": np.array(["../../secret.png", *paths[1:]]),
    }
    np.savez(index, **(found | {"paths": change[damage]}))  # type: ignore[arg-type]
    if damage == "cut":
        index.write_bytes(index.read_bytes()[:-900])
    assert "damaged, or not an index" in refusal("search", run, photos / "class0" / "0.png")


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_sheet_is_one_safe_file(photos: Path, tmp_path: Path, run: Path) -> None:
    evil = '"><script>alert(1)<'
    shutil.move(photos / "class2", photos / evil)
    assert mlbench_("index", run, photos).exit_code == 0
    sheet = tmp_path / "sheet.html"
    result = mlbench_("search", run, photos / evil, "--top", 3, "--html", sheet)
    assert result.exit_code == 0, result.output
    text = sheet.read_text()
    tags = _Tags(text).found
    assert {tag for tag, _ in tags} & {"script", "link", "iframe"} == set()
    pictures = [given["src"] for tag, given in tags if tag == "img"]
    assert len(pictures) == 8 * (1 + 3)
    assert all(src and src.startswith("data:image/webp;base64,") for src in pictures)
    policy = [given["content"] for tag, given in tags if "http-equiv" in given]
    assert policy[0]
    assert policy[0].startswith("default-src 'none'; img-src data:;")
    assert "prefers-color-scheme: dark" in text
    assert text.count("<article") == 8


def test_a_sheet_has_only_so_many_queries(
    photos: Path, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlbench.report.search.QUERIES", 2)
    assert mlbench_("index", run, photos).exit_code == 0
    sheet = tmp_path / "sheet.html"
    assert mlbench_("search", run, photos / "class0", "--html", sheet).exit_code == 0
    assert "Only the first 2 queries are shown" in sheet.read_text()
    assert sheet.read_text().count("<article") == 2


def test_what_is_not_read_is_counted_by_every_command(
    photos: Path, tmp_path: Path, run: Path
) -> None:
    (photos / "class0" / "x.heic").write_bytes(b"no image")
    os.mkfifo(photos / "class1" / "pipe.png")
    wanted = "2 not read (.heic: 1, pipes, sockets or devices: 1); docs/data.md lists the formats"
    settings = (f"--set={key}={value}" for key, value in QUICK.items())
    data, out, index = f"folder:{photos}", tmp_path / "again", tmp_path / "i.npz"
    for command in (
        ("data", "verify", data),
        ("embed", run, photos, "-o", tmp_path / "e.npz"),
        ("index", run, photos, "-o", index),
        ("search", index, photos, "--top", 1),
        ("run", "--losses", "triplet", "--dataset", data, "--out", out, *settings),
    ):
        with warnings.catch_warnings(record=True) as caught:  # some commands print them themselves
            warnings.simplefilter("always", DataWarning)
            result = mlbench_(*command)
        assert result.exit_code == 0, result.output
        warned = {str(each.message) for each in caught} or set(said(result))
        assert len([line for line in warned if line.endswith(wanted)]) == 1, command


def test_odd_images_are_indexed_searched_and_shown(photos: Path, tmp_path: Path, run: Path) -> None:
    odd = photos / "odd"
    odd.mkdir()
    Image.new("CMYK", (9, 7), (9, 99, 0, 0)).save(odd / "cmyk.tif")
    Image.new("I;16", (9, 7), 30_000).save(odd / "grey16.png")
    Image.new("P", (9, 7)).save(odd / "palette.png", transparency=0)
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    frames[0].save(odd / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), "red").save(odd / "point.png")
    Image.new("RGB", (2000, 2), "red").save(odd / "wide.png")
    Image.new("L", (2, 2000)).save(odd / "high.png")
    assert mlbench_("index", run, photos).exit_code == 0
    result = mlbench_("search", run, odd, "--html", tmp_path / "sheet.html", "--json", "--top", 1)
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert len(answers) == 7
    assert all(answer["results"][0]["path"] != answer["query"] for answer in answers)
    assert (tmp_path / "sheet.html").read_text().count('src="data:image/webp;base64,UklGR') == 14


def test_a_record_keeps_the_verification_that_was_asked_for(run: Path) -> None:
    record = store.load(run)
    assert record.verification is not None
    assert (record.verification.genuine, record.verification.impostor) == (3 * 28, 3 * 64)
    assert record.verification.roc[-1] == (1.0, 1.0)
    assert {"P@3", "mAP@3", "P@100", "mAP@100"} < set(record.metrics)
    assert record.totals is not None
    assert record.totals.means["mAP@3"] == pytest.approx(record.metrics["mAP@3"], abs=1e-6)
    plain = replace(record, verification=None)
    assert '\n "verification"' not in plain.to_json()
    assert RunRecord.from_json(record.to_json(), "it") == record
    with pytest.raises(MlbenchError, match="measured no threshold"):
        threshold("far=0.1", record)


def test_a_threshold_says_same_or_different(run: Path, photos: Path) -> None:
    assert mlbench_("index", run, photos).exit_code == 0
    query = photos / "class0" / "0.png"
    (answer,) = json.loads(mlbench_("search", run, query, "--json", "--threshold", "0.99").stdout)
    for hit in answer["results"]:
        assert hit["verdict"] == ("same" if hit["similarity"] >= 0.99 else "different")
    printed = mlbench_("search", run, query, "--threshold", "-1").output
    assert "from -1.0000" in printed
    assert "different" not in printed
    line = refusal("search", run, query, "--threshold", "far=0.1")
    assert "no threshold at FAR 0.1" in line
    for text in ("2", "nan", "x", "tar=0.1", "far="):
        assert "--threshold" in refusal("search", run, query, "--threshold", text)


def test_the_threshold_at_a_false_accept_rate_is_the_records(run: Path) -> None:
    record = store.load(run)
    assert record.verification is not None
    point = OperatingPoint(0.001, Interval(0.5, 0.4, 0.6), Interval(0.75, 0.7, 0.8))
    measured = replace(record, verification=replace(record.verification, points=(point,)))
    assert threshold("far=1e-3", measured) == 0.75
    with pytest.raises(MlbenchError, match=r"no threshold at FAR 0\.1; there are far=0\.001"):
        threshold("far=0.1", measured)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_updated_index_is_as_a_new_one(run: Path, photos: Path, kind: str) -> None:
    def index(*options: str) -> Result:
        made = mlbench_("index", run, photos, "--index", kind, *options)
        assert made.exit_code == 0, made.output
        return made

    assert ("recall" in index().stderr) == (kind == "ivf")
    (photos / "class1" / "3.png").unlink()
    Image.new("RGB", (40, 40), "red").save(photos / "class2" / "0.png")
    Image.new("RGB", (40, 40), "blue").save(photos / "class0" / "a.png")
    updated = index("--update")
    assert "2 images embedded, 2 removed" in updated.stderr
    found = open_index(run)
    assert "0 images embedded, 0 removed" in index("--update").stderr
    assert index().exit_code == 0
    new = open_index(run)
    assert found.paths == new.paths
    np.testing.assert_allclose(found.embeddings, new.embeddings, atol=1e-6)
    np.testing.assert_array_equal(found.stamps, new.stamps)
    assert (found.cells is not None) == (kind == "ivf")
    query = photos / "class0" / "a.png"
    (answer,) = json.loads(mlbench_("search", run, query, "--json", "--top", "1").stdout)
    assert answer["results"][0]["path"] != str(query)  # a query does not find itself
    assert answer["results"][0]["similarity"] > 0.9


def test_an_index_is_updated_from_its_own_folder(run: Path, photos: Path) -> None:
    assert "no index" in refusal("index", run, photos, "--update")
    assert mlbench_("index", run, photos).exit_code == 0
    assert "pass that folder" in refusal("index", run, photos / "class0", "--update")
