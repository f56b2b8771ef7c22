"""Loaders of Cars196, Stanford Online Products and In-Shop against tiny official trees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import trees

from mlbench.datasets import cars196, inshop, sop
from mlbench.datasets.data_root import data_root
from mlbench.datasets.lists import is_inside
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet


def load_cars(folder: Path) -> Dataset:
    return cars196._load(folder, trees.CARS_TRAIN, trees.CARS_TEST)


def load_sop(folder: Path) -> Dataset:
    return sop._load(folder, trees.SOP_TRAIN, trees.SOP_TEST)


def load_inshop(folder: Path) -> Dataset:
    return inshop._load(folder / "list_eval_partition.txt", folder, *trees.INSHOP_SIDES)


def check_side(images: ImageSet) -> None:
    """Check what ImageSet promises, and that every image is read as RGB."""
    assert images.labels.dtype == np.int64
    assert len(images) == len(images.labels) == len(set(images.names))
    assert sorted(set(images.labels.tolist())) == list(range(len(images.class_names)))
    for i in range(len(images)):
        assert images.read(i).shape == (24, 26, 3)
        assert images.read(i).dtype == np.uint8


def check(dataset: Dataset) -> None:
    for side in (dataset.train, dataset.test, dataset.gallery):
        if side is not None:
            check_side(side)
            assert side is dataset.train or not set(side.class_names) & set(
                dataset.train.class_names
            )
    assert len(bytes.fromhex(dataset.fingerprint)) == 32


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TREES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Dataset]]] = {
    "cars196": (trees.cars, load_cars),
    "sop": (trees.sop, load_sop),
    "inshop": (lambda root: trees.inshop(root / "inshop"), load_inshop),
}


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[Path], Dataset]]:
    write, load = TREES[request.param]
    return write(tmp_path), load


def test_every_side_keeps_its_promises(tree: Any) -> None:
    folder, load = tree
    check(load(folder))


def test_the_fingerprint_covers_the_contents_of_every_side_but_not_the_place(
    tree: Any, tmp_path: Path
) -> None:
    folder, load = tree
    first = load(folder)
    found = {first.fingerprint}
    for seed, side in enumerate((first.train, first.test, first.gallery), 999):
        if side is not None:
            trees.write_image(folder / side.names[-1], seed)
            found.add(load(folder).fingerprint)
    assert len(found) == (3 if first.gallery is None else 4)
    moved = folder.rename(tmp_path / "elsewhere")
    assert load(moved).fingerprint in found


def test_missing_images_are_counted_and_named(tree: Any) -> None:
    folder, load = tree
    gone = load(folder).test.names[0]
    (folder / gone).unlink()
    with pytest.raises(MlbenchError, match=r"^1 files of .* are missing in") as error:
        load(folder)
    assert gone in str(error.value)


def test_the_real_counts_are_asked_for(tree: Any, tmp_path: Path) -> None:
    folder, _ = tree
    module = {"cars196": cars196, "inshop": inshop}.get(folder.name, sop)
    for root in (folder, folder.parent):
        with pytest.raises(MlbenchError, match=r"expected [\d,]+ .*classes.*found"):
            module.load(root)


@pytest.mark.parametrize("module", [cars196, sop, inshop])
def test_without_files_the_command_that_gets_them_is_named(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module.__name__.rpartition(".")[2]
    with pytest.raises(MlbenchError, match=f"'mlbench data fetch {name}'.*--data-root DIR"):
        module.load(tmp_path)
    monkeypatch.setenv("MLBENCH_DATA_ROOT", str(tmp_path / "there"))
    assert data_root() == tmp_path / "there"
    with pytest.raises(MlbenchError, match="there"):
        module.load(None)


class TestCars196:
    def test_classes_by_number_and_grey_images_as_rgb(self, tmp_path: Path) -> None:
        dataset = load_cars(trees.cars(tmp_path))
        assert dataset.train.class_names == ("001.Audi A 1", "002.BMW B/2")
        assert dataset.test.class_names == ("003.Colt", "004.Dodge")
        assert dataset.train.labels.tolist() == [0, 1, 0, 1]
        assert dataset.test.labels.tolist() == [0, 1, 1, 0, 1, 0]
        grey = dataset.test.read(dataset.test.names.index("car_ims/000001.jpg"))
        np.testing.assert_array_equal(grey[..., 0], grey[..., 2])

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"class": [3, 1, 4, 2, 1, 4, 3, 2, 4, 5]}, "expected classes 1 to 4, found 5"),
            ({"class": [3, 1, 4, 2, 1, 4, 3, 2, 4, 0]}, "expected classes 1 to 4, found 0"),
            ({"class": [3, 1, 4, 2, 1, 4, 3, 2, 4, 2.5]}, "no whole number"),
            ({"class": [3, 1, 4, 2, 1, 4, 3, 2, 4, "x"]}, "no whole number"),
            ({"class": [3, 1, 4, 2, 1, 4, 3, 2, 4, 2]}, "expected 4 training images of 2 classes"),
            ({"class": [3] * 10}, "expected 4 training images of 2 classes, found 0 of 0"),
            ({"class_names": ["A", "B", "A", "D"]}, "expected 4 distinct classes, found 3"),
            ({"relative_im_path": ["car_ims/000001.jpg"] * 10}, "listed twice"),
            ({"relative_im_path": ["../x.jpg"] * 10}, "is not below"),
        ],
    )
    def test_wrong_annotations_are_one_line(
        self, tmp_path: Path, changed: dict[str, object], message: str
    ) -> None:
        folder = trees.cars(tmp_path, **changed)
        with pytest.raises(MlbenchError, match=message) as error:
            load_cars(folder)
        assert "cars_annos.mat" in str(error.value)
        assert "\n" not in str(error.value)

    def test_an_image_of_both_sides(self, tmp_path: Path) -> None:
        paths = [f"car_ims/{i:06d}.jpg" for i in range(1, 11)]
        folder = trees.cars(tmp_path, relative_im_path=[paths[1], *paths[1:]])
        with pytest.raises(MlbenchError, match="both to train and to test on"):
            load_cars(folder)

    @pytest.mark.parametrize("cut", [0, 10, 130, 300, -40])
    def test_a_damaged_file_is_one_line(self, tmp_path: Path, cut: int) -> None:
        folder = trees.cars(tmp_path)
        path = folder / "cars_annos.mat"
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(MlbenchError, match=r"cars_annos\.mat.*unpack") as error:
            load_cars(folder)
        assert "\n" not in str(error.value)

    def test_without_the_fields(self, tmp_path: Path) -> None:
        folder = trees.cars(tmp_path)
        trees.savemat(folder / "cars_annos.mat", {"class_names": ["a"]})
        with pytest.raises(MlbenchError, match=r"cannot read .*'annotations'"):
            load_cars(folder)


class TestSop:
    def test_classes_by_number(self, tmp_path: Path) -> None:
        dataset = load_sop(trees.sop(tmp_path))
        assert dataset.train.class_names == ("00002", "00010")
        assert dataset.test.class_names == ("00011", "00012", "00113")
        assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
        assert dataset.train.names[2] == "chair_final/0003_10.JPG"
        assert dataset.train.levels is not None
        assert dataset.train.levels.tolist() == [[0]] * 5

    @pytest.mark.parametrize(
        ("file", "old", "new", "message"),
        [
            ("Ebay_test.txt", "image_id ", "id ", r"Ebay_test\.txt, line 1: expected 'image_id"),
            ("Ebay_train.txt", "3 10 1 ", "3 10 ", r"line 4: expected 4 words"),
            ("Ebay_train.txt", "3 10 1 ", "3 ten 1 ", r"line 4: expected three numbers"),
            ("Ebay_train.txt", "3 10 1 ", "3 -1 1 ", r"line 4: expected three numbers"),
            ("Ebay_train.txt", "3 10 1 ", "3 7 1 ", "5 training images of 2 classes, found 5 of 3"),
            ("Ebay_test.txt", "0006_11", "0099_11", "1 files of .* are missing"),
            ("Ebay_test.txt", "0007_11", "0006_11", "listed twice"),
            ("Ebay_test.txt", "chair_final/0006", "../chair_final/0006", "is not below"),
            ("Ebay_test.txt", "chair_final/0006", "/chair_final/0006", "is not below"),
        ],
    )
    def test_broken_lists_are_one_line(
        self, tmp_path: Path, file: str, old: str, new: str, message: str
    ) -> None:
        folder = trees.sop(tmp_path)
        edit(folder / file, old, new)
        with pytest.raises(MlbenchError, match=message) as error:
            load_sop(folder)
        assert "\n" not in str(error.value)

    def test_classes_on_both_sides(self, tmp_path: Path) -> None:
        folder = trees.sop(tmp_path)
        text = (folder / "Ebay_test.txt").read_text()
        (folder / "Ebay_test.txt").write_text(text.replace(" 113 ", " 10 "))
        with pytest.raises(MlbenchError, match="classes 00010 are both to train and to test on"):
            load_sop(folder)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", None])
    def test_unreadable_list(self, tmp_path: Path, content: bytes | None) -> None:
        folder = trees.sop(tmp_path)
        path = folder / "Ebay_test.txt"
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(MlbenchError, match=r"Ebay_test\.txt.*unpack the archive again"):
            load_sop(folder)


class TestInShop:
    def test_queries_and_gallery_share_labels(self, tmp_path: Path) -> None:
        dataset = load_inshop(trees.inshop(tmp_path / "inshop"))
        assert dataset.gallery is not None
        assert dataset.test.class_names == dataset.gallery.class_names
        assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert dataset.gallery.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        for images in (dataset.test, dataset.gallery):
            folders = [name.split("/")[3] for name in images.names]
            assert folders == [images.class_names[label] for label in images.labels]

    def test_the_official_folders_are_found(self, tmp_path: Path) -> None:
        packed = trees.inshop(tmp_path / "inshop")
        assert inshop.locate(tmp_path) == (packed / "list_eval_partition.txt", packed)
        official = tmp_path / "In-shop Clothes Retrieval Benchmark"
        (official / "Eval").mkdir(parents=True)
        (official / "Img").mkdir()
        (packed / "list_eval_partition.txt").rename(official / "Eval" / "list_eval_partition.txt")
        (packed / "img").rename(official / "Img" / "img")
        for root in (tmp_path, official):
            source, folder = inshop.locate(root)
            dataset = inshop._load(source, folder, *trees.INSHOP_SIDES)
            assert len(dataset.test) == 8

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("image_name item_id", "image item", "line 2: expected 'image_name"),
            ("36\n", "", "line 2: expected 'image_name"),
            ("gallery", "val", "line 21: expected one of train, query, gallery, got 'val'"),
            ("id_00000005 query", "id_00000005", "line 19: expected 3 words"),
            ("id_00000005 gallery", "id_00000001 gallery", "12 gallery images of 4 .* 12 of 5"),
            ("query", "train", "expected 16 train images of 4 classes, found 17 of 5"),
            ("05/02_front.jpg", "05/01_front.jpg", "both a query and in the gallery"),
        ],
    )
    def test_broken_lists_are_one_line(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        folder = trees.inshop(tmp_path / "inshop")
        edit(folder / "list_eval_partition.txt", old, new)
        with pytest.raises(MlbenchError, match=message) as error:
            load_inshop(folder)
        assert "\n" not in str(error.value)

    def test_items_that_are_only_queries(self, tmp_path: Path) -> None:
        folder = trees.inshop(tmp_path / "inshop")
        path = folder / "list_eval_partition.txt"
        path.write_text(path.read_text().replace("id_00000008 gallery", "id_00000009 gallery"))
        with pytest.raises(MlbenchError, match="id_00000008, id_00000009 are not both among"):
            load_inshop(folder)


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("a/b.jpg", True),
        ("a..b.jpg", True),
        ("", False),
        (".", False),
        ("/a", False),
        ("../a", False),
        ("a/../../b", False),
    ],
)
def test_only_paths_below_the_folder_are_inside(path: str, inside: bool) -> None:
    assert is_inside(path) == inside


def test_the_official_counts_are_those_of_the_papers() -> None:
    counts = [(s.images, s.classes) for s in (cars196._TRAIN, cars196._TEST, sop._TRAIN, sop._TEST)]
    assert counts == [(8_054, 98), (8_131, 98), (59_551, 11_318), (60_502, 11_316)]
    counts = [(s.images, s.classes) for s in (inshop._TRAIN, inshop._QUERY, inshop._GALLERY)]
    assert counts == [(25_882, 3_997), (14_218, 3_985), (12_612, 3_985)]
    assert sum(images for images, _ in counts) == 52_712  # what the list's first line says
