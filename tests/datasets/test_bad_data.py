"""Images that cannot be read, or only just: named all at once, or left out and counted."""

import os
import shutil
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.command import said
from helpers.settings import QUICK
from PIL import Image

import mlbench as package
from mlbench.cli import main
from mlbench.comparison.comparison import compare
from mlbench.datasets import checks as screening
from mlbench.datasets import folder
from mlbench.datasets.decode import BadImagesError
from mlbench.errors import MlbenchError, MlbenchWarning
from mlbench.interfaces import Dataset, ImageSet
from mlbench.recipes.plan import Files, Request, make_plan
from mlbench.records import store
from mlbench.runs.ingredients import Ingredients
from mlbench.tables.formats import render

SET = [f"--set={key}={value}" for key, value in QUICK.items()]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(photos: Path, out: Path, *arguments: object) -> Result:
    given = ["run", f"--dataset=folder:{photos}", f"--out={out}", "--losses=npairs", *SET]
    with warnings.catch_warnings():
        warnings.simplefilter("default", MlbenchWarning)
        result = CliRunner().invoke(main, [*given, *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def spec_and_ingredients(photos: Path, policy: str) -> Ingredients:
    settings = tuple(QUICK.items())
    request = Request(dataset=f"folder:{photos}", settings=settings, on_bad_image=policy)  # type: ignore[arg-type]
    plan = make_plan(request)
    return Ingredients(plan.recipe, plan.files, torch.device("cpu"), lambda *_: None)


def whole(photos: Path) -> bytes:
    return (photos / "class0" / "0.png").read_bytes()


def bomb(path: Path) -> None:
    """Write an image that says it has 20,000 x 20,000 pixels, in 67 bytes."""
    Image.new("L", (1, 1)).save(path)
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "empty.jpg": (lambda path, _: path.touch(), "the file is empty"),
    "text.png": (lambda path, _: path.write_text("hello"), "not an image of a known format"),
    "cut.png": (lambda path, p: path.write_bytes(whole(p)[:300]), "image file is truncated"),
    "bomb.png": (lambda path, _: bomb(path), "more than 89,478,485 pixels"),
    "nowhere.png": (lambda path, _: path.symlink_to("gone.png"), "No such file or directory"),
    "circle.png": (lambda path, _: path.symlink_to(path), "Too many levels of symbolic links"),
    "floats.tif": (
        lambda path, _: Image.fromarray(np.ones((4, 6), np.float32)).save(path),
        "its floating-point pixels have no defined white",
    ),
}


@pytest.fixture
def damaged(photos: Path) -> Path:
    """Bad images of every kind in classes of both sides."""
    for number, (name, (write, _)) in enumerate(BAD.items()):
        write(photos / f"class{number % 6}" / name, photos)
    return photos


def test_every_bad_image_is_named_at_once(damaged: Path, tmp_path: Path, cache: Path) -> None:
    result = run(damaged, tmp_path / "out")
    assert result.exit_code == 2
    (line,) = said(result)
    (listed,) = (cache / "bad-images").iterdir()
    assert line.startswith("Error: 7 unreadable images: cannot read image")
    assert line.endswith(
        f" and 2 more (all are listed in {listed}); replace or remove them, or skip them with "
        "--on-bad-image skip"
    )
    text = listed.read_text()
    assert len(text.splitlines()) == 7
    for number, (name, (_, reason)) in enumerate(BAD.items()):
        assert f"{damaged}/class{number % 6}/{name}: {reason}" in text
    assert not (tmp_path / "out").exists()
    assert not any(path.stat().st_size for path in (cache / "pixels").iterdir())


def test_records_survive_an_image_that_goes_bad(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*.json"))
    path = photos / "class0" / "0.png"
    good = path.read_bytes()
    path.write_bytes(good[:300])
    assert run(photos, tmp_path / "out").exit_code == 2
    path.write_bytes(good)
    assert sorted((tmp_path / "out").rglob("*.json")) == before
    assert run(photos, tmp_path / "out").stderr.count("already there") == 4


def test_bad_images_are_left_out_counted_and_named(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(damaged, tmp_path / "out", "--on-bad-image=skip")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Warning: ") == 1
    assert "folder:photos: skipped 7 of 55 images that cannot be read" in result.stderr
    assert "7 unreadable images skipped" in " ".join(result.stdout.split())
    facts = package.load_results(tmp_path / "out")[0].dataset
    names = sorted(f"class{number % 6}/{name}" for number, name in enumerate(BAD))
    assert facts.skipped == tuple(names)
    assert (facts.train_images, facts.test_images) == (24, 24)
    # What was found is kept: a second run decodes nothing to find it again.
    monkeypatch.setattr(screening, "find_bad", None)
    again = run(damaged, tmp_path / "out", "--on-bad-image=skip")
    assert again.exit_code == 0, again.output
    assert again.stderr.count("already there") == 4


def test_a_reduced_data_set_is_another_data_set(damaged: Path, tmp_path: Path) -> None:
    with pytest.warns(MlbenchWarning, match="skipped 7"):
        reduced = spec_and_ingredients(damaged, "skip").dataset
    for number, name in enumerate(BAD):
        (damaged / f"class{number % 6}" / name).unlink()
    complete = spec_and_ingredients(damaged, "skip").dataset
    assert complete.fingerprint == spec_and_ingredients(damaged, "error").dataset.fingerprint
    assert complete.skipped == ()
    assert reduced.fingerprint != complete.fingerprint
    assert reduced.train.names == complete.train.names
    for i in (0, 7, 23):
        np.testing.assert_array_equal(reduced.train.read(i), complete.train.read(i))
        np.testing.assert_array_equal(reduced.test.read(i), complete.test.read(i))
    for side in ("train", "test"):
        labels = getattr(reduced, side).labels
        np.testing.assert_array_equal(labels, getattr(complete, side).labels)


def test_reduced_and_complete_never_share_a_table(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", "--losses=npairs")
    (photos / "class0" / "empty.png").touch()
    run(photos, tmp_path / "out2", "--losses=npairs", "--on-bad-image=skip")
    records = store.read_results(tmp_path).records
    comparisons = compare(records)
    assert len(comparisons) == 2
    assert "1 unreadable images skipped" in render(comparisons, "json")


def test_other_skipped_images_are_another_data_set(photos: Path) -> None:
    found = set()
    for name in ("class0", "class1"):
        bad = photos / name / "bad.png"
        bad.touch()
        with pytest.warns(MlbenchWarning):
            found.add(spec_and_ingredients(photos, "skip").dataset.fingerprint)
        bad.unlink()
    assert len(found) == 2


def test_more_than_half_bad_is_an_error_all_the_same(photos: Path, tmp_path: Path) -> None:
    for i in range(8):
        for name in ("class3", "class4"):
            (photos / name / f"{i}.png").write_text(f"{name} {i}")
    result = run(photos, tmp_path / "out", "--on-bad-image=skip")
    assert result.exit_code == 2
    assert "16 of 24 test images cannot be read, more than half (listed in" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_without_two_images_left_is_named(photos: Path, left: int) -> None:
    for i in range(left, 8):
        (photos / "class4" / f"{i}.png").write_text(f"{i}")
    with pytest.raises(MlbenchError, match="leave fewer than two of these test classes: class4;"):
        _ = spec_and_ingredients(photos, "skip").dataset


def test_damaged_notes_of_bad_images_are_made_again(damaged: Path, cache: Path) -> None:
    with pytest.warns(MlbenchWarning):
        first = spec_and_ingredients(damaged, "skip").dataset
    (notes,) = (cache / "screened").iterdir()
    for content in (b"", b"[]", b"{}", b'{"train": {"9999": "x"}, "test": {}}', b'{"train": 3}'):
        notes.write_bytes(content)
        with pytest.warns(MlbenchWarning):
            assert spec_and_ingredients(damaged, "skip").dataset.skipped == first.skipped


def test_unreadable_file(photos: Path) -> None:
    path = photos / "class0" / "0.png"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(BadImagesError, match=r"class0/0\.png: Permission denied"):
        spec_and_ingredients(photos, "error").prepare()


def test_bad_images_of_an_unprepared_laboratory_are_all_named(photos: Path) -> None:
    for name in ("class0", "class5"):
        (photos / name / "bad.png").touch()
    with pytest.raises(BadImagesError, match=r"^2 unreadable images: .*class0/bad.*class5/bad"):
        spec_and_ingredients(photos, "error").inputs("train", 0)


def test_python_interface_skips_too(photos: Path) -> None:
    (photos / "class0" / "bad.png").touch()
    given = {"dataset": f"folder:{photos}", "settings": QUICK}
    with pytest.raises(BadImagesError, match=r"bad\.png: the file is empty"):
        package.run("npairs", **given)
    with pytest.warns(MlbenchWarning, match="skipped 1 of 49"):
        record = package.run("npairs", **given, on_bad_image="skip")
    assert record.dataset.skipped == ("class0/bad.png",)
    with pytest.raises(MlbenchError, match="on_bad_image: 'ignore' is not one of error, skip"):
        package.run("npairs", **given, on_bad_image="ignore")  # type: ignore[arg-type]


def odd_images(photos: Path) -> None:
    """Write images that are unusual but right."""
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("CMYK").save(photos / "class0" / "cmyk.jpg")
    image.convert("L").save(photos / "class1" / "grey.jpg")
    image.convert("P").save(photos / "class2" / "palette.gif")
    image.convert("RGBA").save(photos / "class3" / "alpha.webp")
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(photos / "class4" / "deep.png")
    image.save(photos / "class5" / "turned.jpg", exif=exif)
    frames[0].save(photos / "class0" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), "green").save(photos / "class1" / "point.png")
    Image.new("RGB", (20_000, 300), "navy").save(photos / "class2" / "long.png")


def odd_names(photos: Path) -> None:
    for number, name in enumerate(
        (b"with space.png", "été–鳥.png".encode(), b"a\nb.png", b"\xff.png")
    ):
        image = Image.new("RGB", (20, 20), (number, 9, 9))
        try:
            image.save(photos / f"class{number}" / os.fsdecode(name))
        except OSError:  # a file system that takes Unicode names only
            assert name == b"\xff.png"
    (photos / "class5").rename(photos / "class\n5 é")


def test_odd_images_and_names_are_taken(photos: Path, tmp_path: Path) -> None:
    odd_images(photos)
    odd_names(photos)
    renamed = photos.rename(photos.parent / os.fsdecode(b"my \x1b[31m photos"))
    result = run(renamed, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    record = package.load_results(tmp_path / "out")[0]
    counts = record.dataset.train_images + record.dataset.test_images
    assert counts == 48 + 9 + 4
    assert record.dataset.skipped == ()


def side(names: tuple[str, ...], labels: object, classes: tuple[str, ...]) -> ImageSet:
    def read(i: int) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)

    return ImageSet(names, labels, classes, read)  # type: ignore[arg-type]


GOOD = side(("x", "y"), np.array([0, 1]), ("k", "l"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (side((), np.zeros(0, np.int64), ()), "it has no images"),
        (side(("a", "b"), np.array([0.0, 1.0]), ("A", "B")), r"labels must be int64 \(2,\), not"),
        (side(("a", "b"), np.array([[0, 1]]), ("A", "B")), r"not int64 \(1, 2\)"),
        (side(("a", "b"), [0, 1], ("A", "B")), None),
        (side(("a", "b"), np.array([1, 2]), ("A", "B")), "labels must be 0 .. 1, every class"),
        (side(("a", "b"), np.array([0, 0]), ("A", "B")), "labels must be 0 .. 1, every class"),
        (side(("a", "a"), np.array([0, 1]), ("A", "B")), "a name occurs twice"),
        (side(("a", "b"), np.array([0, 1]), ("A", "l")), "classes both in train and in test: l;"),
    ],
)
def test_what_a_plugin_promises_is_checked(train: ImageSet, message: str | None) -> None:
    dataset = Dataset("mine", train, GOOD, "f" * 64)
    if message is None:
        screening.check_dataset(dataset)
        return
    with pytest.raises(MlbenchError, match=f"data set 'mine'.*{message}"):
        screening.check_dataset(dataset)


def test_a_loader_that_returns_something_else() -> None:
    with pytest.raises(MlbenchError, match="loader returns NoneType, not a Dataset"):
        screening.check_dataset(None)  # type: ignore[arg-type]


def test_a_gallery_is_screened_too(photos: Path) -> None:
    whole_set = folder.load(str(photos), None)
    gallery = replace(whole_set.test, names=tuple(f"g/{n}" for n in whole_set.test.names))

    def read(i: int) -> np.ndarray:
        if i == 3:
            raise MlbenchError("g is bad")
        return whole_set.test.read(i)

    dataset = replace(whole_set, gallery=replace(gallery, read=read))
    with pytest.warns(MlbenchWarning, match="skipped 1 of 72"):
        reduced = screening.without_bad_images(dataset, 20, lambda *_: None)
    assert reduced.skipped == (gallery.names[3],)
    assert reduced.gallery is not None
    assert reduced.gallery.names == gallery.names[:3] + gallery.names[4:]


def test_the_policy_is_no_part_of_the_recipe(photos: Path) -> None:
    plans = [make_plan(Request(on_bad_image=policy)) for policy in ("error", "skip")]
    assert plans[0].recipe.recipe_id == plans[1].recipe.recipe_id
    assert [plan.files for plan in plans] == [Files(), Files(on_bad_image="skip")]


def test_images_moved_elsewhere_are_the_same_data(photos: Path, tmp_path: Path) -> None:
    before = spec_and_ingredients(photos, "error").dataset.fingerprint
    shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    assert (
        spec_and_ingredients(tmp_path / "elsewhere" / "photos", "error").dataset.fingerprint
        == before
    )
