from __future__ import annotations

import hashlib
import http.server
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.webserver import Page, Server, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbench.errors import MlbenchError
from mlbench.system import download
from mlbench.system.download import Pin, fetch, fetch_published
from mlbench.system.files import file_sha256

PAYLOAD = bytes(range(256)) * 9000  # more than two read chunks
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()
PIN = Pin(sha256=SHA256, size=len(PAYLOAD))
WRONG = b"x" + PAYLOAD[1:]
MEND = "or ask somebody"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return server.add("/weights.pth", Page(PAYLOAD))


def get(urls: list[str], folder: Path, pin: Pin = PIN) -> Path:
    return fetch_published(urls, folder / "file.tgz", pin, MEND)


def assert_refused(urls: list[str], folder: Path, message: str, pin: Pin = PIN) -> None:
    with pytest.raises(MlbenchError, match=message) as error:
        get(urls, folder, pin)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(f"run the same command again to resume, {MEND}")
    assert not (folder / "file.tgz").exists()


class TestWeights:
    def test_fetches_verifies_and_reports_progress(self, url: str, tmp_path: Path):
        seen: list[Any] = []
        destination = tmp_path / "weights.pth"
        assert fetch(url, destination, SHA256, lambda *p: seen.append(p)) == destination
        assert destination.read_bytes() == PAYLOAD
        assert list(tmp_path.iterdir()) == [destination]
        assert seen[-1] == (len(PAYLOAD), len(PAYLOAD))
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert len(seen) > 1

    def test_a_right_file_is_not_fetched_again(self, server: Server, url: str, tmp_path: Path):
        destination = tmp_path / "weights.pth"
        destination.write_bytes(PAYLOAD)
        assert fetch(url, destination, SHA256) == destination
        # A prefix will do over https; no request is made, or this address would fail.
        assert fetch("https://127.0.0.1:1/weights.pth", destination, SHA256[:8]) == destination
        assert server.requested == []

    def test_a_wrong_file_is_replaced(self, url: str, tmp_path: Path):
        destination = tmp_path / "weights.pth"
        destination.write_bytes(b"stale")
        fetch(url, destination, SHA256)
        assert destination.read_bytes() == PAYLOAD

    def test_a_wrong_checksum_leaves_nothing_behind(self, url: str, tmp_path: Path):
        message = r"not the expected file: SHA-256 .*backbone\.weights=PATH"
        with pytest.raises(MlbenchError, match=message) as error:
            fetch(url, tmp_path / "weights.pth", "0" * 64)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_not_found(self, server: Server, tmp_path: Path):
        absent = server.add("/absent.pth", Page(status=404))
        with pytest.raises(MlbenchError, match=r"cannot fetch w\.pth from .*404 Not Found") as e:
            fetch(absent, tmp_path / "w.pth", SHA256)
        assert absent in str(e.value)
        assert "--set backbone.weights=PATH" in str(e.value)
        assert list(tmp_path.iterdir()) == []

    def test_connection_refused(self, tmp_path: Path):
        handler = http.server.BaseHTTPRequestHandler
        with http.server.HTTPServer(("127.0.0.1", 0), handler) as closed:
            port = closed.server_port
        with pytest.raises(MlbenchError, match="Connection refused"):
            fetch(f"http://127.0.0.1:{port}/w.pth", tmp_path / "w.pth", SHA256)

    def test_a_redirect_cannot_leave_the_web(self, server: Server, tmp_path: Path):
        moved = server.add("/moved", Page(location="ftp://127.0.0.1/weights.pth"))
        with pytest.raises(MlbenchError, match="use an https address"):
            fetch(moved, tmp_path / "w.pth", SHA256)

    @pytest.mark.parametrize(
        ("url", "sha256", "problem"),
        [
            ("https://example.org/w.pth", SHA256[:7], "is not a SHA-256"),
            ("https://example.org/w.pth", SHA256.upper(), "is not a SHA-256"),
            ("http://example.org/w.pth", SHA256[:63], "all 64 digits"),
            ("file:///etc/hostname", SHA256, "use an https address"),
        ],
    )
    def test_unpinned_downloads_are_refused(
        self, tmp_path: Path, url: str, sha256: str, problem: str
    ):
        with pytest.raises(MlbenchError, match=problem):
            fetch(url, tmp_path / "w.pth", sha256)


