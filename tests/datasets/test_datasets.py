import collections
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlbench.datasets import BUILTIN, cub200, folder, glyphs
from mlbench.datasets.checks import check_dataset
from mlbench.errors import DataWarning, MlbenchError, MlbenchWarning
from mlbench.interfaces import Dataset, ImageSet
from mlbench.registry import DATASETS


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def check_side(images: ImageSet) -> None:
    """Check what ImageSet promises."""
    assert images.labels.dtype == np.int64
    assert len(images) == len(images.labels) == len(set(images.names))
    assert sorted(set(images.labels.tolist())) == list(range(len(images.class_names)))


def check(dataset: Dataset) -> None:
    check_side(dataset.train)
    check_side(dataset.test)
    assert not set(dataset.train.class_names) & set(dataset.test.class_names)
    assert not set(dataset.train.names) & set(dataset.test.names)
    assert len(bytes.fromhex(dataset.fingerprint)) == 32


class TestCatalogue:
    def test_lists_without_heavy_imports(self):
        code = (
            "import sys, mlbench.datasets; print({'torch', 'PIL', 'matplotlib'} & set(sys.modules))"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.stdout.strip() == "set()"

    @pytest.mark.parametrize("entry", BUILTIN, ids=lambda entry: entry.name)
    def test_targets_load(self, entry):
        assert callable(entry.load())
        assert entry.summary

    def test_folder_by_name(self, tmp_path):
        for i in range(8):
            write_image(tmp_path / "pets" / "abcd"[i % 4] / f"{i}.png", i)
        loaded = DATASETS.get(f"folder:{tmp_path / 'pets'}").load()(None)
        assert loaded.name == "folder:pets"


TRAIN = cub200._Side("training", 1, 2, 5)
TEST = cub200._Side("test", 3, 4, 5)


@pytest.fixture
def cub(tmp_path) -> Path:
    """A tree in the official layout: four classes of 3, 2, 3 and 2 images."""
    root = tmp_path / "CUB_200_2011"
    classes = ["001.Auk", "002.Bunting", "003.Crow", "004.Dove"]
    names = [f"{classes[k]}/{i}.jpg" for k, count in enumerate((3, 2, 3, 2)) for i in range(count)]
    for i, name in enumerate(names):
        write_image(root / "images" / name, i)
    lines = {
        "classes.txt": enumerate(classes, 1),
        "images.txt": enumerate(names, 1),
        "image_class_labels.txt": ((i, int(name[:3])) for i, name in enumerate(names, 1)),
    }
    for file, pairs in lines.items():
        (root / file).write_text("".join(f"{a} {b}\n" for a, b in pairs))
    return root


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


class TestCub200:
    def test_split(self, cub):
        dataset = cub200._load(cub, TRAIN, TEST)
        check(dataset)
        assert dataset.name == "cub200"
        assert dataset.train.class_names == ("001.Auk", "002.Bunting")
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1]
        assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1]
        assert dataset.test.names[3] == "004.Dove/0.jpg"
        with Image.open(cub / "images" / "004.Dove" / "0.jpg") as image:
            np.testing.assert_array_equal(dataset.test.read(3), np.asarray(image))

    def test_root_is_the_folder_its_parent_or_the_variable(self, cub, monkeypatch):
        assert cub200._find(cub) == cub
        assert cub200._find(cub.parent) == cub
        monkeypatch.setenv("MLBENCH_DATA_ROOT", str(cub.parent))
        assert cub200._find(None) == cub

    def test_no_root(self, monkeypatch):
        monkeypatch.delenv("MLBENCH_DATA_ROOT", raising=False)
        with pytest.raises(MlbenchError, match=r"--data-root DIR .* MLBENCH_DATA_ROOT"):
            cub200.load(None)

    def test_wrong_root(self, tmp_path):
        with pytest.raises(MlbenchError, match=r"no images\.txt"):
            cub200.load(tmp_path)

    def test_counts(self, cub):
        with pytest.raises(MlbenchError, match="expected 200 distinct classes"):
            cub200.load(cub)
        more = cub200._Side("training", 1, 2, 6)
        with pytest.raises(MlbenchError, match="expected 6 training images of 2 classes, found 5"):
            cub200._load(cub, more, TEST)

    def test_class_on_both_sides(self, cub):
        edit(cub / "classes.txt", "003.Crow", "001.Auk")
        with pytest.raises(MlbenchError, match="expected 4 distinct classes"):
            cub200._load(cub, TRAIN, TEST)

    def test_image_listed_twice(self, cub):
        edit(cub / "images.txt", "003.Crow/0.jpg", "001.Auk/0.jpg")
        with pytest.raises(MlbenchError, match="listed twice"):
            cub200._load(cub, TRAIN, TEST)

    def test_missing_files(self, cub):
        for path in sorted((cub / "images").rglob("*.jpg"))[:7]:
            path.unlink()
        with pytest.raises(MlbenchError, match=r"7 files .*001\.Auk/0\.jpg.* and 2 more"):
            cub200._load(cub, TRAIN, TEST)

    @pytest.mark.parametrize("file", ["images.txt", "classes.txt", "image_class_labels.txt"])
    def test_unreadable_table(self, cub, file):
        (cub / file).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(MlbenchError, match=f"cannot read .*{file}"):
            cub200._load(cub, TRAIN, TEST)
        (cub / file).unlink()
        with pytest.raises(MlbenchError, match=f"cannot read .*{file}"):
            cub200._load(cub, TRAIN, TEST)

    @pytest.mark.parametrize(
        ("file", "old", "new", "line"),
        [
            ("images.txt", "3 001", "x 001", 3),
            ("images.txt", "3 001", "2 001", 3),
            ("images.txt", "3 001", f"{'3' * 5000} 001", 3),
            ("image_class_labels.txt", "4 2", f"4 {'2' * 5000}", 4),
            ("classes.txt", "2 002.Bunting", "2", 2),
            ("image_class_labels.txt", "4 2", "4 two", 4),
            ("image_class_labels.txt", "4 2", "4 9", 4),
            ("image_class_labels.txt", "10 4", "11 4", 10),
        ],
    )
    def test_bad_line_is_named(self, cub, file, old, new, line):
        edit(cub / file, old, new)
        with pytest.raises(MlbenchError, match=f"{file}, line {line}: "):
            cub200._load(cub, TRAIN, TEST)

    @pytest.mark.parametrize("name", ["../001.Auk/0.jpg", "/etc/passwd"])
    def test_list_that_leads_elsewhere(self, cub, name):
        edit(cub / "images.txt", "001.Auk/0.jpg", name)
        with pytest.raises(MlbenchError, match=f"{name} is not below .*images; unpack"):
            cub200._load(cub, TRAIN, TEST)

    def test_image_without_class(self, cub):
        edit(cub / "image_class_labels.txt", "10 4\n", "")
        with pytest.raises(MlbenchError, match=r"1 images of images\.txt have no class"):
            cub200._load(cub, TRAIN, TEST)

    def test_fingerprint_covers_names_labels_and_contents(self, cub):
        def current() -> str:
            return cub200._load(cub, TRAIN, TEST).fingerprint

        found = [current(), current()]
        write_image(cub / "images" / "004.Dove" / "1.jpg", 99)
        found.append(current())
        edit(cub / "image_class_labels.txt", "3 1", "3 2")
        found.append(current())
        (cub / "images" / "001.Auk" / "0.jpg").rename(cub / "images" / "001.Auk" / "zero.jpg")
        edit(cub / "images.txt", "001.Auk/0.jpg", "001.Auk/zero.jpg")
        found.append(current())
        assert found[0] == found[1]
        assert len(set(found)) == 4

    def test_fingerprint_does_not_depend_on_the_place(self, cub, tmp_path):
        first = cub200._load(cub, TRAIN, TEST).fingerprint
        moved = cub.rename(tmp_path / "elsewhere")
        for path in moved.rglob("*"):
            os.utime(path, (0, 0))
        assert cub200._load(moved, TRAIN, TEST).fingerprint == first

    @pytest.mark.skipif("MLBENCH_DATA_ROOT" not in os.environ, reason="needs CUB-200-2011")
    def test_real_data(self):
        dataset = cub200.load(None)
        check(dataset)
        assert (len(dataset.train), len(dataset.test)) == (5864, 5924)
        assert len(dataset.train.class_names) == len(dataset.test.class_names) == 100
        for images in (dataset.train, dataset.test):
            folders = [images.class_names[label] for label in images.labels]
            assert folders == [name.partition("/")[0] for name in images.names]


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    for k, name in enumerate(["b", "a", "c", "B", "e"]):
        for i in range(2):
            write_image(root / name / f"{i}.png", 10 * k + i)
    return root


