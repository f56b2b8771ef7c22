import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import trees
from PIL import Image

from mlbench.datasets import cub200, folder, table
from mlbench.datasets.checks import check_dataset
from mlbench.errors import DataWarning, MlbenchError
from mlbench.interfaces import Dataset
from mlbench.recipes.plan import Request, make_plan

Rows = Sequence[Sequence[object]]

SPLIT = (
    *(("a", "train"), ("a", "train"), ("b", "train"), ("b", "train")),
    *(("c", "test"), ("c", "test"), ("d", "test"), ("d", "test")),
)


def rows_of(*columns: Sequence[object]) -> list[list[object]]:
    """Return rows of a path and a class each, with further columns."""
    plain = [[f"img/{i}.png", label] for i, (label, _) in enumerate(SPLIT)]
    return [[*row, *more] for row, *more in zip(plain, *columns, strict=True)]


def write(root: Path, header: str, rows: Rows, name: str = "all.csv") -> Path:
    """Write a table and, if they are not there, its images, 8 pixels wide and 6 high."""
    for number in range(8):
        path = root / "img" / f"{number}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def load(path: Path) -> Dataset:
    dataset = table.load(str(path), None)
    check_dataset(dataset)
    return dataset


splits = [split for _, split in SPLIT]


class TestSides:
    def test_split_in_the_order_of_rows_labels_by_sorted_class(self, tmp_path):
        rows = rows_of(splits)
        dataset = load(write(tmp_path, "path,label,split", [*rows[::-1]]))
        assert dataset.name == "table:all.csv"
        assert dataset.train.names == ("img/3.png", "img/2.png", "img/1.png", "img/0.png")
        assert dataset.train.class_names == ("a", "b")
        assert dataset.train.labels.tolist() == [1, 1, 0, 0]
        assert dataset.test.class_names == ("c", "d")
        assert (dataset.gallery, dataset.validation, dataset.train.groups) == (None, None, None)
        np.testing.assert_array_equal(
            dataset.test.read(0), np.asarray(Image.open(tmp_path / "img" / "7.png"))
        )

    def test_without_split_as_a_folder_of_the_same_files(self, tmp_path):
        for number, name in enumerate("dcba"):
            for i in range(2):
                trees.write_image(tmp_path / name / f"{i}.png", 10 * number + i)
        files = sorted(tmp_path.glob("*/*.png"))
        lines = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in files]
        (tmp_path / "t.csv").write_text("\n".join(["path,label", *lines]))
        ours, theirs = load(tmp_path / "t.csv"), folder.load(str(tmp_path), None)
        assert ours.fingerprint == theirs.fingerprint
        assert ours.train.names == theirs.train.names

    def test_classes_that_are_numbers_are_sorted_as_numbers(self, tmp_path):
        numbers = {"a": 9, "b": 2, "c": 10, "d": 100}
        rows = [[path, numbers[str(name)]] for path, name in rows_of()]
        dataset = load(write(tmp_path, "path,label", rows))
        assert dataset.train.class_names == ("2", "9")
        assert dataset.test.class_names == ("10", "100")

    def test_validation_images_are_a_side_of_their_own(self, tmp_path):
        rows = [*rows_of(splits)]
        extra = [[f"img/v{i}.png", f"v{i // 2}", "validation"] for i in range(4)]
        for number, row in enumerate(extra):
            trees.write_image(tmp_path / str(row[0]), 50 + number)
        dataset = load(write(tmp_path, "path,label,split", [*rows, *extra]))
        assert dataset.validation is not None
        assert dataset.validation.class_names == ("v0", "v1")
        assert len(dataset.train) == 4
        without = load(write(tmp_path, "path,label,split", rows))
        assert dataset.fingerprint != without.fingerprint

    @pytest.mark.parametrize("flags", ["is_query", "is_gallery", "both"])
    def test_one_column_alone_parts_queries_from_the_gallery(self, tmp_path, flags):
        query = ["", "", "", "", "True", "false", "1", "0.0"]
        gallery = ["", "", "", "", 0, 1, "FALSE", "true"]
        columns = {"is_query": [query], "is_gallery": [gallery], "both": [query, gallery]}[flags]
        header = "is_query,is_gallery" if flags == "both" else flags
        dataset = load(write(tmp_path, f"path,label,split,{header}", rows_of(splits, *columns)))
        assert dataset.gallery is not None
        assert dataset.test.names == ("img/4.png", "img/6.png")
        assert dataset.gallery.names == ("img/5.png", "img/7.png")
        assert dataset.gallery.groups is None

    def test_a_query_in_the_gallery_is_in_a_group_with_itself(self, tmp_path):
        rows = rows_of(splits, [*"0000", *"1010"], [*"0000", *"1111"])
        dataset = load(write(tmp_path, "path,label,split,is_query,is_gallery", rows))
        assert dataset.gallery is not None
        assert dataset.test.groups is not None
        assert dataset.gallery.groups is not None
        matches = dataset.test.groups[:, None] == dataset.gallery.groups
        assert matches.tolist() == [[True, False, False, False], [False, False, True, False]]

    def test_all_query_and_gallery_is_no_gallery(self, tmp_path):
        ones = [*"0000", *"1111"]
        flagged = write(
            tmp_path, "path,label,split,is_query,is_gallery", rows_of(splits, ones, ones)
        )
        plain = write(tmp_path, "path,label,split", rows_of(splits), "plain.csv")
        assert load(flagged).fingerprint == load(plain).fingerprint

    def test_classes_that_are_only_in_the_gallery_come_last(self, tmp_path):
        labels = [*"aabb", "z", "z", "c", "c"]
        rows = [[f"img/{i}.png", labels[i], splits[i], int(i == 4)] for i in range(8)]
        dataset = load(write(tmp_path, "path,label,split,is_query", rows))
        assert dataset.gallery is not None
        assert dataset.test.class_names == ("z",)
        assert dataset.gallery.class_names == ("z", "c")
        assert dataset.gallery.labels.tolist() == [0, 1, 1]


