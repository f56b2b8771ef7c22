"""What the parts of mlbench hand to each other, and what a plugin provides.

Importing this module imports neither torch nor numpy: entries name their code, loaded on demand.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlbench.errors import MlbenchError
from mlbench.scalars import plain, whole_number

if TYPE_CHECKING:
    from torch import nn

    from mlbench.arrays import ImageArray, Labels

ParamValue = bool | int | float | str
Interpolation = Literal["bilinear", "bicubic"]

Context = Literal["features", "views", "step", "levels"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named, lazily loaded piece of mlbench: a loss, a data set or a backbone.

    Attributes:
        name: the name users type.
        target: the factory itself, or ``"module:attribute"`` to import when it is first needed.
        summary: one line for ``mlbench list``.
        paper: where it is defined (authors, year, venue, equation).
        prefix: True if users type ``name:ARGUMENT``; the argument is the factory's first one.
        source: ``"built-in"``, or the distribution that registered it.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str
    paper: str = ""
    prefix: bool = False
    argument: str | None = None
    source: str = "built-in"

    def __post_init__(self) -> None:
        """Take numbers of NumPy and torch in a declaration as Python's own."""
        for each in fields(self):
            if each.name != "target":
                object.__setattr__(self, each.name, plain(getattr(self, each.name)))

    def load(self) -> Callable[..., Any]:
        """Import the factory if need be and return it, bound to the argument of a prefix name.

        Raises:
            MlbenchError: the module or its attribute is not there.
        """
        factory = self.target
        if isinstance(factory, str):
            module, _, attribute = factory.partition(":")
            try:
                factory = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise MlbenchError(f"'{self.name}' cannot be loaded: {error}") from error
        return factory if self.argument is None else functools.partial(factory, self.argument)


@dataclass(frozen=True, kw_only=True)
class LossEntry(Entry):
    """A loss: ``target(num_classes, embedding_dim, **params) -> nn.Module``.

    The module's ``forward(embeddings, labels)`` takes float ``(B, D)`` and int64 ``(B,)`` and
    returns a scalar. A loss that declares a ``context`` gets a third argument, a mapping that
    contains what it declared and nothing else:

    - ``features``: float ``(B, F)``, the backbone's features, through which gradients flow back;
    - ``views``: int64 ``(B,)``, the image of each row; every image is in the batch twice, in two
      crops, so that a batch has half as many images;
    - ``step``: the number of steps that were taken before;
    - ``levels``: int64 ``(B, L)``, the coarser classes of each image, from finer to coarser.

    Attributes:
        images_per_class: images per class in a batch; None means random (shuffled) batches.
        unit_length: True if the loss receives L2-normalised embeddings, else they are unnormalised.
        lr: learning rate of the loss's learnable parameters (proxies, centres), or one by the name
            of each parameter or of its module; None if it has none.
        proxies: kind of the learnable parameters: ``unit`` if they are class vectors of which only
            the direction matters, ``free`` if their norm matters or they are not class vectors,
            ``none`` if there are none.
        defaults: the hyperparameters that users may set, with their default values.
        search: the numbers among them that are worth tuning, with the smallest and the largest
            value to try; the default is between them. The range is sampled on a logarithmic scale
            if it spans a factor of 10 or more, else uniformly; integers if the default is one. Four
            fields of the recipe may be among them: ``schedule.epochs``, ``optimizer.lr``,
            ``optimizer.head_lr`` and ``optimizer.loss_lr``, whose default is the recipe's value.
        formula: the definition in one or a few lines of plain text.
        context: content of its third argument; if empty, there are two arguments.
    """

    images_per_class: int | None = None
    unit_length: bool = True
    lr: float | Mapping[str, float] | None = None
    proxies: Literal["none", "unit", "free"] = "none"
    defaults: Mapping[str, ParamValue] = field(default_factory=dict)
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    formula: str = ""
    context: tuple[Context, ...] = ()

    @property
    def year(self) -> str:
        """The year of its paper; empty if none is named."""
        found = re.search(r"\b(19|20)\d\d\b", self.paper)
        return found.group() if found else ""

    @property
    def needs(self) -> str:
        """What it requires: batches, form of the embeddings, learning rate of its parameters."""
        several = self.images_per_class
        batch = f"{several} images per class" if several else "random batches"
        form = "L2-normalised" if self.unit_length else "unnormalised"
        rates = self.lr if isinstance(self.lr, Mapping) else {"": self.lr}
        shown = [f"loss lr {rate:g}{name and f' ({name})'}" for name, rate in rates.items() if rate]
        return "; ".join([batch, f"{form} embeddings", *shown, *self.context])

    def rate_of(self, parameter: str) -> float | None:
        """Return the learning rate of the parameter of that name; None if none is declared."""
        if not isinstance(self.lr, Mapping):
            return self.lr
        names = [name for name in self.lr if f"{parameter}.".startswith(f"{name}.")]
        return self.lr[max(names, key=len)] if names else None

    def build(
        self, num_classes: int, embedding_dim: int, params: Mapping[str, ParamValue]
    ) -> nn.Module:
        """Build the module; MlbenchError if its factory rejects the hyperparameters."""
        classes = whole_number(num_classes, f"loss '{self.name}': num_classes", 1)
        dim = whole_number(embedding_dim, f"loss '{self.name}': embedding_dim", 1)
        try:
            return self.load()(classes, dim, **plain(params))
        except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())
            raise MlbenchError(f"loss '{self.name}' cannot be built: {reason}") from error


