"""How class vectors start.

Only their direction counts in most losses, yet their length matters to an optimiser such as Adam,
whose first step changes every entry by the learning rate: at 1e-2 it turns vectors of standard
deviation 1 by 0.6 degrees, those of SoftTriple (100 classes, 10 centres each) by 29, and those of
insightface (standard deviation 0.01, trained by SGD there) by 45.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mlbench.errors import MlbenchError

NAMES = ("kaiming-uniform", "kaiming-normal", "xavier-normal", "caffe-xavier", "linear", "unit")
_NORMAL = "normal-"


def class_vectors(*shape: int, init: str) -> nn.Parameter:
    """Return class vectors of the given shape, the last axis their length ``D``.

    Args:
        *shape: ``(C, D)``, or ``(C, K, D)`` for ``K`` vectors a class; ``n`` is their number.
        init: ``kaiming-uniform`` (entries up to 1 / sqrt(n)), ``kaiming-normal`` (standard
            deviation sqrt(2 / n)), ``xavier-normal`` (sqrt(2 / (n + D))), ``caffe-xavier`` (up to
            sqrt(3 / D)), ``linear`` (up to 1 / sqrt(D), as ``torch.nn.Linear``), ``unit`` (entries
            up to 1, then of unit length), or ``normal-STD`` (standard deviation STD).

    Raises:
        MlbenchError: unknown ``init``.
    """
    count, dim = math.prod(shape[:-1]), shape[-1]
    vectors = torch.empty(shape)
    deviations = {
        "kaiming-normal": math.sqrt(2 / count),
        "xavier-normal": math.sqrt(2 / (count + dim)),
    }
    bounds = {
        "kaiming-uniform": 1 / math.sqrt(count),
        "caffe-xavier": math.sqrt(3 / dim),
        "linear": 1 / math.sqrt(dim),
        "unit": 1.0,
    }
    if init in bounds:
        nn.init.uniform_(vectors, -bounds[init], bounds[init])
    else:
        nn.init.normal_(vectors, std=deviations.get(init) or _deviation(init))
    return nn.Parameter(F.normalize(vectors, dim=-1) if init == "unit" else vectors)


def _deviation(init: str) -> float:
    try:
        std = float(init.removeprefix(_NORMAL)) if init.startswith(_NORMAL) else math.nan
    except ValueError:
        std = math.nan
    if not 0 < std < math.inf:
        raise MlbenchError(
            f"unknown init '{init}'; use {', '.join(NAMES)}, or normal-STD such as normal-0.01"
        )
    return std