class TestBoxesAndGroups:
    def test_a_box_cuts_and_names_its_image(self, tmp_path):
        edges = [["", 1, "1.0", "", "", "", "", ""], ["", 0, 2, "", "", "", "", ""]]
        edges += [["", 8, 4, "", "", "", "", ""], ["", 6, 3, "", "", "", "", ""]]
        path = write(tmp_path, "path,label,x_1,y_1,x_2,y_2", rows_of(*edges))
        dataset = load(path)
        whole = [np.asarray(Image.open(tmp_path / "img" / f"{i}.png")) for i in range(8)]
        assert dataset.train.names[1:3] == ("img/1.png[1,0,8,6]", "img/2.png[1,2,4,3]")
        np.testing.assert_array_equal(dataset.train.read(0), whole[0])
        np.testing.assert_array_equal(dataset.train.read(1), whole[1][0:6, 1:8])
        np.testing.assert_array_equal(dataset.train.read(2), whole[2][2:3, 1:4])
        plain = write(tmp_path, "path,label", rows_of(), "plain.csv")
        assert load(plain).fingerprint != dataset.fingerprint

    def test_objects_of_one_photograph_are_images_of_their_own_and_no_copies(self, tmp_path):
        rows = [[path, label, *"1122"] for path, label in rows_of()]
        rows[5][0], rows[5][2:] = rows[4][0], [2, 2, 4, 4]
        dataset = load(write(tmp_path, "path,label,x_1,y_1,x_2,y_2", rows))
        assert dataset.test.names[:2] == ("img/4.png[1,1,2,2]", "img/4.png[2,2,4,4]")

    def test_a_box_is_of_the_upright_image(self, tmp_path):
        path = write(
            tmp_path, "path,label,x_1,y_1,x_2,y_2", [[*r, "", "", "", ""] for r in rows_of()]
        )
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn: 8 x 6 becomes 6 x 8
        with Image.open(tmp_path / "img" / "0.png") as image:
            image.save(tmp_path / "img" / "turned.jpg", exif=exif)
        lines = path.read_text().splitlines()
        lines[1] = "img/turned.jpg,a,0,0,6,8"
        path.write_text("\n".join(lines))
        assert load(path).train.read(0).shape == (8, 6, 3)
        path.write_text("\n".join(lines).replace("0,0,6,8", "0,0,8,6"))
        with pytest.raises(
            MlbenchError, match=r"line 2, column 'x_2': the box ends at 8, and .* 6 p"
        ):
            load(path)

    def test_groups_are_numbered_alike_on_all_sides_and_part_of_the_fingerprint(self, tmp_path):
        groups = ["s1", "", "s1", "", "v", "", "", "v"]
        dataset = load(write(tmp_path, "path,label,split,group", rows_of(splits, groups)))
        assert dataset.train.groups is not None
        assert dataset.test.groups is not None
        assert dataset.train.groups.tolist() == [0, 1, 0, 2]
        assert dataset.test.groups.tolist() == [3, 4, 5, 3]
        other = ["s1", "", "s1", "", "v", "v", "", ""]
        again = load(write(tmp_path, "path,label,split,group", rows_of(splits, other)))
        assert again.fingerprint != dataset.fingerprint

    def test_an_empty_group_column_changes_nothing(self, tmp_path):
        empty = write(tmp_path, "path,label,group", rows_of([""] * 8), "empty.csv")
        plain = write(tmp_path, "path,label", rows_of(), "plain.csv")
        assert load(empty).fingerprint == load(plain).fingerprint


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "encode"),
        [
            ("bom.csv", lambda text: b"\xef\xbb\xbf" + text.encode()),
            ("crlf.csv", lambda text: text.replace("\n", "\r\n").encode()),
            ("cr.csv", lambda text: text.replace("\n", "\r").encode()),
            ("t.tsv", lambda text: text.replace(",", "\t").encode()),
            ("T.CSV", lambda text: text.encode()),
            ("end.csv", lambda text: text.rstrip("\n").encode()),
            ("blank.csv", lambda text: text.replace("\nimg/4", "\n\nimg/4").encode()),
            ("quoted.csv", lambda text: re.sub(r"([^,\n]+)", r'"\1"', text).encode()),
            ("spaces.csv", lambda text: text.replace(",", ", ").encode()),
        ],
    )
    def test_ways_to_write_the_same_table(self, tmp_path, name, encode):
        plain = write(tmp_path, "path,label,split", rows_of(splits))
        (tmp_path / name).write_bytes(encode(plain.read_text()))
        assert load(tmp_path / name).fingerprint == load(plain).fingerprint

    def test_parquet(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        boxes = [["", 0.0, "", 1, "", "", "", ""], ["", 0, "", 1, "", "", "", ""]]
        boxes += [["", 2, "", 5, "", "", "", ""], ["", 2, "", 5, "", "", "", ""]]
        rows = rows_of(splits, [*"xx", "", "", *"yy", "", ""], *boxes)
        header = "path,label,split,group,x_1,y_1,x_2,y_2"
        plain = write(tmp_path, header, rows)
        columns = {
            name: [cell if cell != "" else None for cell in cells]
            for name, *cells in zip(header.split(","), *rows, strict=True)
        }
        columns |= {
            edge: [None if v is None else float(v) for v in columns[edge]]
            for edge in ("x_1", "y_1", "x_2", "y_2")
        }
        columns["price"] = [1.5] * 8
        parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
        with pytest.warns(DataWarning, match="t.parquet: ignored columns: price"):
            found = load(tmp_path / "t.parquet")
        assert found.fingerprint == load(plain).fingerprint
        (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(200) + b"PAR1")
        with pytest.raises(MlbenchError, match="not a Parquet file that can be read"):
            load(tmp_path / "bad.parquet")
        columns["split"][2] = None
        parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
        with pytest.warns(DataWarning), pytest.raises(MlbenchError, match="row 3, column 'split'"):
            load(tmp_path / "t.parquet")

    def test_other_columns_are_named_in_a_warning(self, tmp_path):
        path = write(tmp_path, "path,label,price", rows_of([1] * 8))
        with pytest.warns(DataWarning, match="all.csv: ignored columns: price"):
            load(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty; add the header 'path,label' and rows"),
            (b"\xef\xbb\xbf\r\n", "is empty"),
            (b"path,label\n", "has a header and no rows"),
            (b"path,class\n", "no column 'label'; its header has 'path', 'class'"),
            (b"path,label,gruop\nx,y,z", "unknown column 'gruop'; did you mean 'group'?"),
            (b"Path,label\nx,y", "unknown column 'Path'; did you mean 'path'?"),
            (b"path,label,path\nx,y,z", "two columns 'path'"),
            (b"path;label\nx;y", "separated by semicolons; separate them by commas"),
            (b"path\tlabel\nx\ty", "separated by tabs; separate them by commas"),
            (b"path,label\nimg/0.png,a,b", "line 2: 3 cells, and the header has 2;"),
            (b"path,label\n\nimg/0.png", "line 3: 1 cells, and the header has 2;"),
            (
                "path,label\nimg/0.png,a\nx,Gew\u00e4chs".encode("latin-1"),
                "line 3: byte 0xe4 is not",
            ),
            (b"\xff\xfep\0a\0", "line 1: byte 0xff is not UTF-8; save the table as UTF-8"),
            (b'path,label\n"x,y\n', "line 2: unexpected end of data; fix its quotes"),
            (b'path,label\n"x"z,y\n', "line 2: .* expected after .*; fix its quotes"),
            (b"path,label\nimg/0.png,a\n,a", "line 3, column 'path': empty; use paths relative"),
            (b"path,label\n/etc/x.png,a", "'/etc/x.png' is not below the table's folder;"),
            (b"path,label\n../x.png,a", r"'\.\./x.png' is not below the table's folder;"),
            (b"path,label\nimg/0.png,a\nimg/1.png, ", "line 3, column 'label': empty;"),
            (b"path,label\nimg/0.png,a\nimg/0.png,b", ".*'img/0.png' already occurs in line 2"),
            (
                b"path,label\nimg/0.png,a\nno,b\nno2,b",
                r"line 3, .*no file '.*/no' \(2 such rows in",
            ),
            (b"path,label\nimg/0.png,a\nimg/\0,b", "line 3, column 'path': no file"),
            (b"path,label\nimg,a", "line 2, column 'path': no file"),
        ],
    )
    def test_what_is_wrong_with_a_file_is_one_line(self, tmp_path, content, message):
        path = write(tmp_path, "path,label", rows_of())
        path.write_bytes(content)
        with pytest.raises(MlbenchError, match=message) as caught:
            load(path)
        assert "all.csv" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_what_is_no_table(self, tmp_path):
        (tmp_path / "folder.csv").mkdir()
        (tmp_path / "t.xlsx").write_bytes(b"PK")
        for name, message in (
            ("none.csv", "cannot read .*none.csv: No such file"),
            ("folder.csv", "folder.csv: a folder, not a regular file"),
            ("t.xlsx", "not a table; use a .csv, .tsv or .parquet file"),
        ):
            with pytest.raises(MlbenchError, match=message):
                load(tmp_path / name)

    def test_paths_are_relative_to_the_root_of_the_data(self, tmp_path):
        write(tmp_path, "path,label", rows_of())
        assert table.load("all.csv", tmp_path).name == "table:all.csv"
        plan = make_plan(Request(losses=("triplet",), dataset="table:all.csv", data_root=tmp_path))
        assert (plan.recipe.data.name, plan.files.data_root) == ("table:all.csv", tmp_path)


