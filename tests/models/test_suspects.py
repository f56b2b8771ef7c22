"""Likely mislabels and near-duplicates, against a literal reading and against planted ones."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from helpers.command import mlbench
from helpers.settings import QUICK
from PIL import Image

import mlbench as package
from mlbench.cli.suspects import _print
from mlbench.interfaces import ImageSet
from mlbench.models import suspects
from mlbench.models.model import Embedded, Model
from mlbench.models.suspects import Copy, Mislabel, Suspects, all_images
from mlbench.registry import DATASETS


def literal(features, labels, related):
    """The definition, an image at a time: margin of each, NaN where there is nobody to judge by."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    margins = []
    for i, row in enumerate(unit @ unit.T):
        fits = {}
        for c in set(labels.tolist()):
            theirs = [
                row[j] for j in range(len(row)) if labels[j] == c and related[j] != related[i]
            ]
            best = sorted(theirs, reverse=True)[: suspects.VOTERS]
            whole = c == labels[i] or len(best) == min(suspects.VOTERS, (labels == c).sum())
            if best and whole:
                fits[c] = np.mean(best)
        own = fits.pop(labels[i], np.nan)
        margins.append(max(fits.values()) - own if fits else np.nan)
    return np.array(margins)


@pytest.mark.parametrize("kinds", [4, 60])
def test_margins_against_a_literal_reading(kinds):
    """Classes of one image to many, with images that are related to others."""
    rng = np.random.default_rng(kinds)
    labels = np.sort(rng.integers(0, 6, 45))
    labels[-1] = 6
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    features = rng.normal(size=(45, 5)) + 2 * np.eye(7, 5)[labels]
    related = rng.integers(0, kinds, 45) if kinds > 10 else np.arange(45)
    unit = suspects.unit_rows(torch.from_numpy(features), "features")
    own = suspects._fit_into_own(unit, labels, related)
    other, like = suspects._fit_into_others(unit, labels, related)
    np.testing.assert_allclose(other - own, literal(features, labels, related), atol=1e-6)
    assert (labels[like] != labels).all()
    assert (related[like] != related).all()
    assert np.isnan(own[-1])  # nobody else is of its class


