from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlbench.download import fetch, file_sha256
from mlbench.errors import MlbenchError

PAYLOAD = bytes(range(256)) * 9000  # more than two read chunks
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(ThreadingHTTPServer):
    drop_after: int | None = None
    ranges = True
    requested: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers["Range"]
        server.requested.append(wanted)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/weights.pth")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and server.ranges else 0
        if start >= len(PAYLOAD):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(PAYLOAD) - start))
        self.end_headers()
        self.wfile.write(PAYLOAD[start : server.drop_after])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.requested = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetches_verifies_and_reports_progress(server: Server, tmp_path: Path):
    seen = []
    destination = tmp_path / "weights.pth"
    url = server.url + "/weights.pth"
    assert fetch(url, destination, SHA256, lambda *p: seen.append(p)) == destination
    assert destination.read_bytes() == PAYLOAD
    assert list(tmp_path.iterdir()) == [destination]
    assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) > 1


def test_a_right_file_is_not_fetched_again(server: Server, tmp_path: Path):
    destination = tmp_path / "weights.pth"
    destination.write_bytes(PAYLOAD)
    assert fetch(server.url + "/weights.pth", destination, SHA256) == destination
    # A prefix will do over https; no request is made, or this address would fail.
    assert fetch("https://127.0.0.1:1/weights.pth", destination, SHA256[:8]) == destination
    assert server.requested == []


def test_a_wrong_file_is_replaced(server: Server, tmp_path: Path):
    destination = tmp_path / "weights.pth"
    destination.write_bytes(b"stale")
    fetch(server.url + "/weights.pth", destination, SHA256)
    assert destination.read_bytes() == PAYLOAD


@pytest.mark.parametrize("dropped_at", [1, 1 << 20, len(PAYLOAD) - 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_resumes_after_a_dropped_connection(
    server: Server, tmp_path: Path, dropped_at: int, ranges: bool
):
    server.drop_after, server.ranges = dropped_at, ranges
    destination, url = tmp_path / "weights.pth", server.url + "/weights.pth"
    with pytest.raises(MlbenchError, match=f"dropped after {dropped_at} of {len(PAYLOAD)} bytes"):
        fetch(url, destination, SHA256)
    assert not destination.exists()
    server.drop_after = None
    fetch(url, destination, SHA256)
    assert destination.read_bytes() == PAYLOAD
    assert server.requested == [None, f"bytes={dropped_at}-"]
    assert list(tmp_path.iterdir()) == [destination]


def test_a_complete_part_needs_only_its_checksum(server: Server, tmp_path: Path):
    (tmp_path / "weights.pth.part").write_bytes(PAYLOAD)
    fetch(server.url + "/weights.pth", tmp_path / "weights.pth", SHA256)
    assert (tmp_path / "weights.pth").read_bytes() == PAYLOAD


@pytest.mark.parametrize("stale", [b"", b"corrupt", PAYLOAD + b"more"])
def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path, stale: bytes):
    (tmp_path / "weights.pth.part").write_bytes(stale)
    wrong = SHA256 if stale else "0" * 64
    with pytest.raises(MlbenchError, match=r"not the expected file.*backbone\.weights=PATH") as e:
        fetch(server.url + "/weights.pth", tmp_path / "weights.pth", wrong)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_not_found(server: Server, tmp_path: Path):
    url = server.url + "/absent.pth"
    with pytest.raises(MlbenchError, match=r"cannot fetch w\.pth from .*Not Found") as error:
        fetch(url, tmp_path / "w.pth", SHA256)
    assert url in str(error.value)
    assert "--set backbone.weights=PATH" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_connection_refused(tmp_path: Path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(MlbenchError, match="Connection refused"):
        fetch(f"http://127.0.0.1:{port}/w.pth", tmp_path / "w.pth", SHA256)


def test_a_redirect_cannot_leave_the_web(server: Server, tmp_path: Path):
    with pytest.raises(MlbenchError, match="use an https address"):
        fetch(server.url + "/moved", tmp_path / "w.pth", SHA256)


@pytest.mark.parametrize(
    ("url", "sha256", "problem"),
    [
        ("https://example.org/w.pth", SHA256[:7], "is no SHA-256"),
        ("https://example.org/w.pth", SHA256.upper(), "is no SHA-256"),
        ("http://example.org/w.pth", SHA256[:63], "all 64 digits"),
        ("file:///etc/hostname", SHA256, "use an https address"),
    ],
)
def test_unpinned_downloads_are_refused(tmp_path: Path, url: str, sha256: str, problem: str):
    with pytest.raises(MlbenchError, match=problem):
        fetch(url, tmp_path / "w.pth", sha256)


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "f").write_bytes(PAYLOAD)
    assert file_sha256(tmp_path / "f") == SHA256
