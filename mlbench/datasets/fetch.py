"""Bring a public data set into the data root: download or recognise, verify, unpack."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlbench.datasets.public import PublicSource, SourceFile
from mlbench.errors import MlbenchError
from mlbench.progress import FileProgress
from mlbench.system.archives import unpack
from mlbench.system.download import fetch_published
from mlbench.system.files import atomic_file, file_sha256
from mlbench.system.regular import open_regular

Say = Callable[[str], None]


def downloads(source: PublicSource, root: Path) -> Path:
    """Return the folder in the data root for the published files, fetched or put there by hand."""
    return root / "downloads" / source.name


def fetch_source(source: PublicSource, root: Path, say: Say, progress: FileProgress) -> None:
    """Bring what is missing of a data set into the data root; may be interrupted and repeated.

    Args:
        source: the data set, of which something is missing.
        root: the data root.
        say: called with lines on what was done.
        progress: called with what is done, how much of it, and the whole (None if not known).

    Raises:
        MlbenchError: a file cannot be fetched, is not the published one or must be got by hand, an
            archive is not safe to unpack, or the data root cannot be written.
    """
    missing = [file for file in source.files if not (root / file.target).exists()]
    if not missing:
        targets = " and ".join(str(root / file.target) for file in source.files)
        raise MlbenchError(
            f"{targets} exists but is incomplete; delete it and run this command again"
        )
    folder = downloads(source, root)
    with _alone(source, folder):
        packed = {file: _published(source, file, folder, say, progress) for file in missing}
        by_hand = [file.name for file, path in packed.items() if path is None]
        if by_hand:
            raise MlbenchError(
                f"{source.name}: {' and '.join(by_hand)} must be downloaded manually: "
                f"{source.by_hand}; save them in {folder} and run this command again"
            )
        for file, path in packed.items():
            if path is not None:
                _install(source, file, path, root / file.target, progress)
    say(f"{folder} is no longer needed and may be deleted")


@contextmanager
def _alone(source: PublicSource, folder: Path) -> Iterator[None]:
    """Keep a second process from writing the same files; ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise MlbenchError(
            f"another mlbench is fetching {source.name} into {folder}; wait for it to finish"
        ) from error
    except OSError as error:
        raise MlbenchError(
            f"cannot use {error.filename or folder}: {error.strerror or error}; change its "
            "permissions, or set another data root with --data-root DIR"
        ) from error


def _published(
    source: PublicSource, file: SourceFile, folder: Path, say: Say, progress: FileProgress
) -> Path | None:
    """Return the verified published file; None if it must be got by hand and is not there."""
    path = next((p for p in sorted(folder.rglob(file.name)) if p.is_file()), None)
    if path is None and not file.urls:
        return None
    if path is None:
        path = fetch_published(
            file.urls,
            folder / file.name,
            file.pin,
            f"or download it manually: {source.by_hand}; and save it in {folder}",
            lambda done, size: progress(f"fetching {file.name}", done, size),
        )
    else:
        _check_given(file, path)
    _say_checksum(file, path, say)
    return path


def _check_given(file: SourceFile, path: Path) -> None:
    problem = file.pin.problem(path)
    if problem:
        raise MlbenchError(
            f"{path} is not the published {file.name} ({problem}); replace it"
            + (", or delete it, so that it is fetched again" if file.urls else "")
        )


def _say_checksum(file: SourceFile, path: Path, say: Say) -> None:
    if file.pin.sha256:
        say(f"{file.name}: SHA-256 as published")
    elif file.pin.md5:
        say(f"{file.name}: MD5 as published; no SHA-256 is, the one found is {file_sha256(path)}")
    else:
        say(f"{file.name}: no checksum is published; SHA-256 found: {file_sha256(path)}")


def _install(
    source: PublicSource, file: SourceFile, path: Path, target: Path, progress: FileProgress
) -> None:
    """Make the target of a published file, whole or not at all."""
    if file.top:
        unpack(
            path,
            file.top,
            target,
            source.limits,
            lambda done, total: progress(f"unpacking {file.name}", done, total),
        )
        return
    with open_regular(path, limit=source.limits.bytes) as content, atomic_file(target) as copy:
        shutil.copyfileobj(content, copy)
