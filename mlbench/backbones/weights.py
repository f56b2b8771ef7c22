"""Where a trunk's weights come from, and how they get into it."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from mlbench.errors import MlbenchError
from mlbench.system.download import fetch
from mlbench.system.files import cache_dir, file_sha256
from mlbench.system.locks import built_once
from mlbench.system.regular import is_regular, open_regular

StateDict = dict[str, Tensor]

_SHOWN = 3
_MOST_BYTES = 1 << 40


def load_weights(
    name: str,
    trunk: nn.Module,
    weights: str,
    weights_file: Path | None,
    *,
    imagenet: Callable[[], Path],
    classifier: tuple[str, ...] = (),
    convert: Callable[[StateDict], StateDict] = dict,
) -> str:
    """Fill a freshly built trunk with the weights that were asked for.

    Args:
        name: of the backbone, for messages.
        trunk: changed in place; left alone for ``weights`` ``"none"``.
        weights: ``"imagenet"`` or ``"none"``.
        weights_file: a file to load in place of ``weights``.
        imagenet: returns the file with the ImageNet weights.
        classifier: prefixes of the names that a file may hold although the trunk does not.
        convert: maps the file's names and shapes to the trunk's.

    Returns:
        ``"none"``, or ``imagenet:`` or ``file:`` and 12 hex digits of the file's SHA-256.

    Raises:
        MlbenchError: an unknown kind of weights, or a file that is missing or does not fit.
    """
    path = _file_for(name, weights, weights_file, imagenet)
    if path is None:
        return "none"
    state = {k: v for k, v in convert(read_state(path)).items() if not k.startswith(classifier)}
    _check_fit(f"weights file {path} does not fit backbone '{name}'", trunk.state_dict(), state)
    try:
        trunk.load_state_dict(state)
    except RuntimeError as error:  # such as a sparse or quantised tensor
        raise _unreadable(path) from error
    return f"{'imagenet' if weights_file is None else 'file'}:{file_sha256(path)[:12]}"


def read_state(path: Path) -> StateDict:
    """Read a state dict (``.safetensors`` or ``torch.save``) without running code from it.

    Raises:
        MlbenchError: the file is missing or cannot be read, or holds anything but names and
            tensors.
    """
    if not is_regular(path):
        raise MlbenchError(f"weights file {path} does not exist; check backbone.weights")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with open_regular(path, limit=_MOST_BYTES) as file:
            state = _read_pickled(file)
    except OSError as error:
        raise MlbenchError(f"cannot read {path}: {error.strerror or error}") from error
    except MlbenchError:
        raise
    except Exception as error:  # the readers promise no particular exceptions for foreign bytes
        raise _unreadable(path) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _unreadable(path)
    return dict(state)


def _read_pickled(file: BinaryIO) -> object:
    """Read what ``torch.save`` wrote: names and tensors, of no more bytes than the file has."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed, which files of torch never are")
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):  # about the pickles that it then refuses
        return torch.load(file, map_location="cpu", weights_only=True)


def published(url: str, sha256: str) -> Path:
    """Return the cached copy of published weights, downloading them if need be."""
    path = cache_dir("weights") / url.rpartition("/")[2]
    with built_once(path, lambda: None):
        return fetch(url, path, sha256)


def _file_for(
    name: str, weights: str, weights_file: Path | None, imagenet: Callable[[], Path]
) -> Path | None:
    if weights_file is not None:
        return weights_file
    if weights == "imagenet":
        return imagenet()
    if weights == "none":
        return None
    raise MlbenchError(
        f"backbone '{name}': unknown weights '{weights}'; use imagenet, none or a file's path"
    )


def _unreadable(path: Path) -> MlbenchError:
    return MlbenchError(
        f"{path} is not a weights file; it must contain a plain state dict (names to tensors), "
        "saved by torch.save or safetensors"
    )


def _check_fit(problem: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    # Files older than PyTorch 0.4.1 have no batch counters; BatchNorm starts them itself.
    required = {key for key in expected if not key.endswith("num_batches_tracked")}
    reshaped = {k for k in expected.keys() & given.keys() if expected[k].shape != given[k].shape}
    differences = {
        "missing": required - given.keys(),
        "unexpected": given.keys() - expected.keys(),
        "of another shape": reshaped,
    }
    found = [f"{_first(keys)} {what}" for what, keys in differences.items() if keys]
    if found:
        raise MlbenchError(f"{problem}: {'; '.join(found)}; use weights of the same architecture")


def _first(keys: set[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(sorted(keys)[:_SHOWN]) + more
