"""Trained networks: kept beside their records, loaded again to embed images.

A kept model is ``<record>.safetensors``: the network's tensors (``trunk.*``, ``head.*``) and the
loss's own (``loss.*``). A frozen trunk of identified weights is not stored again with every run;
it is rebuilt from the backbone, whose ``weights_id`` must be the record's. Beside it lie the test
embeddings, ``<record>.embeddings.npy``: float16 ``(Q, D)`` of unit length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import decode, to_rgb
from mlbench.datasets.formats import upright
from mlbench.datasets.pixels import decoded
from mlbench.errors import MlbenchError
from mlbench.interfaces import ImageSet, Interpolation
from mlbench.metrics.vectors import as_array
from mlbench.models.kept import (
    SUFFIXES,
    StateDict,
    has_none,
    kept_result,
    result_id,
)
from mlbench.progress import Progress
from mlbench.records import store
from mlbench.records.choice import choose_record
from mlbench.records.record import RunRecord
from mlbench.registry import BACKBONES
from mlbench.system.known_state import known_state
from mlbench.training.crops import center_boxes
from mlbench.training.device import resolve_device
from mlbench.training.network import Embedder, Trunk, build_head

_BATCH = 64
_PREFIXES = ("trunk.", "head.")

Picture = str | PathLike[str] | Image.Image | ImageArray | Tensor


class Model(nn.Module):
    """A trained network with its preprocessing: images to L2-normalised embeddings.

    Args:
        network: maps crops to unnormalised embeddings.
        record: record of its run.
        dim: dimension of its embeddings.

    Attributes:
        record: see above.
        size: side of the square input, in pixels.
        resize: length of the shorter side of an image before the centre crop, in pixels.
        interpolation: interpolation used for resizing.
        dim: dimension of an embedding.
    """

    def __init__(self, network: Embedder, record: RunRecord, dim: int) -> None:
        super().__init__()
        self.network, self.record = network, record
        self.interpolation: Interpolation = getattr(network.trunk, "interpolation", "bilinear")
        inputs = record.recipe.input
        self.size, self.resize, self.dim = inputs.size, inputs.test_resize, dim
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed crops.

        Args:
            pixels: ``(B, 3, size, size)`` RGB in 0-255, uint8 or float.

        Returns:
            float32 ``(B, dim)``, L2-normalised.
        """
        return F.normalize(self.network(pixels).float())

    def embed(self, images: Iterable[Picture]) -> Tensor:
        """Embed whole images, prepared as for the evaluation of the run.

        Args:
            images: ``N`` paths, Pillow images or ``(H, W, 3)`` uint8 RGB arrays or tensors.

        Returns:
            float32 ``(N, dim)``, L2-normalised, on the CPU.

        Raises:
            MlbenchError: an image cannot be read.
        """
        if isinstance(images, str | PathLike | Image.Image):
            raise MlbenchError("embed() requires a list of images, even for one image")
        found = embed_images(self, image_set(list(images)))
        if found.bad:
            raise MlbenchError(next(iter(found.bad.values())))
        return found.embeddings


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a set of images.

    Attributes:
        embeddings: float32 ``(N, D)`` of unit length on the CPU, of the images that can be read.
        bad: why each of the others cannot, by its number in the set.
    """

    embeddings: Tensor
    bad: dict[int, str]


def embed_images(model: Model, images: ImageSet, progress: Progress | None = None) -> Embedded:
    """Embed a set of images in batches; files are decoded by several threads.

    Args:
        model: embeds them.
        images: its names and ``read`` are used, no labels.
        progress: called with images done and their number.
    """
    with known_state(model.record.recipe.training.precision), torch.inference_mode():
        return _embed_images(model, images, progress)


def _embed_images(model: Model, images: ImageSet, progress: Progress | None) -> Embedded:
    bad: dict[int, str] = {}
    crops: list[ImageArray] = []
    parts = [torch.empty(0, model.dim)]
    for i, image in enumerate(decoded(images, model.resize, model.interpolation)):
        if isinstance(image, MlbenchError):
            bad[i] = str(image)
        else:
            crops.append(_center(image, model.size))
        if len(crops) == _BATCH or (crops and i + 1 == len(images)):
            parts.append(_embed_crops(model, crops))
            crops = []
        if progress is not None:
            progress(i + 1, len(images))
    return Embedded(torch.cat(parts), bad)


def _embed_crops(model: Model, crops: Sequence[ImageArray]) -> Tensor:
    device = next(model.parameters()).device
    return model(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(device)).cpu()


def _center(image: ImageArray, size: int) -> ImageArray:
    height, width = np.array(image.shape[:1]), np.array(image.shape[1:2])
    box = center_boxes(height, width, size)
    top, left = int(box.top[0]), int(box.left[0])
    return image[top : top + size, left : left + size]


def image_set(pictures: Sequence[Picture]) -> ImageSet:
    """Return images as ``embed_images`` takes them; they are read when it comes to them."""
    named = enumerate(pictures)
    names = (fspath(p) if isinstance(p, str | PathLike) else f"number {i}" for i, p in named)
    labels = np.zeros(len(pictures), np.int64)
    return ImageSet(tuple(names), labels, ("",), functools.partial(_read, pictures))


def _read(pictures: Sequence[Picture], i: int) -> ImageArray:
    picture = pictures[i]
    if isinstance(picture, str | PathLike):
        return decode(Path(picture))
    if isinstance(picture, Image.Image):
        try:
            return np.array(to_rgb(upright(picture)))
        except (OSError, ValueError) as error:
            raise MlbenchError(f"image number {i} cannot be read: {error}") from error
    return as_array(picture, f"image number {i}", "(H, W, 3) uint8")


@known_state(seed=0)
def load_model(
    path: str | PathLike[str],
    *,
    device: str = "auto",
    weights: str | PathLike[str] | None = None,
) -> Model:
    """Load the model of a run that was executed with ``--keep-model``.

    Args:
        path: path of the run's record (``.json``), of a folder with one such run, or
            ``FOLDER:LOSS``.
        device: device to load the model onto: ``auto``, ``cpu`` or ``cuda``.
        weights: file of the backbone's weights; only for a frozen backbone whose recipe names a
            file.

    Returns:
        the network in evaluation mode, with its preprocessing.

    Raises:
        MlbenchError: there is no record; its model was not saved, belongs to another result or
            is damaged; or the backbone or its weights are not available.
    """
    path = choose_record(Path(path), kept=True)
    record = store.load(path)
    state = _load_state(path, record)
    backbone = record.recipe.backbone
    stored = any(name.startswith("trunk.") for name in state)
    if weights is not None and (stored or backbone.weights in ("imagenet", "none")):
        raise MlbenchError(f"{path}: its model needs no weights file; omit it")
    network, dim = _build(record, state, None if weights is None else Path(weights), stored=stored)
    _fill(path, network, state, trunk=stored)
    place = resolve_device(device)
    network.trunk.to(memory_format=torch.channels_last)
    return Model(network, record, dim).to(place)


def _load_state(path: Path, record: RunRecord) -> StateDict:
    if has_none(record):
        raise MlbenchError(f"{path}: a diverged run has no model; choose another run")
    model = path.with_suffix(SUFFIXES[0])
    mend = "create it by repeating the command of the run with --keep-model"
    if not model.is_file():
        raise MlbenchError(f"{path}: its model was not saved; {mend}")
    found = kept_result(model)
    if found is None:
        raise MlbenchError(f"{model}: damaged, or not a model of mlbench; remove it and {mend}")
    if found != result_id(record):
        raise MlbenchError(f"{model}: belongs to another run than the record; remove it and {mend}")
    return safetensors.torch.load_file(model)


def _build(
    record: RunRecord, state: StateDict, weights: Path | None, *, stored: bool
) -> tuple[Embedder, int]:
    """Build the network; its trunk as it is stored or, if it is not, of the run's own weights.

    Returns:
        it and the length of its embeddings.
    """
    recipe, spec = record.recipe, record.recipe.backbone
    factory = BACKBONES.get(spec.name).load()
    if stored:
        backbone = factory("none", None)
    elif spec.weights not in ("imagenet", "none") and weights is None:
        raise MlbenchError(
            f"the backbone's weights are the file with SHA-256 {spec.weights[:12]}...; pass its "
            f"path "
            "with --weights"
        )
    else:
        backbone = factory(spec.weights, weights)
    if not stored and backbone.weights_id != record.weights_id:
        raise MlbenchError(
            f"backbone '{spec.name}' has weights {backbone.weights_id} here, and those of the run "
            f"are {record.weights_id}; install those, or pass their file"
        )
    trunk = Trunk(backbone, recipe)
    head, dim = _head(record, state, backbone.features)
    return Embedder(trunk, head), dim


def _head(record: RunRecord, state: StateDict, features: int) -> tuple[nn.Module, int]:
    """Return the head of a run, or of a baseline, and the length of its embeddings."""
    spec = record.recipe.head
    if record.loss == "features":
        return nn.Identity(), features
    if record.loss == "pca":  # which has no more components than there are with a variance
        kept = len(state.get("head.bias", ())) or spec.dim
        return nn.Linear(features, kept), kept
    return build_head(spec, features), spec.dim


def _fill(path: Path, network: Embedder, state: StateDict, *, trunk: bool) -> None:
    """Put the stored tensors into the network, or into its head alone."""
    wanted = _PREFIXES if trunk else _PREFIXES[1:]
    own = {name: value for name, value in state.items() if name.startswith(wanted)}
    rest = {} if trunk else {f"trunk.{k}": v for k, v in network.trunk.state_dict().items()}
    try:
        network.load_state_dict(rest | own)
    except RuntimeError as error:
        raise MlbenchError(
            f"{path}: its model does not fit the backbone as it is defined here; use the versions "
            "of mlbench and timm that the record names"
        ) from error