@dataclass(frozen=True)
class ImageSet:
    """Images of one part of a split, such as the test images.

    Attributes:
        names: ``N`` unique names, such as paths relative to the data set's root.
        labels: ``(N,)`` int64 in ``0 .. len(class_names) - 1``, every class present.
        class_names: the classes, in label order.
        read: decodes image ``i`` to ``(H, W, 3)`` uint8 RGB; raises MlbenchError naming the file.
        groups: ``(N,)`` int64, numbered alike in all parts: images of one group, such as the frames
            of a video, never count as each other's neighbours. None if no image has a group.
        levels: ``(N, L)`` int64 coarser classes, from finer to coarser; None if there are none.
    """

    names: tuple[str, ...]
    labels: Labels
    class_names: tuple[str, ...]
    read: Callable[[int], ImageArray]
    groups: Labels | None = None
    levels: Labels | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Dataset:
    """A data set with its class-disjoint split.

    Attributes:
        name: as users type it (without the path of ``folder:PATH`` and ``table:FILE``).
        train: images of the training classes.
        test: images of the test classes, none of which is a training class.
        fingerprint: SHA-256 (hex) over names, labels and image contents of all parts.
        gallery: images among which each test image is searched; None if each is searched among all
            other test images. Its first classes are those of ``test``, of which some may have no
            image here; others may follow, whose images serve as distractors.
        skipped: names of unreadable images that were skipped.
        test_class_numbers: numbers of the test classes in the data set's own list of all classes,
            ascending, so that one class has one number in every split; None for the standard
            split, in whose list the training classes come first, then the test classes.
        validation: images of classes that are neither trained nor tested on, by which epochs and
            hyperparameters may be selected; None if the data set has none of its own.
    """

    name: str
    train: ImageSet
    test: ImageSet
    fingerprint: str
    gallery: ImageSet | None = None
    skipped: tuple[str, ...] = ()
    test_class_numbers: tuple[int, ...] | None = None
    validation: ImageSet | None = None

    @property
    def test_numbers(self) -> Labels:
        """The ``(G,)`` numbers of the test classes, in the order of their labels."""
        import numpy as np

        if self.test_class_numbers is not None:
            return np.array(self.test_class_numbers, np.int64)
        return len(self.train.class_names) + np.arange(len(self.test.class_names))

    @property
    def sides(self) -> dict[str, ImageSet]:
        """The sides that it has, by name."""
        sides = {side: getattr(self, side) for side in ("train", "test", "gallery", "validation")}
        return {side: images for side, images in sides.items() if images is not None}


class DatasetLoader(Protocol):
    """The factory of a DatasetEntry (called with the argument first for prefix names)."""

    def __call__(self, root: Path | None) -> Dataset:
        """Load the data set whose files are under ``root``; raise MlbenchError on bad data."""
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set: ``target(root: Path | None) -> Dataset`` (see DatasetLoader).

    Attributes:
        needs_root: True if its files come from ``--data-root``.
        ks: the k of R@k that papers report on it.
    """

    needs_root: bool = True
    ks: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone's weights expect: ``(pixel / 255 * scale - mean) / std`` per channel.

    Attributes:
        scale: 1 for pixels in 0-1, 255 for pixels in 0-255.
        mean: mean of the three channels, after scaling, in ``channels`` order.
        std: standard deviation, likewise.
        channels: channel order.
        interpolation: interpolation by which images were resized.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    channels: Literal["rgb", "bgr"] = "rgb"
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True)
class Backbone:
    """A feature extractor.

    Attributes:
        trunk: maps preprocessed images, float ``(B, 3, H, W)``, to pooled features ``(B, F)``.
        features: ``F``.
        preprocessing: preprocessing that the weights expect.
        weights_id: identifier of the weights, e.g. ``"none"`` or ``"imagenet:<sha256 prefix>"``.
        set_pool: puts a global pooling, a module from ``(B, F, ...)`` to ``(B, F)``, in the place
            of the backbone's own, for recipes whose ``head.pool`` asks for one; such as
            ``partial(trunk.set_submodule, "avgpool")`` where the features are flattened after it.
            None if the backbone does not support this.
    """

    trunk: nn.Module
    features: int
    preprocessing: Preprocessing
    weights_id: str
    set_pool: Callable[[nn.Module], None] | None = None


class BackboneFactory(Protocol):
    """The factory of a BackboneEntry (called with the argument first for prefix names)."""

    def __call__(self, weights: str, weights_file: Path | None = None) -> Backbone:
        """Build with ``weights`` ``"imagenet"`` or ``"none"``, or from ``weights_file``."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneEntry(Entry):
    """A backbone: ``target(weights, weights_file=None) -> Backbone`` (see BackboneFactory).

    Attributes:
        image_size: side in pixels of the (square) images that its weights were trained on.
        features: dimension of its pooled features; None if it is known only once it is built.
        interpolation: default interpolation of images, if the recipe does not set it;
            ``backbone`` for that of the weights.
    """

    image_size: int = 224
    features: int | None = None
    interpolation: Interpolation | Literal["backbone"] = "bilinear"
