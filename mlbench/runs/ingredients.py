"""What the runs of one recipe share: the data, the pixels, the network as it starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mlbench.arrays import Indices, Labels
from mlbench.datasets.checks import check_dataset, list_bad, without_bad_images
from mlbench.datasets.decode import BadImagesError
from mlbench.datasets.pixels import PixelCache, open_cache
from mlbench.datasets.resplit import resplit
from mlbench.errors import MlbenchError
from mlbench.interfaces import Backbone, Dataset, ImageSet, Interpolation
from mlbench.progress import PhaseProgress
from mlbench.recipes.plan import Files
from mlbench.recipes.spec import Recipe, digest
from mlbench.records.provenance import Execution
from mlbench.registry import BACKBONES, DATASETS, PROGRAM
from mlbench.system.files import cache_dir
from mlbench.system.known_state import known_state
from mlbench.system.process import memory_released
from mlbench.training.batches import FeatureSource, ImageSource, InputSource, Joined, Subset
from mlbench.training.crops import Crops, ResidentCrops, open_crops
from mlbench.training.device import device_name, execution
from mlbench.training.embed import embed_batches
from mlbench.training.features import cached_features
from mlbench.training.network import Embedder, Trunk, build_head

Side = Literal["train", "test", "gallery", "validation"]

# To be raised when the same recipe would give other features.
_FEATURES_VERSION = 1


@dataclass(frozen=True)
class TrainingPart:
    """The training images that a run learns from, and those it validates on.

    Attributes:
        members: positions in the data set's training side.
        labels: their classes, renumbered ``0 .. C - 1``.
        validation: positions of the images of the fold's classes; empty without folds, and where
            the data set has a validation side of its own.
    """

    members: Indices
    labels: Labels
    validation: Indices


def training_part(labels: Labels, recipe: Recipe, seed: int, fold: int | None) -> TrainingPart:
    """Take the fold's classes and the hold-out away from the training images.

    Folds are contiguous parts of the sorted classes, as in Musgrave et al. 2020; a single fold is
    the data set's own validation side and takes nothing away. The hold-out is drawn with the run's
    seed.
    """
    in_fold = np.zeros(len(labels), dtype=np.bool_)
    if fold is not None and recipe.selection.folds > 1:
        parts = np.array_split(np.unique(labels), recipe.selection.folds)
        in_fold = np.isin(labels, parts[fold])
    members = np.flatnonzero(~in_fold)
    held = round(recipe.data.holdout * len(members))
    if held:
        rng = np.random.default_rng([seed, len(members)])
        members = np.sort(rng.permutation(members)[held:])
    _, renumbered = np.unique(labels[members], return_inverse=True)
    return TrainingPart(members, renumbered.astype(np.int64), np.flatnonzero(in_fold))


@dataclass(frozen=True, eq=False)
class Validation:
    """Images that a network is validated on: what it reads, their classes and their groups."""

    source: InputSource
    labels: Labels
    groups: Labels | None


class Ingredients:
    """What the runs of one recipe share: data set, pixel caches, features of the first trunk.

    Args:
        recipe: of all runs.
        files: where the data set and the weights lie.
        device: to train and embed on.
        progress: called with phase, done and total.
    """

    def __init__(
        self, recipe: Recipe, files: Files, device: torch.device, progress: PhaseProgress
    ) -> None:
        self.recipe, self.files, self.device, self.progress = recipe, files, device, progress
        self._features: dict[tuple[Side, int], Tensor] = {}
        self._caches: dict[tuple[Side, int], PixelCache] = {}
        self._crops: dict[tuple[Side, int], Crops] = {}
        self._facts: tuple[str, Interpolation] | None = None
        self._of_split: _OfSplit | None = None

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The data set, loaded and checked at first use."""
        dataset = DATASETS.get(self.recipe.data.name).load()(self.files.data_root)
        check_dataset(dataset)
        if self.files.on_bad_image == "skip":
            side = max(self.recipe.input.train_resize, self.recipe.input.test_resize)
            dataset = without_bad_images(dataset, side, self.progress)
        folds = self.recipe.selection.folds
        if (folds == 1) > (dataset.validation is not None):
            raise MlbenchError(
                f"selection.folds: 1 fold is the data set's own validation images, and "
                f"{dataset.name} has none; use 2 or more, or 0"
            )
        if folds > 1 and dataset.validation is not None:
            raise MlbenchError(
                f"selection.folds: {dataset.name} has validation images of its own, which 1 fold "
                f"validates on, so {folds} folds are not drawn; use --folds 1"
            )
        if folds > 1 and len(dataset.train.class_names) < 2 * folds:
            raise MlbenchError(
                f"selection.folds: {folds} folds need at least {2 * folds} training classes, "
                f"{dataset.name} has {len(dataset.train.class_names)}"
            )
        return dataset

    def of_split(self, split: int | None) -> Ingredients:
        """Return the ingredients of runs on a random split of the classes; None: as they are."""
        if split is None:
            return self
        if self._of_split is None or self._of_split.split != split:
            self._of_split = _OfSplit(self, split)  # one at a time, as each holds features
        return self._of_split

    def prepare(self) -> None:
        """Load all that the runs need, so that bad data or weights are named before the first."""
        with known_state(self.recipe.training.precision, seed=0):
            self._prepare()

    def _prepare(self) -> None:
        _ = self.weights_id
        inputs = self.recipe.input
        needed: list[tuple[Side, int]] = [("train", inputs.test_resize)]
        needed.extend((side, inputs.test_resize) for side in self.evaluated)
        if self.recipe.selection.folds == 1:
            needed.append(("validation", inputs.test_resize))
        if self.recipe.backbone.trunk == "train":
            needed.append(("train", inputs.train_resize))
        reasons: list[str] = []
        for side, resize in needed:
            try:
                self._open_pixels(side, resize)
            except BadImagesError as error:  # the other sides may have bad ones too
                reasons += error.reasons
        if reasons:
            reasons = list(dict.fromkeys(reasons))
            listed = list_bad(self.dataset, reasons) if len(reasons) > 5 else None
            raise BadImagesError(reasons, listed)

    @property
    def execution(self) -> Execution:
        """How training steps are executed."""
        return execution(self.device, compiled=self.files.compile)

    def images(self, side: Side) -> ImageSet:
        """Return one side of the data set; MlbenchError if it has no gallery."""
        found: ImageSet | None = getattr(self.dataset, side)
        if found is None:
            raise MlbenchError(f"data set '{self.dataset.name}' has no {side} side")
        return found

    @property
    def evaluated(self) -> tuple[Side, ...]:
        """The sides that are embedded to evaluate a network: queries, then a gallery if any."""
        return ("test",) if self.dataset.gallery is None else ("test", "gallery")

    def validation(self, part: TrainingPart, seed: int) -> Validation:
        """Return what a run validates on: its fold, or the data set's own validation side."""
        if self.recipe.selection.folds == 1:
            images = self.images("validation")
            return Validation(self.inputs("validation", seed), images.labels, images.groups)
        images, members = self.images("train"), part.validation
        groups = None if images.groups is None else images.groups[members]
        source = Subset(self.inputs("train", seed), members)
        return Validation(source, images.labels[members], groups)

    @property
    def weights_id(self) -> str:
        """What the backbone's initial weights are; it is tried on a blank image first."""
        return self._tried[0]

    @property
    def interpolation(self) -> Interpolation:
        """By which images are resized."""
        named = self.recipe.input.interpolation
        return self._tried[1] if named == "backbone" else named

    @property
    def _tried(self) -> tuple[str, Interpolation]:
        """The identity and the interpolation of the backbone's weights; it itself is not kept."""
        if self._facts is None:
            backbone = self._backbone(0)
            _check_backbone(backbone, self.recipe)
            self._facts = backbone.weights_id, backbone.preprocessing.interpolation
        return self._facts

    def trunk(self, seed: int) -> tuple[Trunk, int]:
        """Build the trunk as the run of ``seed`` starts it, and tell the length of its features."""
        backbone = self._backbone(seed)
        trunk = Trunk(backbone, self.recipe)
        return trunk.to(self.device).to(memory_format=torch.channels_last), backbone.features

    def _backbone(self, seed: int) -> Backbone:
        spec = self.recipe.backbone
        if spec.weights not in ("imagenet", "none") and self.files.weights is None:
            raise MlbenchError(
                f"backbone.weights is the file with SHA-256 {spec.weights[:12]}...; pass its path "
                "with --set backbone.weights=PATH"
            )
        torch.manual_seed(seed)
        return BACKBONES.get(spec.name).load()(spec.weights, self.files.weights)

    def network(self, seed: int) -> Embedder:
        """Build the network as the run of ``seed`` starts it; the head alone on a frozen trunk."""
        if self.recipe.backbone.trunk == "frozen":
            trunk, width = nn.Identity(), self.features("train", seed).shape[1]
        else:
            trunk, width = self.trunk(seed)
        torch.manual_seed(seed)
        return Embedder(trunk, build_head(self.recipe.head, width).to(self.device))

    def inputs(self, side: Side, seed: int, *, augmented: bool = False) -> InputSource:
        """Return what the network of ``seed`` reads for one side of the data set.

        Args:
            side: of the data set.
            seed: of the run.
            augmented: from the pixels that training crops are cut from; no effect on features.
        """
        if self.recipe.backbone.trunk == "frozen":
            return FeatureSource(self.features(side, seed).to(self.device))
        return self._image_source(side, augmented=augmented)

    def features(self, side: Side, seed: int) -> Tensor:
        """Return the features ``(N, F)`` of the trunk as the run of ``seed`` starts it.

        Those of pretrained weights are the same for all seeds and kept on disk by content.
        """
        key = (side, seed if self.weights_id == "none" else 0)
        if key not in self._features:
            with memory_released():  # activations take many times what comes after
                self._features[key] = self._read_features(side, seed)
        return self._features[key]

    def _read_features(self, side: Side, seed: int) -> Tensor:
        source = BACKBONES.get(self.recipe.backbone.name).source
        # The code of a program's own backbone may change from one call to the next.
        if self.weights_id == "none" or source == PROGRAM:
            return torch.cat([*self._feature_batches(side, seed)]).cpu()
        inputs = asdict(self.recipe.input)
        used = [inputs[k] for k in ("size", "test_resize", "normalization", "channels")]
        place = device_name(self.device)
        backbone = [self.recipe.backbone.name, self.weights_id, place, torch.__version__]
        tf32 = self.device.type == "cuda" and self.recipe.training.precision == "tf32"
        rest = [source] * (source != "built-in") + ["tf32"] * tf32 + self._later_ways()
        key = digest([_FEATURES_VERSION, self.dataset.fingerprint, side, *used, *backbone, *rest])
        path = cache_dir("features") / f"{key}.npy"
        waiting = self._waiting(f"features of the {side} images")
        batches = functools.partial(self._feature_batches, side, seed)
        return cached_features(path, len(self.images(side)), batches, waiting)

    def _later_ways(self) -> list[str]:
        """Name what changes features and was added later; empty for what was done before.

        Features are kept pooled, as ``head.pool`` says.
        """
        pool, interpolation = self.recipe.head.pool, self.interpolation
        pooled = [f"pool {pool}"] * (pool != "backbone")
        return pooled + [interpolation] * (interpolation != "bilinear")

    def _waiting(self, phase: str) -> Callable[[], None]:
        return functools.partial(self.progress, f"waiting for another process: {phase}", 0, 0)

    def _feature_batches(self, side: Side, seed: int, start: int = 0) -> Iterator[Tensor]:
        report = functools.partial(self.progress, f"features of the {side} images")
        trunk, source = self.trunk(seed)[0], self._image_source(side)
        return embed_batches(trunk, source, start=start, progress=report)

    def _image_source(self, side: Side, *, augmented: bool = False) -> InputSource:
        resize = self.recipe.input.train_resize if augmented else self.recipe.input.test_resize
        cache = self._pixels(side, resize)
        if (side, resize) not in self._crops:
            kept = sum(c.data.nbytes for c in self._crops.values() if isinstance(c, ResidentCrops))
            self._crops[side, resize] = open_crops(cache, self.device, kept, self.interpolation)
        return ImageSource(cache, self._crops[side, resize], self.recipe.input)

    def _pixels(self, side: Side, resize: int) -> PixelCache:
        try:
            return self._open_pixels(side, resize)
        except BadImagesError:
            self.prepare()  # names the bad images of all sides
            raise

    def _open_pixels(self, side: Side, resize: int) -> PixelCache:
        if (side, resize) not in self._caches:
            report = functools.partial(self.progress, f"decoding the {side} images")
            key = f"{self.dataset.fingerprint}-{side}"
            waiting = self._waiting(f"decoding the {side} images")
            self._caches[side, resize] = open_cache(
                self.images(side), resize, key, report, waiting, interpolation=self.interpolation
            )
        return self._caches[side, resize]


