"""A web server on this machine that misbehaves in every way a download must survive."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Page:
    """What a path answers.

    Attributes:
        body: the file.
        drops: after how many bytes of each answer in turn the connection ends; whole afterwards.
        ranges: whether parts can be asked for.
        status: other than 200: nothing but that.
        location: where a redirect leads.
        declared: a length other than that of the body.
        shifted: by how many bytes a part starts too early.
        delay: seconds before anything is answered.
        lengths: whether the length is told.
        raw: all that is sent, headers included, again and again if it is dripped.
        drip: seconds after each byte (of ``raw``: each time).
    """

    body: bytes = b""
    drops: tuple[int, ...] = ()
    ranges: bool = True
    status: int = 200
    location: str = ""
    declared: int | None = None
    shifted: int = 0
    delay: float = 0.0
    lengths: bool = True
    raw: bytes = b""
    drip: float = 0.0


class Server(ThreadingHTTPServer):
    """Serves ``pages`` and keeps what was asked for: path and range."""

    daemon_threads = True

    def __init__(self, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"
        self.pages: dict[str, Page] = {}
        self.requested: list[tuple[str, str | None]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients of these tests hang up on purpose."""

    def add(self, path: str, page: Page) -> str:
        """Answer ``path`` with a page; return its address."""
        self.pages[path] = page
        return f"{self.scheme}://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        page = server.pages.get(self.path, Page(status=404))
        wanted = self.headers["Range"]
        server.requested.append((self.path, wanted))
        time.sleep(page.delay)
        if page.raw:
            self.close_connection = True
            self._drip([page.raw] * (1000 if page.drip else 1), page.drip)
        elif page.location or page.status != 200:
            self._only(page)
        else:
            self._body(page, int(wanted[6:-1]) if wanted and page.ranges else 0)

    def _only(self, page: Page) -> None:
        self.send_response(302 if page.location else page.status)
        if page.location:
            self.send_header("Location", page.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, page: Page, start: int) -> None:
        if start and start >= len(page.body):
            self.send_error(416)
            return
        part = page.body[max(0, start - page.shifted) :]
        self.send_response(206 if start else 200)
        if start:
            first, last = start - page.shifted, len(page.body) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(page.body)}")
        if page.lengths:
            self.send_header("Content-Length", str(page.declared or len(part)))
        self.end_headers()
        if page.drops:
            part, page.drops = part[: page.drops[0]], page.drops[1:]
        if page.drip:
            self._drip([part[i : i + 1] for i in range(len(part))], page.drip)
        else:
            self.wfile.write(part)

    def _drip(self, parts: list[bytes], seconds: float) -> None:
        for part in parts:
            self.wfile.write(part)
            time.sleep(seconds)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Server]:
    """Serve on this machine; https with a PEM file of a certificate and its key."""
    with Server(certificate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
