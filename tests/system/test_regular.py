import os
import socket
import threading
from pathlib import Path

import pytest

from mlbench.errors import MlbenchError
from mlbench.system.regular import IrregularFileError, is_regular, open_regular, read_regular


def test_opens_a_file_and_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345678")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name, limit=8) as file:
            assert file.read() == b"12345678"
        assert read_regular(tmp_path / name, limit=8) == b"12345678"
        assert is_regular(tmp_path / name)


def test_a_byte_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123456789")
    with pytest.raises(MlbenchError, match="file: more than 8 bytes, the most that are read;"):
        open_regular(tmp_path / "file", limit=8)


def test_what_grows_while_it_is_read_ends_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    opened = open_regular(tmp_path / "file", limit=8)
    (tmp_path / "file").write_bytes(bytes(100))
    monkeypatch.setattr("mlbench.system.regular.open_regular", lambda *_, **__: opened)
    with pytest.raises(MlbenchError, match="more than 8 bytes"):
        read_regular(tmp_path / "file", limit=8)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, linked: bool
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    path = Path("/dev/zero") if kind == "a device" else tmp_path / "odd"
    if kind == "a folder":
        path.mkdir()
    if kind == "a named pipe":
        os.mkfifo(path)
    if kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("odd")
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    with pytest.raises(IrregularFileError, match=f"{path}: {kind}, not a regular file;") as caught:
        open_regular(path, limit=8)
    assert caught.value.reason == f"{kind}, not a regular file"
    assert not is_regular(path)


def test_a_pipe_that_takes_the_files_place_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    caught: list[MlbenchError] = []

    def attempt() -> None:
        try:
            open_regular(path, limit=8)
        except MlbenchError as error:
            caught.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lambda _: status)
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(10)
    assert [str(error) for error in caught] == [
        f"{path}: a named pipe, not a regular file; remove it or put a regular file there"
    ]


@pytest.mark.parametrize("name", ["no\0file", "missing", "x" * 300])
def test_names_without_a_file_are_an_os_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"no file can have|No such file|name too long"):
        open_regular(tmp_path / name, limit=8)
    assert not is_regular(tmp_path / name)
