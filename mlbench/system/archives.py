"""Unpack a downloaded archive: only files, only below its folder, whole or not at all."""

from __future__ import annotations

import lzma
import re
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Literal

from mlbench.errors import MlbenchError, printable
from mlbench.progress import ByteProgress
from mlbench.system.regular import open_regular

_CHUNK_BYTES = 1 << 20
_PADDING_BYTES = 64 << 20
_ARCHIVE_BYTES = 1 << 40
_DESCRIPTION_BYTES = 1 << 16
"""Of a tar's entry for a long name or attributes; no system has paths as long."""
_DESCRIPTIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_SPARSE = tarfile.GNUTYPE_SPARSE
_ENTRY_BYTES, _DIRECTORY_BYTES = 1024, 5
"""Of an entry in a zip's directory, more than paths need; which field is the directory's size."""
_UNPACKING = ".unpacking"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_UNREADABLE = (*_DAMAGED, NotImplementedError, RuntimeError, OSError)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most, by what it declares: against bombs."""

    files: int
    bytes: int


def unpack(
    archive: Path, top: str, destination: Path, limits: Limits, progress: ByteProgress | None = None
) -> Path:
    """Unpack the folder ``top`` of a tar or zip archive as ``destination``.

    It is unpacked beside the destination under a temporary name, which is removed if that fails.
    What lies outside of ``top`` is checked, but left out.

    Args:
        archive: tar (also compressed) or zip.
        top: a folder at the top of the archive.
        destination: the folder to make; its parent is made if need be.
        limits: of everything in the archive.
        progress: called with the number of files so far, and None as their total is not known.

    Returns:
        ``destination``.

    Raises:
        MlbenchError: not an archive, damaged or encrypted; a name that is absolute, leads out of
            the folder or is there twice; a link or device; more than ``limits``; no ``top`` in it;
            ``destination`` exists, or cannot be written.
    """
    if destination.exists():
        raise MlbenchError(f"{destination} already exists; delete it, so that it is unpacked again")
    with _temporary(destination, archive) as folder:
        _unpack(archive, top, folder, limits, progress)
        if not any(folder.iterdir()):
            raise _refusal(archive, f"it contains no folder '{top}'")
        folder.rename(destination)
    return destination


@contextmanager
def _temporary(destination: Path, archive: Path) -> Iterator[Path]:
    folder = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}{_UNPACKING}")
    try:
        _remove_killed(destination)
        folder.mkdir(parents=True)
        yield folder
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.partition("\n")[0]  # tarfile lists what each of its readers says
        raise MlbenchError(
            f"cannot unpack {archive} to {destination} ({reason}); make room there, or delete the "
            "archive, so that it is fetched again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_killed(destination: Path) -> None:
    """Remove what was unpacked by those that were killed; links of such a name lead nowhere."""
    if destination.parent.is_dir():
        for path in destination.parent.iterdir():
            if path.name.startswith(f".{destination.name}.") and path.name.endswith(_UNPACKING):
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; ``open`` reads a file's content."""

    name: str
    kind: Literal["file", "folder", "other"]
    size: int
    open: Callable[[], IO[bytes]]


def _unpack(
    archive: Path, top: str, folder: Path, limits: Limits, progress: ByteProgress | None
) -> None:
    seen: set[tuple[str, ...]] = set()
    count = total = written = 0
    for member in _members(archive, limits):
        parts = _safe_parts(archive, member)
        if member.size < 0:
            raise _refusal(archive, f"'{member.name}' has a size below 0")
        count, total = count + 1, total + member.size
        if count > limits.files or total > limits.bytes:
            raise _refusal(
                archive,
                f"it contains more than {limits.files:,} entries or {limits.bytes:,} bytes",
            )
        if member.kind == "folder":
            continue
        if parts in seen:
            raise _refusal(archive, f"it contains '{member.name}' twice")
        seen.add(parts)
        if parts[0] == top and len(parts) > 1:
            _write(archive, member, folder.joinpath(*parts[1:]))
            written += 1
            if progress:
                progress(written, None)


