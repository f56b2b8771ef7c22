from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.archives import LIMITS, assert_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbench.errors import MlbenchError
from mlbench.system import archives
from mlbench.system.archives import Limits, unpack

GOOD = {"top/a.jpg": b"aa", "top/deep/er/b.jpg": b"b" * 3000, "other.txt": b"left out"}
Write = Callable[[Path, dict[str, bytes]], None]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


@pytest.fixture(params=[write_tar, write_zip])
def write(request: pytest.FixtureRequest) -> Write:
    return request.param


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_unpacks_one_folder_and_leaves_the_rest(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x", GOOD)
    seen: list[int] = []
    out = unpack(
        tmp_path / "x", "top", tmp_path / "new" / "out", LIMITS, lambda n, _: seen.append(n)
    )
    assert contents(out) == {"a.jpg": b"aa", "deep/er/b.jpg": b"b" * 3000}
    assert seen == [1, 2]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_folders_named_as_such_may_be_there_twice(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x", {"./top/": b"", "./top/a": b"1", "top/": b""})
    if write is write_tar:
        with tarfile.open(tmp_path / "x", "w") as archive:
            for name in ("./top", "top"):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            archive.addfile(tarfile.TarInfo("./top/a"))
    assert list(contents(unpack(tmp_path / "x", "top", tmp_path / "out", LIMITS))) == ["a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "'../evil' leads out of its folder"),
        ("top/../../evil", "leads out of its folder"),
        ("top/..", "leads out of its folder"),
        ("/etc/evil", "leads out of its folder"),
        ("//evil", "leads out of its folder"),
        ("C:/evil", "leads out of its folder"),
        ("c:evil", "leads out of its folder"),
        ("top\\..\\..\\evil", "is not a valid file name"),
        ("top/ev\nil", "is not a valid file name"),
        ("top/\x1b[2J", "is not a valid file name"),
        (".", "is not a valid file name"),
    ],
)
def test_dangerous_names_are_refused(write: Write, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x", {**GOOD, name: b"evil"})
    assert_refused(tmp_path / "in" / "x", message)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "x", "w") as archive:
        info = tarfile.TarInfo("top/link")
        info.type, info.linkname = kind, "/etc/hostname"
        archive.addfile(info)
    assert_refused(tmp_path / "in" / "x", "'top/link' is a link or a device")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "x", "w") as archive:
        info = zipfile.ZipInfo("top/link")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/hostname")
    assert_refused(tmp_path / "in" / "x", "'top/link' is a link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in ("top/./a.jpg", "top//a.jpg"):
        write(tmp_path / "in" / "x", {**GOOD, path: b"again"})
        assert_refused(tmp_path / "in" / "x", "twice")


def test_a_file_that_is_also_a_folder_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x", {"top/a": b"1", "top/a/b": b"2"})
    assert_refused(tmp_path / "in" / "x", "cannot unpack")


def test_too_many_files_and_bytes_are_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "x"
    write(archive, {f"top/{i}": b"" for i in range(11)})
    assert_refused(archive, "more than 10 entries", Limits(10, 100))
    write(archive, {f"elsewhere/{i}": b"" for i in range(11)})
    assert_refused(archive, "more than 10 entries", Limits(10, 100))
    write(archive, {"top/a": bytes(10_000), "top/b": bytes(10_000)})
    assert archive.stat().st_size < 1000
    assert_refused(archive, "more than .* 19,999 bytes", Limits(10, 19_999))
    assert len(contents(unpack(archive, "top", tmp_path / "out", Limits(10, 20_000)))) == 2


@pytest.mark.parametrize("declared", [10, 10_000])
def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path, declared: int) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "x"
    write_zip(archive, {"top/bomb": bytes(5000)})
    true = (5000).to_bytes(4, "little")
    data = archive.read_bytes()
    assert data.count(true) == 2
    archive.write_bytes(data.replace(true, declared.to_bytes(4, "little")))
    assert_refused(archive, "cannot unpack|does not have the declared size", Limits(10, 20_000))


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "x"
    write_zip(archive, {"top/a": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    assert_refused(archive, "encrypted")


@pytest.mark.parametrize(
    "content", [b"", b"<html>please log in</html>", b"\x1f\x8b", b"PK\x03\x04"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_bytes(content)
    assert_refused(tmp_path / "in" / "x", "cannot unpack")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000), truncate=st.booleans())
def test_a_damaged_archive_is_one_line_or_right(
    write: Write, tmp_path: Path, cut: int, flip: int, truncate: bool
) -> None:
    archive, out = tmp_path / "x", tmp_path / "out"
    write(archive, {"top/a": os.urandom(500), "top/b": b"b" * 500})
    expected = contents(unpack(archive, "top", out, LIMITS))
    archives.shutil.rmtree(out)
    data = bytearray(archive.read_bytes())
    data[flip % len(data)] ^= 0x55
    archive.write_bytes(data[: cut % len(data)] if truncate else data)
    try:
        found = contents(unpack(archive, "top", out, LIMITS))
    except MlbenchError:
        assert not out.exists()
    else:
        archives.shutil.rmtree(out)
        assert set(found.values()) <= set(expected.values())
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_without_the_folder_that_was_asked_for(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x", {"other/a": b"1", "top": b"a file"})
    assert_refused(tmp_path / "in" / "x", "contains no folder 'top'")


def test_what_is_there_is_not_overwritten(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "x", GOOD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(MlbenchError, match="already exists; delete it"):
        unpack(tmp_path / "x", "top", tmp_path / "out", LIMITS)
    assert list(contents(tmp_path / "out")) == ["mine"]


def test_an_interruption_leaves_nothing_and_the_next_call_ends_well(
    write: Write, tmp_path: Path
) -> None:
    write(tmp_path / "x", GOOD)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "x", "top", tmp_path / "out", LIMITS, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / ".out.unpacking").mkdir()  # as a process leaves it that is killed
    (tmp_path / ".out.unpacking" / "half").touch()
    assert "half" not in contents(unpack(tmp_path / "x", "top", tmp_path / "out", LIMITS))
    assert not (tmp_path / ".out.unpacking").exists()


def test_modes_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as archive:
        info = tarfile.TarInfo("top/tool")
        info.mode = 0o6777
        archive.addfile(info)
    out = unpack(tmp_path / "x", "top", tmp_path / "out", LIMITS)
    assert stat.S_IMODE((out / "tool").stat().st_mode) & 0o7111 == 0