def picture(seed: int) -> Image.Image:
    """Return a smooth picture, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((90, 75), Image.Resampling.BICUBIC)


def thumbnails(*images: Image.Image):
    return np.stack([suspects._thumbnail(np.asarray(image.convert("RGB"))) for image in images])


def test_copies_are_found_however_they_were_saved():
    first, second = picture(0), picture(1)
    buffer = io.BytesIO()
    first.resize((41, 34)).save(buffer, "JPEG", quality=40)
    cropped = second.crop((1, 1, 89, 74)).point(lambda value: 0.8 * value)
    blank = Image.new("RGB", (90, 75), "grey")
    rows = thumbnails(first, second, Image.open(buffer), cropped, blank, blank, picture(2))
    found = suspects._copies(rows)
    assert sorted((i, j) for i, j, _ in found) == [(0, 2), (1, 3)]
    assert found[0][2] > found[1][2]
    for i, j, value in found:
        correlations = np.corrcoef(rows[i], rows[j]).tolist()
        assert value == pytest.approx(correlations[0][1], abs=1e-6)


def test_related_are_copies_of_copies_and_groups():
    copies = [(0, 1, 0.99), (1, 4, 0.95)]
    alone = suspects._related(6, copies, None)
    assert alone[0] == alone[1] == alone[4]
    assert len(set(alone.tolist())) == 4
    grouped = suspects._related(6, copies, np.array([0, 1, 2, 3, 1, 2]))
    assert grouped.tolist() == [0, 0, 1, 2, 0, 1]


def test_images_of_all_sides_once(tmp_path):
    for number, name in enumerate(("a", "b", "q", "r")):
        for i in range(2):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            picture(10 * number + i).save(path)
    lines = [
        "a/0.png,A,train,0,0",
        "a/1.png,A,train,0,0",
        "b/0.png,B,train,0,0",
        "b/1.png,B,train,0,0",
    ]
    lines += [
        "q/0.png,Q,test,1,1",
        "q/1.png,Q,test,0,1",
        "r/0.png,R,test,0,1",
        "r/1.png,R,test,0,1",
    ]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,label,split,is_query,is_gallery", *lines]))
    images = all_images(DATASETS.get(f"table:{table}").load()(None))
    assert len(images.names) == 8
    assert [images.class_names[label] for label in images.labels] == [*"AABBQQRR"]
    last = images.names.index("r/1.png")
    np.testing.assert_array_equal(images.read(last), np.asarray(picture(31)))


@pytest.fixture
def planted(photos: Path) -> Path:
    """Move one photograph to another class, and save one again."""
    (photos / "class5" / "0.png").rename(photos / "class1" / "moved.png")
    for number in range(6):  # smooth, so that their thumbnails tell them apart
        for i, path in enumerate(sorted((photos / f"class{number}").iterdir())):
            with Image.open(path) as image:
                colour = np.asarray(image, float).mean((0, 1))
            shape = np.asarray(picture(100 * number + i), float) - 128
            Image.fromarray(np.clip(colour + 0.2 * shape, 0, 255).astype(np.uint8)).save(path)
    with Image.open(photos / "class2" / "3.png") as image:
        image.resize((60, 50)).save(photos / "class2" / "again.jpg", quality=70)
    return photos


def test_the_command_names_what_was_planted(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    package.run("softtriple", dataset=f"folder:{planted}", settings=QUICK, out=out, keep_model=True)
    (record,) = out.rglob("softtriple*.json")
    (planted / "class3" / "broken.png").write_bytes(b"x")
    result = mlbench("suspects", record, planted, "--json", "--html", tmp_path / "sheet.html")
    found = json.loads(result.stdout)
    assert found["images"] == 49
    assert found["mislabels"][0]["path"] == "class1/moved.png"
    assert found["mislabels"][0]["fits"] == "class5"
    pairs = [{each["path"], each["original"]} for each in found["copies"]]
    assert pairs == [{"class2/3.png", "class2/again.jpg"}]
    assert "broken.png" in found["unreadable"][0]
    sheet = (tmp_path / "sheet.html").read_text()
    assert sheet.count("<img ") == 2 * (len(found["mislabels"]) + 1)
    assert "class1/<wbr>moved.<wbr>png" in sheet


def test_the_text_counts_and_names_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    mislabel = Mislabel("a/1.png", "a", "b", "b/2.png", 3.25)
    copy = Copy("a/3.png", "a", "b/4.png", "b", 0.987654)
    _print(Suspects(1234, (mislabel,), (copy, copy), ("image x\x1b cannot be read",)), "FOLDER")
    text = capsys.readouterr().out
    assert text.startswith(
        "1,234 images of FOLDER\n\n1 likely mislabel, the most suspicious first\n"
    )
    assert "2 pairs of near-duplicates, the most alike first\n" in text
    assert "0.9877       a/3.png  b/4.png          of another class\n" in text
    assert text.endswith("1 image that cannot be read\nimage x  cannot be read\n")


def test_frames_of_a_video_are_no_copies_of_each_other(monkeypatch) -> None:
    frames = [picture(0), picture(0).resize((40, 30)), *map(picture, (1, 2, 3, 4))]
    arrays = [np.asarray(frame) for frame in frames]

    def embedded(_model, images, _progress):
        for i in range(len(images)):
            images.read(i)
        return Embedded(torch.eye(len(images)), {})

    monkeypatch.setattr(suspects, "embed_images", embedded)
    monkeypatch.setattr(suspects, "trunk_of", lambda model: model)
    labels = np.array([0, 0, 0, 1, 1, 1])
    images = ImageSet(tuple("abcdef"), labels, ("x", "y"), arrays.__getitem__)
    model = cast("Model", None)
    found = suspects.find_suspects(model, images)
    assert [(each.path, each.original) for each in found.copies] == [("b", "a")]
    grouped = replace(images, groups=np.array([7, 7, 8, 9, 10, 11]))
    assert suspects.find_suspects(model, grouped).copies == ()
