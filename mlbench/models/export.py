"""Trained networks as files that other programs run: ONNX, torch.export, safetensors.

Every file maps crops, uint8 RGB ``(B, 3, size, size)``, to float32 unit-length ``(B, D)``; the
normalisation of pixels is part of it. It is uint8 because a program that feeds 0-1 where 0-255 is
meant gets an error then, not wrong embeddings. How crops are made of image files is written into
it (``preprocessing_facts``); ``examples/serve-onnx`` does it without mlbench.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from mlbench.errors import MlbenchError, not_installed
from mlbench.models.kept import plain
from mlbench.models.model import Model
from mlbench.system.known_state import known_state
from mlbench.training.network import Normalise

Format = Literal["onnx", "pt2", "safetensors"]

TOLERANCE = 1e-4
"""The largest difference of an embedding's entry that an exported network may show."""

_CHECKED = (1, 5)
"""Batch sizes that are compared; the network is traced with another."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """A network as the content of a file.

    Attributes:
        content: of the file.
        difference: largest absolute difference between the embeddings that the content, read
            again, and the network itself give of random images and plain ones.
    """

    content: bytes
    difference: float

    @property
    def faithful(self) -> bool:
        """Whether the difference is within ``TOLERANCE``; NaN is not."""
        return self.difference <= TOLERANCE


@known_state()
def export(model: Model, form: Format) -> Exported:
    """Export a network and run what was exported.

    Args:
        model: on the CPU.
        form: ``onnx``; ``pt2``, which ``torch.export.load`` reads; or ``safetensors``, the tensors
            of trunk and head.

    Raises:
        MlbenchError: the packages for ONNX are not installed, or the network cannot be exported.
    """
    if form == "onnx":
        _check_installed()
    twin = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    write, read = _FORMS[form]
    try:
        content = write(twin)
        run = read(content, twin)
        differences = [_difference(run, twin, size) for size in _CHECKED]
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        name = model.record.recipe.backbone.name
        raise MlbenchError(f"cannot export backbone '{name}' as {form}: {reason}") from error
    return Exported(content, max(differences))


def facts(model: Model) -> str:
    """Return what users of an exported network need to know, as JSON."""
    record = model.record
    return json.dumps(
        {
            "input": f"uint8 RGB (B, 3, {model.size}, {model.size})",
            "preprocessing": preprocessing_facts(model),
            "output": f"float32 (B, {model.dim}), L2-normalised",
            "recipe": asdict(record.recipe),
            "loss": {"name": record.loss, "params": record.params},
            "seed": record.seed,
            "fold": record.fold,
            "split": record.split,
            "weights_id": record.weights_id,
            "dataset_fingerprint": record.dataset.fingerprint,
        }
    )


def preprocessing_facts(model: Model) -> dict[str, Any]:
    """Return the way from an image file to the network's input, as ``Model.embed`` goes it.

    The steps are in the order in which they are applied. All but ``normalization`` are left to
    whoever feeds the network; it is part of ONNX and pt2 files, but not of safetensors. A program
    that knows these steps checks ``version``, which changes with their meaning.
    """
    normalise = model.network.trunk.get_submodule("normalise")
    assert isinstance(normalise, Normalise)
    return {
        "version": 1,
        "frame": "the first of an animation",
        "orientation": "upright by EXIF tag 274 (1 to 8), before anything else",
        "grey_16_bit": "clipped to 0-65535, divided by 257, rounded half to even",
        "alpha": "composited onto white",
        "mode": "RGB",
        "resize": {
            "shorter_side": model.resize,
            "longer_side": "floor(shorter_side * longer / shorter); none if it is so already",
            "filter": model.interpolation,
            "library": "Pillow, Image.resize, which filters against aliasing",
        },
        "crop": {
            "size": model.size,
            "top": "(height - size) / 2, rounded half to even",
            "left": "(width - size) / 2, rounded half to even",
        },
        "normalization": {
            "rule": "pixel * factor + offset for each channel",
            "channels": "bgr" if normalise.reverse else "rgb",
            "factor": normalise.get_buffer("factor").flatten().tolist(),
            "offset": normalise.get_buffer("offset").flatten().tolist(),
        },
    }


def _check_installed() -> None:
    for name in _ONNX_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise not_installed(f"--format onnx needs the package {name}", "onnx") from error


def _difference(run: Callable[[Tensor], Tensor], model: Model, size: int) -> float:
    generator = torch.Generator().manual_seed(size)
    shape = (size, 3, model.size, model.size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    pixels[0] = 128
    # Of a NaN, max() would let others decide.
    worst = (run(pixels) - model(pixels)).abs().max()
    return float(worst.nan_to_num(torch.inf))


def _program(model: Model) -> torch.export.ExportedProgram:
    pixels = torch.zeros(2, 3, model.size, model.size, dtype=torch.uint8)
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    return torch.export.export(model, (pixels,), dynamic_shapes=shapes)


def _write_pt2(model: Model) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(model), buffer, extra_files={"mlbench.json": facts(model)})
    return buffer.getvalue()


def _read_pt2(content: bytes, _: Model) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _write_onnx(model: Model) -> bytes:
    program: Any = torch.onnx.export(
        _program(model),
        input_names=["pixels"],
        output_names=["embeddings"],
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    proto.metadata_props.add(key="mlbench", value=facts(model))
    return proto.SerializeToString()


def _read_onnx(content: bytes, _: Model) -> Callable[[Tensor], Tensor]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _write_safetensors(model: Model) -> bytes:
    return safetensors.torch.save(plain(model.network.state_dict()), {"mlbench": facts(model)})


def _read_safetensors(content: bytes, model: Model) -> Callable[[Tensor], Tensor]:
    blank = copy.deepcopy(model)
    for value in blank.network.state_dict().values():
        value.zero_()
    blank.network.load_state_dict(safetensors.torch.load(content))
    return blank


_FORMS: dict[Format, tuple[Callable[[Model], bytes], Callable[..., Callable[[Tensor], Tensor]]]]
_FORMS = {
    "onnx": (_write_onnx, _read_onnx),
    "pt2": (_write_pt2, _read_pt2),
    "safetensors": (_write_safetensors, _read_safetensors),
}
