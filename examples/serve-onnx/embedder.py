"""Images to embeddings with an exported model: onnxruntime, Pillow and numpy, without mlbench.

The steps are those that the model's file names (``preprocessing`` in its metadata).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Embedder:
    """A model written by ``mlbench export --format onnx``.

    Args:
        path: of the file.

    Attributes:
        dim: length of an embedding.
    """

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        written = self._session.get_modelmeta().custom_metadata_map.get("mlbench", "{}")
        steps = json.loads(written).get("preprocessing", {})
        if steps.get("version") != 1:
            raise ValueError(f"{path}: not a model whose preprocessing this program knows")
        self._side: int = steps["resize"]["shorter_side"]
        self._filter = _FILTERS[steps["resize"]["filter"]]
        self._size: int = steps["crop"]["size"]
        self.dim: int = self._session.get_outputs()[0].shape[1]

    def embed(self, image: Image.Image) -> Floats:
        """Return the embedding of an image of any size and mode: ``(dim,)``, of unit length."""
        crop = self._crop(_rgb(_upright(image)))
        pixels = np.asarray(crop, np.uint8).transpose(2, 0, 1)[None]
        return self._session.run(["embeddings"], {"pixels": pixels})[0][0]

    def _crop(self, image: Image.Image) -> Image.Image:
        """Resize so that the shorter side is as wanted, and cut out the centre."""
        width, height = image.size
        short, long = sorted(image.size)
        if short != self._side:
            longer = int(self._side * long / short)
            width, height = (self._side, longer) if width <= height else (longer, self._side)
            image = image.resize((width, height), self._filter)
        # Python's round, like numpy's, takes halves to the even neighbour.
        left, top = round((width - self._size) / 2), round((height - self._size) / 2)
        return image.crop((left, top, left + self._size, top + self._size))


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        grey = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
