"""The data command against a web server on this machine, and folders filled by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock
from helpers import trees
from helpers.webserver import Page, Server, serving

from mlbench.cli import main
from mlbench.datasets import cars196, cub200, inshop
from mlbench.datasets import public as sources
from mlbench.system.download import Pin

OFFICIAL = dict(sources.SOURCES)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loaders take the tiny trees for the official ones."""
    sides = (cub200._Side("training", 1, 2, 5), cub200._Side("test", 3, 4, 5))
    monkeypatch.setattr(cub200, "_OFFICIAL", sides)
    monkeypatch.setattr(cars196, "_TRAIN", trees.CARS_TRAIN)
    monkeypatch.setattr(cars196, "_TEST", trees.CARS_TEST)
    for name, side in zip(("_TRAIN", "_QUERY", "_GALLERY"), trees.INSHOP_SIDES, strict=True):
        monkeypatch.setattr(inshop, name, side)
    monkeypatch.delenv("MLBENCH_DATA_ROOT", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def mlbench(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.output


def publish(
    name: str, contents: list[bytes], urls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a public data set consist of other files, at other places."""
    source = OFFICIAL[name]
    files = [
        replace(file, urls=tuple(places), pin=_pin(file.pin, content))
        for file, places, content in zip(source.files, urls, contents, strict=True)
    ]
    monkeypatch.setitem(sources.SOURCES, name, replace(source, files=tuple(files)))


def _pin(pin: Pin, content: bytes) -> Pin:
    return Pin(
        sha256=pin.sha256 and hashlib.sha256(content).hexdigest(),
        md5=pin.md5 and hashlib.md5(content).hexdigest(),
        size=pin.size and len(content),
    )


def packed_cub(folder: Path) -> bytes:
    tree = trees.cub(folder)
    with tarfile.open(folder / "cub.tgz", "w:gz") as archive:
        archive.add(tree, "CUB_200_2011")
        archive.add(tree / "classes.txt", "attributes.txt")
    return (folder / "cub.tgz").read_bytes()


def packed_cars(folder: Path) -> tuple[bytes, bytes]:
    tree = trees.cars(folder)
    with tarfile.open(folder / "cars.tgz", "w:gz") as archive:
        archive.add(tree / "car_ims", "car_ims")
    return (folder / "cars.tgz").read_bytes(), (tree / "cars_annos.mat").read_bytes()


def pack_inshop(folder: Path, into: Path) -> None:
    tree = trees.inshop(folder)
    (into / "Img").mkdir(parents=True)
    with zipfile.ZipFile(into / "Img" / "img.zip", "w") as archive:
        for path in sorted(tree.rglob("*.jpg")):
            archive.write(path, path.relative_to(tree))
    (into / "Eval").mkdir()
    (tree / "list_eval_partition.txt").rename(into / "Eval" / "list_eval_partition.txt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def cub_content(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    content = packed_cub(tmp_path)
    urls = [server.add("/gone", Page(status=404)), server.add("/cub.tgz", Page(content))]
    publish("cub200", [content], [urls], monkeypatch)
    return content


class TestFetch:
    def test_from_a_mirror_to_a_verified_data_set(
        self, server: Server, root: Path, cub_content: bytes
    ) -> None:
        first = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert first.exit_code == 0, first.output
        assert "train: 5 images of 2 classes" in first.stdout
        for text in ("terms: no licence", "CUB_200_2011.tgz (", "SHA-256 as published"):
            assert text in first.stderr
        assert sorted(p.name for p in root.iterdir()) == ["CUB_200_2011", "downloads"]
        path = mlbench("data", "path", "cub200", "--data-root", root).stdout.strip()
        assert Path(path) == root / "CUB_200_2011"
        asked = len(server.requested)
        again = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert again.stdout == first.stdout
        assert "already exist" in again.stderr
        assert len(server.requested) == asked == 2

    def test_into_the_default_folder_where_the_loader_finds_it(
        self, cub_content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
        assert mlbench("data", "fetch", "cub200").exit_code == 0
        assert len(cub200.load(None).train) == 5
        assert str(tmp_path / "cache") in mlbench("data", "path", "cub200").stdout

    def test_goes_on_after_being_stopped_anywhere(
        self, root: Path, cub_content: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        for place in ("download._save", "download.Pin.problem", "archives._write"):
            with monkeypatch.context() as patch:
                patch.setattr(f"mlbench.system.{place}", stop)
                assert mlbench("data", "fetch", "cub200", "--data-root", root).exit_code == 130
            assert_refused(mlbench("data", "path", "cub200", "--data-root", root), "data fetch")
        assert mlbench("data", "fetch", "cub200", "--data-root", root).exit_code == 0

    def test_two_files_of_which_only_an_md5_is_known(
        self, server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, table = packed_cars(tmp_path)
        urls = [[server.add("/images", Page(images))], [server.add("/table", Page(table))]]
        publish("cars196", [images, table], urls, monkeypatch)
        result = mlbench("data", "fetch", "cars196", "--data-root", root)
        assert result.exit_code == 0, result.output
        assert "test: 6 images of 2 classes" in result.stdout
        found = hashlib.sha256(images).hexdigest()
        assert f"MD5 as published; no SHA-256 is, the one found is {found}" in result.stderr

    def test_dead_mirrors_say_how_to_do_it_by_hand(
        self, server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, table = packed_cars(tmp_path)
        dead = [server.add("/gone", Page(status=404))]
        publish("cars196", [images, table], [dead, dead], monkeypatch)
        result = mlbench("data", "fetch", "cars196", "--data-root", root)
        folder = root / "downloads" / "cars196"
        assert_refused(result, "download it manually: find copies of the authors' car_ims.tgz")
        assert_refused(result, f"save it in {folder}")
        (folder / "car_ims.tgz").write_bytes(images)
        (folder / "cars_annos.mat").write_bytes(table)
        assert mlbench("data", "fetch", "cars196", "--data-root", root).exit_code == 0

    def test_a_file_put_there_by_hand_must_be_the_published_one(
        self, root: Path, cub_content: bytes
    ) -> None:
        given = root / "downloads" / "cub200" / "CUB_200_2011.tgz"
        given.parent.mkdir(parents=True)
        given.write_bytes(b"x" * len(cub_content))
        result = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert_refused(result, f"{given} is not the published CUB_200_2011.tgz (SHA-256 ")
        assert given.exists()

    def test_what_can_only_be_had_by_hand(self, root: Path, tmp_path: Path) -> None:
        result = mlbench("data", "fetch", "inshop", "--data-root", root)
        folder = root / "downloads" / "inshop"
        assert_refused(
            result, "img.zip and list_eval_partition.txt must be downloaded manually: open"
        )
        assert_refused(result, f"save them in {folder} and run this command again")
        pack_inshop(tmp_path / "made", folder)
        done = mlbench("data", "fetch", "inshop", "--data-root", root)
        assert done.exit_code == 0, done.output
        assert "gallery: 12 images of 4 classes" in done.stdout
        assert "no checksum is published; SHA-256 found: " in done.stderr
        assert (folder / "Img" / "img.zip").exists()

    def test_a_half_emptied_folder_is_named(self, root: Path, cub_content: bytes) -> None:
        (root / "CUB_200_2011").mkdir(parents=True)
        result = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert_refused(result, f"{root / 'CUB_200_2011'} exists but is incomplete; delete it")

    def test_one_at_a_time(self, root: Path, cub_content: bytes) -> None:
        folder = root / "downloads" / "cub200"
        folder.mkdir(parents=True)
        with FileLock(folder / ".lock"):
            result = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert_refused(result, "another mlbench is fetching cub200")

    def test_a_root_that_cannot_be_used(self, tmp_path: Path, cub_content: bytes) -> None:
        (tmp_path / "file").touch()
        result = mlbench("data", "fetch", "cub200", "--data-root", tmp_path / "file")
        assert_refused(result, "Not a directory")

    def test_wrong_counts_are_named_after_unpacking(
        self, root: Path, cub_content: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more = (cub200._Side("training", 1, 2, 6), cub200._Side("test", 3, 4, 5))
        monkeypatch.setattr(cub200, "_OFFICIAL", more)
        result = mlbench("data", "fetch", "cub200", "--data-root", root)
        assert_refused(result, "expected 6 training images of 2 classes, found 5")


class TestVerify:
    def test_as_json(self, root: Path) -> None:
        trees.cub(root)
        result = mlbench("data", "verify", "cub200", "--data-root", root, "--json")
        facts = json.loads(result.stdout)
        assert facts["sides"] == {
            "train": {"images": 5, "classes": 2},
            "test": {"images": 5, "classes": 2},
        }
        assert facts["fingerprint"] == cub200.load(root).fingerprint
        assert facts["fingerprint_is_official"] is None

    def test_against_an_official_fingerprint(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trees.cub(root)
        known = cub200.load(root).fingerprint
        source = replace(OFFICIAL["cub200"], fingerprint=known)
        monkeypatch.setitem(sources.SOURCES, "cub200", source)
        right = mlbench("data", "verify", "cub200", "--data-root", root)
        assert f"fingerprint: {known} (that of the official files)" in right.stdout
        trees.write_image(next((root / "CUB_200_2011" / "images").rglob("*.jpg")), 999)
        wrong = mlbench("data", "verify", "cub200", "--data-root", root)
        assert_refused(wrong, "the counts are right, but the contents are not")

    def test_own_folders(self, photos: Path) -> None:
        result = mlbench("data", "verify", f"folder:{photos}")
        assert "train: 24 images of 3 classes" in result.stdout

    def test_damage_is_named(self, root: Path) -> None:
        folder = trees.cub(root)
        next((folder / "images").rglob("*.jpg")).unlink()
        result = mlbench("data", "verify", "cub200", "--data-root", root)
        assert_refused(result, "images.txt are missing in")


class TestList:
    def test_says_what_is_there(self, root: Path) -> None:
        trees.inshop(root / "inshop")
        facts = {
            f["name"]: f
            for f in json.loads(mlbench("data", "list", "--data-root", root, "--json").stdout)
        }
        assert list(facts) == ["cub200", "cars196", "sop", "inshop"]
        assert facts["inshop"]["path"] == str(root / "inshop")
        assert facts["inshop"]["by_hand"]
        assert facts["sop"]["path"] is None
        assert facts["sop"]["bytes"] == 3_083_860_082
        table = mlbench("data", "list", "--data-root", root).stdout
        for text in ("1.2 GB", "manual", "research", "120,053"):
            assert text in table

    @pytest.mark.parametrize("command", ["path", "fetch"])
    def test_unknown_names(self, command: str) -> None:
        assert_refused(mlbench("data", command, "cub20"), "did you mean cub200")

    def test_without_torch(self, root: Path) -> None:
        code = (
            "import sys; from mlbench.cli import main;"
            f"main(['data', 'list', '--data-root', {str(root)!r}], standalone_mode=False);"
            "assert not {'torch', 'sklearn', 'matplotlib'} & set(sys.modules)"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


class TestOfficialSources:
    @pytest.mark.parametrize("source", OFFICIAL.values(), ids=lambda source: source.name)
    def test_addresses_are_https_and_files_pinned(self, source: sources.PublicSource) -> None:
        for file in source.files:
            assert all(url.startswith("https://") for url in file.urls)
            assert not file.urls or file.pin.sha256 or file.pin.md5
            assert not file.urls or file.pin.size
            for digest, length in ((file.pin.sha256, 64), (file.pin.md5, 32)):
                assert digest is None or len(bytes.fromhex(digest)) == length / 2

    def test_images_are_those_of_the_loaders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        loaders = {"cub200": 11_788, "cars196": 8_054 + 8_131, "sop": 59_551 + 60_502}
        loaders["inshop"] = inshop._TRAIN.images + inshop._QUERY.images + inshop._GALLERY.images
        assert {name: source.images for name, source in OFFICIAL.items()} == loaders
        for source in OFFICIAL.values():
            assert source.limits.files > source.images