class TestFolder:
    def test_halves_of_the_sorted_classes(self, photos):
        dataset = folder.load(str(photos), None)
        check(dataset)
        assert dataset.name == "folder:photos"
        assert dataset.train.class_names == ("B", "a", "b")
        assert dataset.test.class_names == ("c", "e")
        assert dataset.test.names == ("c/0.png", "c/1.png", "e/0.png", "e/1.png")
        assert dataset.train.read(0).shape == (6, 8, 3)

    def test_relative_to_root(self, photos, monkeypatch):
        here = folder.load("photos", photos.parent)
        monkeypatch.chdir(photos)
        assert folder.load(".", None).name == here.name == "folder:photos"

    def test_what_counts_as_an_image(self, photos):
        write_image(photos / "a" / "deep" / "er" / "x.JPG", 50)
        write_image(photos / "a" / ".hidden.png", 51)
        write_image(photos / "a" / ".thumbs" / "x.png", 52)
        write_image(photos / ".cache" / "x.png", 53)
        (photos / "a" / "notes.txt").write_text("not an image")
        (photos / "readme.txt").write_text("not a class")
        with pytest.warns(DataWarning, match=r"folder:photos: 1 not read \(.txt: 1\); docs"):
            names = [name for name in folder.load(str(photos), None).train.names if "a/" in name]
        assert names == ["a/0.png", "a/1.png", "a/deep/er/x.JPG"]

    def test_loops_of_links(self, photos):
        before = folder.load(str(photos), None)
        (photos / "a" / "loop").symlink_to(photos / "a")
        (photos / "a" / "up").symlink_to(photos)
        (photos / "again").symlink_to(photos)
        (photos / "above").symlink_to(photos.parent)
        with pytest.warns(DataWarning, match=r"2 not read \(links to folders: 2\)"):
            assert folder.load(str(photos), None).fingerprint == before.fingerprint

    def test_class_folders_may_be_links(self, photos, tmp_path):
        (photos / "e").rename(tmp_path / "store")
        (photos / "e").symlink_to(tmp_path / "store")
        assert folder.load(str(photos), None).test.class_names == ("c", "e")

    def test_name_that_is_not_unicode(self, photos):
        name = os.fsdecode(b"\xff.png")
        try:
            write_image(photos / "a" / name, 60)
        except OSError:
            pytest.skip("this file system takes Unicode names only")
        dataset = folder.load(str(photos), None)
        assert f"a/{name}" in dataset.train.names
        check(dataset)

    def test_same_content_on_both_sides_is_warned_of(self, photos):
        shutil.copy(photos / "a" / "0.png", photos / "c" / "copy.png")
        shutil.copy(photos / "a" / "0.png", photos / "b" / "copy.png")
        with pytest.warns(MlbenchWarning) as caught:
            folder.load(str(photos), None)
        assert [str(w.message) for w in caught] == [
            "folder:photos: the same content in 1 pair of a test and a training image, such as "
            "c/copy.png = a/0.png (this makes results too good); in 1 pair of two training images "
            "of different classes, such as b/copy.png = a/0.png (their labels contradict each "
            "other); keep one of each"
        ]

    def test_same_content_among_test_images_is_warned_of(self, photos):
        original = next((photos / "c").iterdir())
        for number in range(3):
            shutil.copy(original, photos / "c" / f"copy{number}.png")
        with pytest.warns(MlbenchWarning, match="in 3 pairs of two test images of one class"):
            folder.load(str(photos), None)

    def test_same_content_in_other_test_classes_makes_results_worse(self, photos):
        original = next((photos / "c").iterdir())
        shutil.copy(original, photos / "e" / "copy.png")
        shutil.copy(original, photos / "c" / "copy.png")
        with pytest.warns(MlbenchWarning) as caught:
            folder.load(str(photos), None)
        assert [str(w.message) for w in caught] == [
            f"folder:photos: the same content in 1 pair of two test images of one class, such as "
            f"c/copy.png = c/{original.name} (this makes results too good); in 1 pair of two test "
            f"images of different classes, such as e/copy.png = c/{original.name} (this makes "
            "results worse); keep one of each"
        ]

    def test_same_content_among_training_images_or_unreadable_ones_is_not(self, photos):
        shutil.copy(photos / "a" / "0.png", photos / "a" / "copy.png")
        for name in "abce":
            (photos / name / "broken.png").symlink_to("nowhere")
        folder.load(str(photos), None)  # warnings are errors

    def test_not_a_folder(self, photos):
        for path in (photos / "none", photos / "a" / "0.png"):
            with pytest.raises(MlbenchError, match="is not a folder"):
                folder.load(str(path), None)

    def test_images_without_class_folders(self, tmp_path):
        write_image(tmp_path / "0.png", 0)
        warned = pytest.warns(DataWarning, match="images outside of class folders: 1")
        with warned, pytest.raises(MlbenchError, match="no images in the folders in"):
            folder.load(str(tmp_path), None)

    @pytest.mark.parametrize("classes", [1, 3])
    def test_too_few_classes(self, tmp_path, classes):
        for i in range(2 * classes):
            write_image(tmp_path / "abc"[i // 2] / f"{i}.png", i)
        with pytest.raises(MlbenchError, match=f"has {classes} class.* needs at least 4"):
            folder.load(str(tmp_path), None)

    def test_empty_class(self, photos):
        (photos / "empty").mkdir()
        with pytest.raises(MlbenchError, match=r"no images in these class folders in .*: empty;"):
            folder.load(str(photos), None)

    @pytest.mark.parametrize("name", ["A", "z"])  # one sorts into training, one into test
    def test_class_of_one_image(self, photos, name):
        write_image(photos / name / "0.png", 70)
        with pytest.raises(MlbenchError, match=f"only one image in these .*: {name}; add"):
            folder.load(str(photos), None)

    def test_file_that_cannot_be_read(self, photos):
        (photos / "a" / "0.png").unlink()
        (photos / "a" / "0.png").symlink_to(photos / "gone.png")
        dataset = folder.load(str(photos), None)
        with pytest.raises(MlbenchError, match=r"cannot read image .*a/0\.png: No such file"):
            dataset.train.read(dataset.train.names.index("a/0.png"))


class TestWhatIsPassedOver:
    def warning(self, photos: Path) -> str:
        with pytest.warns(DataWarning) as caught:
            folder.load(str(photos), None)
        assert len(caught) == 1
        return str(caught[0].message)

    def test_is_counted_by_suffix_once_for_all_classes(self, photos):
        for name in ("a/x.HEIC", "b/y.heic", "c/deep/z.heic", "c/notes.txt", "e/bare"):
            (photos / name).parent.mkdir(exist_ok=True)
            (photos / name).write_bytes(b"no image")
        assert self.warning(photos) == (
            "folder:photos: 5 not read (.heic: 3, .txt: 1, without a suffix: 1); docs/data.md "
            "lists the formats"
        )

    def test_images_without_their_suffix_are_named(self, photos):
        (photos / "a" / "0.png").rename(photos / "a" / "zero")
        shutil.copy(photos / "a" / "zero", photos / "a" / "one.txt")
        shutil.copy(photos / "a" / "zero", photos / "a" / "two.png")
        shutil.copy(photos / "a" / "zero", photos / "a" / "three.jpg")  # read for what it is
        with pytest.warns(MlbenchWarning) as caught:
            names = folder.load(str(photos), None).train.names
        assert [name for name in names if name.startswith("a/")] == [
            "a/1.png",
            "a/three.jpg",
            "a/two.png",
        ]
        assert "2 with the content of an image, such as" in str(caught[0].message)

    def test_images_beside_the_class_folders(self, photos):
        shutil.copy(photos / "a" / "0.png", photos / "top.png")
        shutil.copy(photos / "a" / "0.png", photos / "bare")
        (photos / "labels.csv").write_text("not an image")
        assert "2 not read (images outside of class folders: 2);" in self.warning(photos)

    def test_pipes_and_devices_and_links_to_them(self, photos):
        os.mkfifo(photos / "a" / "pipe.jpg")
        (photos / "b" / "endless.png").symlink_to("/dev/zero")
        (photos / "c" / "waiting").symlink_to(photos / "a" / "pipe.jpg")
        assert "3 not read (pipes, sockets or devices: 3);" in self.warning(photos)

    def test_folders_with_the_suffix_of_an_image_are_folders(self, photos):
        (photos / "a").rename(photos / "a.jpg")
        write_image(photos / "b" / "x.png" / "y.png", 80)
        dataset = folder.load(str(photos), None)
        assert "a.jpg" in dataset.train.class_names
        assert "b/x.png/y.png" in dataset.train.names


class TestGivenSplit:
    def tree(self, root: Path, **parts: str) -> Path:
        for number, (part, classes) in enumerate(parts.items()):
            for k, name in enumerate(classes):
                for i in range(2):
                    write_image(root / part / name / f"{i}.png", 100 * number + 10 * k + i)
        return root

    @pytest.mark.parametrize(
        ("train", "test"),
        [("train", "test"), ("Training", "Testing"), ("train_set", "test_set"), ("zz", "aa")],
    )
    def test_sides_are_the_folders_train_and_test(self, tmp_path, train, test):
        root = self.tree(tmp_path, **{train: "xyz", test: "ab"})
        if train == "zz":  # names without a meaning stay classes
            with pytest.raises(MlbenchError, match="needs at least 4"):
                folder.load(str(root), None)
            return
        dataset = folder.load(str(root), None)
        check(dataset)
        assert dataset.train.class_names == ("x", "y", "z")
        assert dataset.test.class_names == ("a", "b")
        assert dataset.test.names[0] == f"{test}/a/0.png"

    def test_queries_are_searched_in_the_gallery_with_its_further_classes(self, tmp_path):
        root = self.tree(tmp_path, train="xyz", Queries="bd", gallery="abd")
        (root / "Queries" / "d" / "1.png").unlink()
        dataset = folder.load(str(root), None)
        check_dataset(dataset)
        assert dataset.gallery is not None
        assert dataset.test.class_names == ("b", "d")
        assert dataset.test.names == ("Queries/b/0.png", "Queries/b/1.png", "Queries/d/0.png")
        assert dataset.gallery.class_names == ("b", "d", "a")
        assert dataset.gallery.labels.tolist() == [2, 2, 0, 0, 1, 1]

    def test_the_split_is_part_of_the_fingerprint(self, tmp_path):
        root = self.tree(tmp_path, train="xyz", test="ab")
        before = folder.load(str(root), None).fingerprint
        (root / "train" / "z").rename(root / "test" / "z")
        assert folder.load(str(root), None).fingerprint != before

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"train": "abc", "test": "abc"}, "to train and to test on: a, b, c; mlbench tests"),
            ({"train": "abc", "test": "Cd"}, "the same classes to train and to test on: C;"),
            ({"train": "ab", "val": "cd", "test": "ef"}, "split into test, train, val; mlbench ex"),
            ({"train": "ab", "val": "cd"}, "expects 'train' and 'test', or 'train', 'query' and"),
            ({"train": "ab", "query": "cd"}, "or 'train', 'query' and 'gallery', and draws"),
            (
                {"train": "ab", "test": "ef", "query": "cd", "gallery": "cd"},
                "and everything else elsewhere",
            ),
            ({"train": "ab", "query": "cd", "gallery": "bcd"}, "to train and to test on: b;"),
            ({"train": "ab", "query": "c", "gallery": "cd"}, "which hold 2, 1, 2 class folders"),
            ({"train": "ab", "test": "cd", "extra": "ef"}, "and everything else elsewhere"),
            ({"train": "ab", "test": "c"}, "which hold 2, 1 class folders"),
        ],
    )
    def test_other_splits_are_refused_with_the_way_out(self, tmp_path, parts, message):
        root = self.tree(tmp_path, **parts)
        with pytest.raises(MlbenchError, match=message) as caught:
            folder.load(str(root), None)
        assert str(root) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_classes_called_train_and_test_stay_classes(self, tmp_path):
        for k, name in enumerate(["train", "test", "plane", "bus"]):
            for i in range(2):
                write_image(tmp_path / name / f"{i}.png", 10 * k + i)
        assert folder.load(str(tmp_path), None).train.class_names == ("bus", "plane")

    def test_images_above_the_class_folders_are_counted(self, tmp_path):
        root = self.tree(tmp_path, train="xyz", test="ab")
        write_image(root / "train" / "loose.png", 900)
        with pytest.warns(DataWarning, match="images outside of class folders: 1"):
            folder.load(str(root), None)


