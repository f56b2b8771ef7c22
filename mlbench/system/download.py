"""Fetch a file over the network: resumable, verified by its checksum, and never half there."""

from __future__ import annotations

import http.client
import os
import re
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, BinaryIO

from mlbench._version import __version__
from mlbench.errors import MlbenchError
from mlbench.progress import ByteProgress
from mlbench.system.files import file_digest
from mlbench.system.pace import Pace, Watch

Check = Callable[[str], None]

TIMEOUT_SECONDS = 30
PACE = Pace()
"""That a server must keep."""

_CHUNK_BYTES = 1 << 20
_MOST_UNPINNED = 16 << 30
"""Bytes of a file whose size is not published."""

_ATTEMPTS = 10
_MEND = "or use a local file (--set backbone.weights=PATH)"


@dataclass(frozen=True)
class Pin:
    """What is published of a file, so that it can be told from any other.

    Attributes:
        sha256: lower-case hex, or its first digits.
        md5: used only where no SHA-256 is published.
        size: bytes.
    """

    @property
    def most(self) -> int:
        """Bytes that the file may have."""
        return _MOST_UNPINNED if self.size is None else self.size

    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    def problem(self, path: Path) -> str | None:
        """Return how a file differs from the published one; None if it does not."""
        size = path.stat().st_size
        if size > self.most or self.size not in (None, size):
            return f"{size:,} bytes, expected {_expected(self)}"
        for name, algorithm, expected in (
            ("SHA-256", "sha256", self.sha256),
            ("MD5", "md5", self.md5),
        ):
            if expected is not None:
                found = file_digest(path, algorithm)
                same = found.startswith(expected)
                return None if same else f"{name} {found[:12]}, expected {expected[:12]}"
        return None


def fetch(url: str, destination: Path, sha256: str, progress: ByteProgress | None = None) -> Path:
    """Download published weights to ``destination`` unless the right file is already there.

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
    pin = Pin(sha256=sha256)
    if destination.is_file() and pin.problem(destination) is None:
        return destination
    part = _part(destination)
    try:
        _obtain(url, part, pin, lambda address: _check_pin(address, sha256), progress)
    except _FetchError as failure:
        raise MlbenchError(
            f"cannot fetch {destination.name} from {url} ({failure}); run the same command again "
            f"to resume, {_MEND}"
        ) from failure
    return part.replace(destination)


def fetch_published(
    urls: Sequence[str],
    destination: Path,
    pin: Pin,
    mend: str,
    progress: ByteProgress | None = None,
) -> Path:
    """Download a file from the first of several places that has it; resumed as by ``fetch``.

    Args:
        urls: https addresses of the same file, tried in turn (http too, of this machine itself).
        destination: the file to make, which must not exist; its folder must.
        pin: what the file must be.
        mend: ends the message if no place has it: what else to do.
        progress: called with the bytes so far and the size (None if it is not known).

    Returns:
        ``destination``, verified.

    Raises:
        MlbenchError: no place has it; says why for each.
    """
    part, failures = _part(destination), []
    for url in urls:
        try:
            _check_secure(url, url)
            _obtain(url, part, pin, lambda address, url=url: _check_secure(address, url), progress)
        except (_FetchError, MlbenchError) as failure:
            failures.append(f"{url} ({failure})")
        else:
            return part.replace(destination)
    raise MlbenchError(
        f"cannot fetch {destination.name} from {' or '.join(failures)}; run the same command "
        f"again to resume, {mend}"
    )


def _expected(pin: Pin) -> str:
    return f"at most {pin.most:,}" if pin.size is None else f"{pin.size:,}"


class _FetchError(Exception):
    """Why a file could not be had from one place."""


def _part(destination: Path) -> Path:
    return destination.with_name(destination.name + ".part")


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that ``check`` does not refuse."""

    def __init__(self, check: Check) -> None:
        self._check = check

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
            self._check(newurl)
        except MlbenchError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_pin(url: str, sha256: str) -> None:
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise MlbenchError(
            f"cannot fetch {url}: '{sha256}' is not a SHA-256; use 8 to 64 lower-case hex digits"
        )
    # A complete SHA-256 vouches for the bytes whoever carried them, so http will do; a short
    # prefix can be forged in minutes, so there https must vouch for the sender.
    if not url.startswith("https://") and not (url.startswith("http://") and len(sha256) == 64):
        raise MlbenchError(
            f"cannot fetch {url}: use an https address, or http with all 64 digits of the SHA-256"
        )


