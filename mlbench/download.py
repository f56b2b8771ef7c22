"""Fetch a file over the network: resumable, verified by SHA-256, and never half there."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import IO

from mlbench.errors import MlbenchError

Progress = Callable[[int, int | None], None]

TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20
_MEND = "or give a local file (--set backbone.weights=PATH)"


def fetch(url: str, destination: Path, sha256: str, progress: Progress | None = None) -> Path:
    """Download ``url`` to ``destination`` unless the right file is already there.

    An interrupted download stays beside the destination as ``NAME.part``, and the next call
    resumes it.

    Args:
        url: an https address, or an http one if ``sha256`` is complete.
        destination: the file to make; its folder must exist.
        sha256: the expected SHA-256 in lower-case hex, or a prefix of at least 8 digits.
        progress: called with the bytes so far and the size (None if the server does not say).

    Returns:
        ``destination``, verified.

    Raises:
        MlbenchError: the file cannot be fetched, or is not the expected one.
    """
    _check_pin(url, sha256)
    if destination.is_file() and file_sha256(destination).startswith(sha256):
        return destination
    part = destination.with_name(destination.name + ".part")
    try:
        _download(url, part, sha256, progress)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise MlbenchError(
            f"cannot fetch {destination.name} from {url} ({reason}); run again to go on, {_MEND}"
        ) from error
    _verify(url, part, sha256)
    return part.replace(destination)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _PinnedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that ``_check_pin`` allows."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_pin(newurl, self._sha256)
        except MlbenchError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_pin(url: str, sha256: str) -> None:
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise MlbenchError(
            f"cannot fetch {url}: '{sha256}' is no SHA-256; give 8 to 64 lower-case hex digits"
        )
    # A complete SHA-256 vouches for the bytes whoever carried them, so http will do; a short
    # prefix can be forged in minutes, so there https must vouch for the sender.
    if not url.startswith("https://") and not (url.startswith("http://") and len(sha256) == 64):
        raise MlbenchError(
            f"cannot fetch {url}: use an https address, or http with all 64 digits of the SHA-256"
        )


def _download(url: str, part: Path, sha256: str, progress: Progress | None) -> None:
    """Append to ``part`` what it lacks of ``url``; raise OSError if the connection drops."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        opener = urllib.request.build_opener(_PinnedRedirects(sha256))
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing; the checksum decides whether what is there is right
        raise
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        _save(response, part, start if resumed else 0, progress)


def _save(
    response: http.client.HTTPResponse, part: Path, start: int, progress: Progress | None
) -> None:
    total = None if response.length is None else start + response.length
    done = start
    with part.open("ab" if start else "wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection dropped after {done} of {total} bytes")


def _verify(url: str, part: Path, sha256: str) -> None:
    digest = file_sha256(part)
    if not digest.startswith(sha256):
        part.unlink()
        raise MlbenchError(
            f"{url} is not the expected file (SHA-256 {digest[:12]}, expected {sha256[:12]}); "
            f"it was removed; try again, {_MEND}"
        )
