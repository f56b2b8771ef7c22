"""Connections that bring too little are cut, whatever a server sends to keep them open."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Pace:
    """What a server must bring at least: so many bytes of a file in each span of so many seconds.

    Time spent on looking up names, greetings, redirects and headers counts as well.
    """

    bytes: int = 600_000
    seconds: float = 60.0


class Watch:
    """Cuts the connections of its opener if, in the block, they fall behind a pace.

    Args:
        pace: to be kept.

    Attributes:
        done: bytes of the file so far, to be counted by the reader.
        cut: whether it has cut them.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace, self.done, self.cut = pace, 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    def opener(self, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
        """Return an opener of http and https addresses whose connections are watched."""
        watch = self

        class Http(urllib.request.HTTPHandler):
            def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(watch.connection(http.client.HTTPConnection), req)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(watch.connection(http.client.HTTPSConnection), req)

        return urllib.request.build_opener(Http, Https, *handlers)

    def connection(self, kind: type[http.client.HTTPConnection]) -> Any:
        """Return a maker of connections that this watch can cut, from their first byte on."""

        def make(*args: Any, **kwargs: Any) -> http.client.HTTPConnection:
            made: Any = kind(*args, **kwargs)
            made._create_connection = self._connect
            return made

        return make

    def _connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        made = socket.create_connection(*args, **kwargs)
        self._sockets.append(made.dup())  # of the same connection; TLS takes the first one away
        return made

    def _look(self) -> None:
        before = 0
        while not self._over.wait(self.pace.seconds):
            if self.done - before < self.pace.bytes:
                self.cut = True
                for each in list(self._sockets):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
            before = self.done