class TestResuming:
    @pytest.mark.parametrize("dropped_at", [1, 1 << 20, len(PAYLOAD) - 1])
    def test_one_call_goes_on_after_a_dropped_connection(
        self, server: Server, tmp_path: Path, dropped_at: int
    ):
        url = server.add("/file", Page(PAYLOAD, drops=(dropped_at,)))
        assert get([url], tmp_path).read_bytes() == PAYLOAD
        assert [wanted for _, wanted in server.requested] == [None, f"bytes={dropped_at}-"]
        assert [path.name for path in tmp_path.iterdir()] == ["file.tgz"]

    def test_the_next_call_goes_on_where_one_was_stopped(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        url = server.add("/file", Page(PAYLOAD))

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch_published([url], tmp_path / "file.tgz", PIN, MEND, stop)
        kept = (tmp_path / "file.tgz.part").stat().st_size
        assert 0 < kept < len(PAYLOAD)
        assert get([url], tmp_path).read_bytes() == PAYLOAD
        assert server.requested[-1] == ("/file", f"bytes={kept}-")

    def test_a_server_that_cannot_send_parts_starts_over(self, server: Server, tmp_path: Path):
        url = server.add("/file", Page(PAYLOAD, ranges=False))
        (tmp_path / "file.tgz.part").write_bytes(PAYLOAD[:1000])
        assert get([url], tmp_path).read_bytes() == PAYLOAD
        assert server.requested == [("/file", "bytes=1000-")]

    def test_a_server_that_never_gets_further_is_given_up(self, server: Server, tmp_path: Path):
        url = server.add("/file", Page(PAYLOAD, ranges=False, drops=(1000,) * 99))
        assert_refused([url], tmp_path, f"dropped after 1000 of {len(PAYLOAD)} bytes")
        assert len(server.requested) == 2

    def test_connections_that_drop_again_and_again_are_given_up_at_last(
        self, server: Server, tmp_path: Path
    ):
        url = server.add("/file", Page(PAYLOAD, drops=(1000,) * 99))
        assert_refused([url], tmp_path, "dropped after 10000 of")
        assert (tmp_path / "file.tgz.part").read_bytes() == PAYLOAD[:10_000]

    def test_a_complete_part_needs_only_its_checksum(self, server: Server, tmp_path: Path):
        url = server.add("/file", Page(PAYLOAD))
        (tmp_path / "file.tgz.part").write_bytes(PAYLOAD)
        assert get([url], tmp_path).read_bytes() == PAYLOAD

    @pytest.mark.parametrize("stale", [b"corrupt", PAYLOAD + b"more", WRONG])
    def test_a_damaged_part_is_fetched_from_the_start(
        self, server: Server, tmp_path: Path, stale: bytes
    ):
        url = server.add("/file", Page(PAYLOAD))
        (tmp_path / "file.tgz.part").write_bytes(stale)
        assert get([url], tmp_path).read_bytes() == PAYLOAD
        assert server.requested[-1] == ("/file", None)

    def test_another_part_than_asked_for_is_refused(self, server: Server, tmp_path: Path):
        url = server.add("/file", Page(PAYLOAD, shifted=5))
        (tmp_path / "file.tgz.part").write_bytes(PAYLOAD[:1000])
        assert_refused([url], tmp_path, "asked for bytes from 1,000 on, the server sends 'bytes 99")

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        body=st.binary(min_size=1, max_size=400),
        drops=st.lists(st.integers(1, 100), max_size=6),
        ranges=st.booleans(),
        lengths=st.booleans(),
        part=st.one_of(st.none(), st.binary(max_size=500)),
    )
    def test_whatever_happens_the_file_is_right_or_absent(
        self, server: Server, tmp_path: Path, body, drops, ranges, lengths, part
    ):
        page = Page(body, drops=tuple(drops), ranges=ranges, lengths=lengths)
        url = server.add("/any", page)
        pin = Pin(sha256=hashlib.sha256(body).hexdigest(), size=len(body))
        destination = tmp_path / "any"
        destination.unlink(missing_ok=True)
        if part is not None:
            (tmp_path / "any.part").write_bytes(part)
        try:
            fetch_published([url], destination, pin, MEND)
        except MlbenchError:
            assert not destination.exists()
            page.drops = ()
            fetch_published([url], destination, pin, MEND)  # the second call always ends well
        assert destination.read_bytes() == body
        assert not (tmp_path / "any.part").exists()