@pytest.fixture(scope="session")
def glyph_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


@pytest.fixture
def drawn(glyph_cache, monkeypatch) -> Dataset:
    monkeypatch.setenv("MLBENCH_CACHE", str(glyph_cache))
    return glyphs.load(None)


class TestGlyphs:
    def test_sizes(self, drawn):
        check(drawn)
        assert drawn.name == "glyphs"
        for images, classes in ((drawn.train, 120), (drawn.test, 120)):
            assert len(images.class_names) >= classes
            assert np.bincount(images.labels).min() >= 40
            assert images.read(0).shape == (32, 32, 3)
            assert images.read(0).dtype == np.uint8

    def test_scripts(self, drawn):
        def scripts(images: ImageSet) -> set[str]:
            return {name.partition("/")[0] for name in images.class_names}

        assert scripts(drawn.train) == {"Latin", "Greek"}
        assert scripts(drawn.test) == {"Cyrillic", "Armenian", "Georgian"}

    def test_scripts_are_the_level_above_letters(self, drawn):
        scripts = ["Armenian", "Cyrillic", "Georgian", "Greek", "Latin"]
        for images in (drawn.train, drawn.test):
            assert images.levels.dtype == np.int64
            for name, level in zip(images.names[::37], images.levels[::37], strict=True):
                assert [name.partition("/")[0]] == [scripts[i] for i in level]

    @pytest.mark.parametrize("side", ["train", "test"])
    def test_every_class_is_balanced(self, drawn, side):
        images = getattr(drawn, side)
        cases: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        faces: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        for name, label in zip(images.names, images.labels, strict=True):
            script, letter, glyph = name.split("/")
            case, _, rest = glyph.partition("-")
            assert images.class_names[label] == f"{script}/{letter}"
            cases[letter + script][case] += 1
            faces[letter + script][rest[:-3]] += 1
        for key, counts in cases.items():
            assert counts == {"upper": 24, "lower": 24}
            assert len(faces[key]) >= 8
            assert max(faces[key].values()) - min(faces[key].values()) <= 1

    def test_names(self, drawn):
        assert "Greek/alpha/lower-DejaVuSans-Oblique-" in " ".join(drawn.train.names)
        assert "Latin/a/upper-cmr10-" in " ".join(drawn.train.names)
        assert not any("-cm" in name for name in drawn.test.names)

    @pytest.mark.parametrize("side", ["train", "test"])
    def test_every_image_shows_ink_on_paper(self, drawn, side):
        images = getattr(drawn, side)
        pixels = np.stack([images.read(i) for i in range(len(images))])
        dark = (pixels < 100).mean(axis=(1, 2, 3))
        assert dark.min() > 0
        assert dark.max() < 0.5
        np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])

    def test_letters_have_no_double(self):
        letters = glyphs._letters(glyphs._font_files())
        cases = [case for letter in letters for case in (letter.lower, letter.lower.upper())]
        assert len(set(cases)) == len(cases) == 2 * len(letters)
        assert not set(cases) & set("éÉǆǅǄſµςßıİ")
        assert set("aZøßαΩжЯաⴀႠ") - set(cases) == {"ß"}

    def test_same_every_time(self, monkeypatch, tmp_path):
        monkeypatch.setattr(glyphs, "IMAGES_PER_CLASS", 2)
        found = []
        for name in "ab":
            monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / name))
            found.append(glyphs.load(None).fingerprint)
        (first, second) = (next((tmp_path / name).rglob("*.npz")) for name in "ab")
        assert found[0] == found[1]
        assert first.read_bytes() == second.read_bytes()

    def test_cased_are_the_same_images_with_a_class_for_each_case(self, drawn):
        cased = glyphs.load_cased(None)
        check(cased)
        assert cased.name == "glyphs_cased"
        assert cased.fingerprint != drawn.fingerprint
        for side in ("train", "test"):
            whole, split = getattr(drawn, side), getattr(cased, side)
            assert split.names == whole.names
            np.testing.assert_array_equal(split.labels // 2, whole.labels)
            assert set(np.bincount(split.labels)) == {24}
            for name, label in zip(split.names, split.labels, strict=True):
                assert name.startswith(split.class_names[label] + "-")
            np.testing.assert_array_equal(split.read(-1), whole.read(-1))

    def test_second_load_draws_nothing(self, drawn, monkeypatch):
        monkeypatch.setattr(glyphs, "_draw", None)
        assert glyphs.load(None).fingerprint == drawn.fingerprint

    @pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "text", "other"])
    def test_damaged_cache_is_rebuilt(self, monkeypatch, tmp_path, damage):
        monkeypatch.setattr(glyphs, "IMAGES_PER_CLASS", 2)
        monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path))
        first = glyphs.load(None).fingerprint
        (path,) = tmp_path.rglob("*.npz")
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        contents = {"empty": b"", "truncated": whole[:middle], "flipped": flipped, "text": b"hello"}
        path.write_bytes(contents.get(damage, b""))
        if damage == "other":
            with path.open("wb") as file:
                np.savez(file, other=np.zeros(3))
        assert glyphs.load(None).fingerprint == first
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(whole).digest()

    def test_missing_fonts(self, monkeypatch, tmp_path):
        monkeypatch.setattr(glyphs.mpl, "get_data_path", lambda: str(tmp_path))
        with pytest.raises(MlbenchError, match=r"no DejaVuSans\.ttf in .*reinstall matplotlib"):
            glyphs.load(None)