BOX = ",x_1,y_1,x_2,y_2"


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (
            "split",
            [[*splits[:7], "val"]],
            "line 9, column 'split': 'val'; use one of train, valid",
        ),
        ("split", [[*splits[:7], ""]], "line 9, column 'split': empty; fill it"),
        ("split", [["train"] * 8], "no row has the split 'test'; mlbench trains on 'train' and"),
        ("split", [["test"] * 8], "no row has the split 'train'"),
        (
            "split",
            [["train", "test"] * 4],
            "line 3, column 'label': class 'a' is in test here and in",
        ),
        ("split", [["train"] * 6 + ["test"] * 2], "1 class in test, which needs at least 2"),
        (
            "split",
            [["train"] * 3 + ["test"] * 5],
            "line 5, column 'label': class 'b' is in test here",
        ),
        ("is_query", [[1] * 8], "column 'is_query' needs a column 'split'"),
        (
            "split,is_query",
            [splits, [*"0000111", "maybe"]],
            "line 9, .*'maybe'; use true or false",
        ),
        ("split,is_query", [splits, [*"10001111"]], "line 2, .*true, and the split is 'train'"),
        ("split,is_query", [splits, [*"00000000"]], "no test image has a true 'is_query'"),
        ("split,is_query", [splits, [*"00001111"]], "no test image has a true 'is_gallery'"),
        (
            "split,is_query,is_gallery",
            [splits, [*"00001100"], [*"00000010"]],
            "line 9, column 'is_query': neither this nor is_gallery is true",
        ),
        ("x_1,y_1", [[0] * 8, [0] * 8], "takes the four columns x_1, y_1, x_2, y_2; its header"),
        (
            BOX[1:],
            [[0] * 8, [0] * 8, [2.5] * 8, [2] * 8],
            "'x_2': '2.5' is not a whole number of p",
        ),
        (
            BOX[1:],
            [[0] * 8, [-1] * 8, [2] * 8, [2] * 8],
            "line 2, column 'y_1': '-1' is not a whole",
        ),
        (BOX[1:], [[0] * 8, [""] * 8, [2] * 8, [2] * 8], "line 2, column 'y_1': '' is not a whole"),
        (BOX[1:], [[2] * 8, [0] * 8, [2] * 8, [2] * 8], "'x_2': 2 is not above x_1, which is 2"),
        (
            BOX[1:],
            [[0] * 8, [0] * 8, [8] * 8, [7] * 8],
            "'y_2': the box ends at 7, and the image is 6",
        ),
        (
            "split,group",
            [splits, [*"x123x567"]],
            "line 6, .*'group': 'x' is in test here and in trai",
        ),
    ],
)
def test_what_is_wrong_with_cells_is_one_line(tmp_path, header, columns, message):
    path = write(tmp_path, f"path,label,{header}", rows_of(*columns))
    with pytest.raises(MlbenchError, match=message) as caught:
        load(path)
    assert "all.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_of_one_image_are_named(tmp_path):
    rows = rows_of(splits)
    rows[1][1] = "single"
    with pytest.raises(MlbenchError, match="only one image of these classes of train: a, single;"):
        load(write(tmp_path, "path,label,split", rows))


def test_a_table_of_cub_beside_its_images_is_the_built_in_data_set(tmp_path):
    root = trees.cub(tmp_path)
    names = (root / "images.txt").read_text().split()[1::2]
    lines = [f"{name},{name[:3]},{'train' if name < '003' else 'test'}" for name in names]
    (root / "images" / "cub.csv").write_text("\n".join(["path,label,split", *lines]))
    built_in = cub200._load(root, cub200._Side("training", 1, 2, 5), cub200._Side("test", 3, 4, 5))
    assert load(root / "images" / "cub.csv").fingerprint == built_in.fingerprint