def _check_secure(url: str, origin: str) -> None:
    """Refuse what is not https; http of this machine leaves no network to be listened to."""
    here = all(
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        for parts in map(urllib.parse.urlsplit, (url, origin))
    )
    if not here and urllib.parse.urlsplit(url).scheme != "https":
        raise MlbenchError(f"{url} is not an https address")


def _obtain(url: str, part: Path, pin: Pin, check: Check, progress: ByteProgress | None) -> None:
    """Make ``part`` the published file.

    Raises:
        _FetchError: it cannot be had from there; what came over is kept unless it is wrong.
        MlbenchError: an address that ``check`` refuses.
    """
    resumed = _is_own(part)
    _complete(url, part, pin, check, progress)
    problem = pin.problem(part)
    if problem and resumed:  # the part of an earlier call may have been damaged, so from the start
        part.unlink()
        _complete(url, part, pin, check, progress)
        problem = pin.problem(part)
    if problem:
        part.unlink()
        raise _FetchError(f"it is not the expected file: {problem}; the download was deleted")


def _complete(url: str, part: Path, pin: Pin, check: Check, progress: ByteProgress | None) -> None:
    """Go on through dropped connections for as long as each brings the file further."""
    for left in reversed(range(_ATTEMPTS)):
        before = _size(part)
        try:
            _download(url, part, pin, check, progress)
            break
        except (OSError, http.client.HTTPException, ValueError) as error:  # of a senseless answer
            dropped = isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)
            if not left or not dropped or _size(part) <= before:
                raise _FetchError(_reason(error)) from error


def _size(path: Path) -> int:
    return path.lstat().st_size if os.path.lexists(path) else 0


def _is_own(part: Path) -> bool:
    """Tell whether there is a part to go on with; remove what somebody else may have put there.

    A link, also a hard one, would have another file written to.
    """
    if not os.path.lexists(part):
        return False
    status = part.lstat()
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return True
    try:
        part.unlink()
    except OSError as error:
        raise _FetchError(f"{part} cannot be replaced: {error.strerror}") from error
    return False


def _open_part(part: Path, *, further: bool) -> BinaryIO:
    """Open a part to write on, or anew; never through a link."""
    if not further:
        part.unlink(missing_ok=True)
    flags = os.O_APPEND if further else os.O_CREAT | os.O_EXCL
    return os.fdopen(os.open(part, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666), "ab")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return " ".join(f"{code}{reason}".split())


def _download(url: str, part: Path, pin: Pin, check: Check, progress: ByteProgress | None) -> None:
    """Append to ``part`` what it lacks of ``url``; raise OSError if the connection drops."""
    start = _size(part)
    headers = {"User-Agent": f"mlbench/{__version__}"}
    headers |= {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    with Watch(PACE) as watch:
        try:
            opener = watch.opener(_CheckedRedirects(check))
            with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                start = start if response.status == HTTPStatus.PARTIAL_CONTENT else 0
                _check_range(response, start)
                _save(response, part, start, pin, watch, progress)
        except urllib.error.HTTPError as error:
            error.close()
            if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # nothing is missing; the checksum decides whether what is there is right
            raise
        finally:
            _check_pace(watch)


def _check_pace(watch: Watch) -> None:
    if watch.cut:
        pace = watch.pace
        raise _FetchError(f"less than {pace.bytes:,} bytes came within {pace.seconds:g} s")


def _check_range(response: http.client.HTTPResponse, start: int) -> None:
    """Refuse another part of the file than was asked for."""
    given = response.headers.get("Content-Range", "")
    if start and given and not given.startswith(f"bytes {start}-"):
        raise _FetchError(f"asked for bytes from {start:,} on, the server sends '{given}'")


def _save(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    pin: Pin,
    watch: Watch,
    progress: ByteProgress | None,
) -> None:
    total = None if response.length is None else start + response.length
    if total is not None and (total > pin.most or pin.size not in (None, total)):
        raise _FetchError(f"the server has {total:,} bytes, expected {_expected(pin)}")
    done = start
    with _open_part(part, further=bool(start)) as file:
        while chunk := response.read1(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            watch.done += len(chunk)
            if done > pin.most:
                break
            if progress:
                progress(done, total or pin.size)
    if total is not None and done < total:
        raise ConnectionError(f"the connection dropped after {done} of {total} bytes")
