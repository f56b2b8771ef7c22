"""The variables with which ``make test-kernels`` runs switch what they are there for."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"

PRODUCTS = {
    "ATEN_CPU_CAPABILITY": "torch.randn(97, 130).softmax(1)",
    "ONEDNN_MAX_CPU_ISA": "F.conv2d(torch.randn(2, 16, 20, 20), torch.randn(8, 16, 3, 3))",
    "MKL_CBWR": "torch.randn(97, 130).double() @ torch.randn(130, 53).double()",
    "OPENBLAS_CORETYPE": "rng.normal(size=(97, 130)) @ rng.normal(size=(130, 53))",
    "NPY_DISABLE_CPU_FEATURES": "np.exp(rng.normal(size=500).astype(np.float32))",
}
SETUP = """
import hashlib
import numpy as np
import torch
import torch.nn.functional as F
torch.set_num_threads(1)
torch.manual_seed(0)
rng = np.random.default_rng(0)
for value in {}:
    print(hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest())
"""


def kernels() -> dict[str, str]:
    text = MAKEFILE.read_text().replace("\\\n", " ")
    (words,) = re.findall(r"^KERNELS := (.*)$", text, re.MULTILINE)
    return dict(word.split("=") for word in words.split())


def digests(variables: dict[str, str]) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in PRODUCTS}
    code = SETUP.format(f"[{', '.join(PRODUCTS.values())}]")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=plain | variables, capture_output=True, check=True)
    return dict(zip(PRODUCTS, done.stdout.decode().split(), strict=True))


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    return digests({})


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are of x86")
@pytest.mark.parametrize("name", PRODUCTS)
def test_each_variable_switches_kernels(name: str, usual: dict[str, str]) -> None:
    assert digests({name: kernels()[name]})[name] != usual[name]


def test_every_variable_is_checked() -> None:
    assert set(kernels()) == set(PRODUCTS)