def _write(archive: Path, member: _Member, path: Path) -> None:
    """Write a file that is not there yet, of exactly the size that the archive declares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with member.open() as source, path.open("xb") as file:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                break
            file.write(chunk)
    if left:
        raise _refusal(archive, f"'{member.name}' does not have the declared size")


def _safe_parts(archive: Path, member: _Member) -> tuple[str, ...]:
    """Return a member's path in parts; MlbenchError if it is no file or folder below the top."""
    name = member.name
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
        raise _refusal(archive, f"'{name}' leads out of its folder")
    if "\\" in name or not name.isprintable() or (not parts and member.kind != "folder"):
        raise _refusal(archive, f"{name!r} is not a valid file name")
    if member.kind == "other":
        raise _refusal(archive, f"'{name}' is a link or a device, or encrypted")
    return parts


def _refusal(archive: Path, problem: str) -> MlbenchError:
    return MlbenchError(
        f"{archive} was not unpacked: {printable(problem)}; "
        "remove it and get it from a source you trust"
    )


def _members(archive: Path, limits: Limits) -> Iterator[_Member]:
    with open_regular(archive, limit=_ARCHIVE_BYTES) as content:
        if zipfile.is_zipfile(content):
            _check_directory(archive, content, limits)
            yield from _zip_members(content)
        else:
            content.seek(0)
            yield from _tar_members(archive, content)


def _check_directory(archive: Path, content: BinaryIO, limits: Limits) -> None:
    """Refuse a zip of too many entries before zipfile reads them all."""
    end = zipfile._EndRecData(content)  # type: ignore[attr-defined]  # what zipfile itself goes by
    if end and end[_DIRECTORY_BYTES] > limits.files * _ENTRY_BYTES:
        raise _refusal(archive, f"it contains more than {limits.files:,} entries")


def _zip_members(content: BinaryIO) -> Iterator[_Member]:
    with zipfile.ZipFile(content) as file:
        for info in file.infolist():
            kind: Literal["file", "folder", "other"] = "folder" if info.is_dir() else "file"
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                kind = "other"
            yield _Member(info.filename, kind, info.file_size, lambda info=info: file.open(info))


class _ExcessiveError(Exception):
    """An entry whose description alone is more than any file needs."""


class _BoundedInfo(tarfile.TarInfo):
    """An entry that is refused before its long name, or its map of holes, is read."""

    def _proc_member(self, tarfile: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIPTIONS and not 0 <= self.size <= _DESCRIPTION_BYTES:
            raise _ExcessiveError(f"it describes an entry with {self.size:,} bytes")
        if self.type == _SPARSE:
            raise _ExcessiveError(f"'{self.name}' is a file with holes")
        return super()._proc_member(tarfile)  # type: ignore[misc]  # to be overridden, it says

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise _ExcessiveError(f"'{self.name}' is a file with holes")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10


def _tar_members(archive: Path, content: BinaryIO) -> Iterator[_Member]:
    try:
        with tarfile.open(fileobj=content, mode="r:*", tarinfo=_BoundedInfo) as file:
            for info in file:
                kind: Literal["file", "folder", "other"] = "folder" if info.isdir() else "other"
                if info.isreg():
                    kind = "file"
                yield _Member(info.name, kind, info.size, lambda info=info: _content(file, info))
            _check_end(file)
    except _ExcessiveError as error:
        raise _refusal(archive, str(error)) from error


def _check_end(file: tarfile.TarFile) -> None:
    """Read on to the checksum behind the last file, which tarfile itself never reaches."""
    assert file.fileobj is not None, "open"
    for _ in range(_PADDING_BYTES // _CHUNK_BYTES):
        if not file.fileobj.read(_CHUNK_BYTES):
            return
    raise tarfile.ReadError("much follows its last file")


def _content(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(info)
    assert content is not None, "only asked for regular files"
    return content