class TestMirrors:
    def test_the_next_is_tried_for_every_kind_of_failure(self, server: Server, tmp_path: Path):
        bad = [
            server.add("/404", Page(status=404)),
            server.add("/500", Page(status=500)),
            server.add("/corrupt", Page(WRONG)),
            server.add("/login", Page(b"<html>please log in</html>")),
            server.add("/endless", Page(PAYLOAD * 2, lengths=False)),
            server.add("/http", Page(location="http://example.org/file")),
            "http://example.org/file",
            server.add("/drops", Page(PAYLOAD, drops=(1000, 0))),
        ]
        good = server.add("/good", Page(PAYLOAD))
        assert get([*bad, good], tmp_path).read_bytes() == PAYLOAD
        assert server.requested[-1] == ("/good", "bytes=1000-")

    def test_all_failures_are_in_one_line(self, server: Server, tmp_path: Path):
        urls = [server.add(f"/{status}", Page(status=status)) for status in (404, 500)]
        assert_refused(urls, tmp_path, "/404 .404 Not Found. or .*/500 .500 Internal Server Error")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("page", "message"),
        [
            (Page(WRONG), r"not the expected file: SHA-256 .*; the download was deleted"),
            (Page(PAYLOAD[:-1]), "the server has 2,303,999 bytes, expected 2,304,000"),
            (Page(PAYLOAD, declared=len(PAYLOAD) + 9), "the server has 2,304,009 bytes"),
            (Page(PAYLOAD[:-1], declared=len(PAYLOAD)), "2,303,999 bytes, expected 2,304,000"),
            (Page(PAYLOAD, declared=len(PAYLOAD) - 9), "the server has 2,303,991 bytes"),
            (Page(PAYLOAD[:-1], lengths=False), "2,303,999 bytes, expected 2,304,000"),
            (Page(b""), "the server has 0 bytes"),
        ],
    )
    def test_wrong_contents_and_lengths(
        self, server: Server, tmp_path: Path, page: Page, message: str
    ):
        assert_refused([server.add("/file", page)], tmp_path, message)

    def test_a_silent_server(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.05)
        assert_refused([server.add("/file", Page(PAYLOAD, delay=0.3))], tmp_path, "timed out")

    @pytest.mark.parametrize(
        "location", ["http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/hostname"]
    )
    def test_a_redirect_away_from_https_is_refused(
        self, server: Server, tmp_path: Path, location: str
    ):
        url = server.add("/moved", Page(location=location))
        assert_refused([url], tmp_path, "is not an https address|Redirection to .* is not allowed")

    def test_a_redirect_to_the_file_is_followed(self, server: Server, tmp_path: Path):
        good = server.add("/good", Page(PAYLOAD))
        assert get([server.add("/moved", Page(location=good))], tmp_path).read_bytes() == PAYLOAD

    def test_an_https_address_may_not_lead_to_this_machine(self):
        with pytest.raises(MlbenchError, match="not an https address"):
            download._check_secure("http://127.0.0.1/x", "https://example.org/x")

    @pytest.mark.parametrize("url", ["http://example.org/f", "ftp://a/f", "file:///etc/hostname"])
    def test_only_https_is_asked(self, tmp_path: Path, url: str):
        assert_refused([url], tmp_path, "is not an https address")

    def test_an_md5_will_do_where_no_sha256_is_published(self, server: Server, tmp_path: Path):
        pin = Pin(md5=hashlib.md5(PAYLOAD).hexdigest())
        url = server.add("/file", Page(PAYLOAD))
        assert get([url], tmp_path, pin).read_bytes() == PAYLOAD
        (tmp_path / "file.tgz").unlink()
        assert_refused([server.add("/bad", Page(WRONG))], tmp_path, "MD5 .*, expected", pin)

    def test_a_folder_that_cannot_be_written(self, server: Server, tmp_path: Path):
        url = server.add("/file", Page(PAYLOAD))
        assert_refused([url], tmp_path / "none", "No such file or directory")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine that nobody trusts, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext"
    files = ["subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path.with_suffix(".crt")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


class TestHttps:
    def test_a_certificate_that_nobody_trusts_is_refused(self, certificate: Path, tmp_path: Path):
        with serving(certificate) as server:
            assert_refused([server.add("/f", Page(PAYLOAD))], tmp_path, "CERTIFICATE_VERIFY_FAILED")

    def test_with_a_trusted_one(
        self, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        plain = server.add("/f", Page(PAYLOAD))
        with serving(certificate) as secure:
            # Never from https to http, not even to that of this machine.
            moved = secure.add("/moved", Page(location=plain))
            assert_refused([moved], tmp_path, "is not an https address")
            url = secure.add("/f", Page(PAYLOAD, drops=(1000,)))
            assert get([moved, url], tmp_path).read_bytes() == PAYLOAD
        assert server.requested == []


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path):
    (tmp_path / "f").write_bytes(PAYLOAD)
    assert file_sha256(tmp_path / "f") == SHA256