class _OfSplit(Ingredients):
    """The same images with their classes dealt anew to training and test.

    Pixels and features are those of the data set's own sides, so each is computed once.
    """

    def __init__(self, whole: Ingredients, split: int) -> None:
        super().__init__(whole.recipe, whole.files, whole.device, whole.progress)
        self._whole, self.split = whole, split
        self.dataset, self._members = resplit(whole.dataset, split)

    @property
    def _tried(self) -> tuple[str, Interpolation]:
        """Of the backbone, which no split changes."""
        return self._whole._tried

    def _read_features(self, side: Side, seed: int) -> Tensor:
        if side not in self._members:
            return self._whole.features(side, seed)
        both = torch.cat([self._whole.features(each, seed) for each in ("train", "test")])
        return both[self._members[side]]

    def _image_source(self, side: Side, *, augmented: bool = False) -> InputSource:
        if side not in self._members:
            return self._whole._image_source(side, augmented=augmented)
        sources = [
            self._whole._image_source(each, augmented=augmented) for each in ("train", "test")
        ]
        return Subset(Joined(*sources), self._members[side])


def _check_backbone(backbone: Backbone, recipe: Recipe) -> None:
    """Raise MlbenchError if the backbone cannot take images of the recipe's size."""
    size, name = recipe.input.size, f"backbone '{recipe.backbone.name}'"
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise MlbenchError(f"{name}: its factory returns {kind}, not a Backbone; fix it")
    trunk = Trunk(backbone, recipe).eval()
    try:
        with torch.inference_mode():
            features = trunk(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise MlbenchError(
            f"{name} cannot take images of input.size {size} ({reason}); "
            "set the size that it was made for with --set input.size=..."
        ) from error
    if features.shape != (2, backbone.features):
        raise MlbenchError(
            f"{name} gives features of shape {tuple(features.shape)} for 2 images and declares "
            f"{backbone.features}; fix its factory"
        )
