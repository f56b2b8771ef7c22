"""No state of the process reaches a figure, and all of it is left as it was."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.settings import QUICK

import mlbench
from mlbench.contract import check_loss
from mlbench.records import store
from mlbench.system.known_state import known_state

State = Callable[[], AbstractContextManager[Any]]


def setting(read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> State:
    """Return a context that sets a part of the state and demands to find it at its end."""

    @contextmanager
    def state() -> Iterator[None]:
        before = read()
        write(value)
        assert read() == value, "the test needs another state"
        try:
            yield
            assert read() == value, "not as it was"
        finally:
            write(before)

    return state


@contextmanager
def nested(*states: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter contexts of torch that show whether they are still as they were."""
    seen = [torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.get_default_device]
    seen.append(lambda: torch.is_autocast_enabled("cpu"))
    seen.append(torch.is_autocast_cache_enabled)
    with states[0]:
        before = [read() for read in seen]
        yield
        assert [read() for read in seen] == before, "not as it was"


@contextmanager
def drawn_from_generators() -> Iterator[None]:
    """Use up some draws, and demand that the next ones are those that follow."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    following = torch.get_rng_state().clone(), np.random.get_state(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), following[0])
    assert repr(np.random.get_state()) == repr(following[1])
    assert random.getstate() == following[2]


def numpy_raises() -> AbstractContextManager[Any]:
    return nested(np.errstate(all="raise"))


cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
STATES: dict[str, State] = {
    "float64": setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "float16": setting(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "no grad": lambda: nested(torch.no_grad()),
    "set_grad_enabled": setting(torch.is_grad_enabled, torch.set_grad_enabled, False),
    "inference mode": lambda: nested(torch.inference_mode()),
    "device": lambda: nested(torch.device("meta")),
    "default device": setting(
        torch.get_default_device, torch.set_default_device, torch.device("meta")
    ),
    "autocast": lambda: nested(torch.autocast("cpu", torch.bfloat16)),
    "autocast without cache": lambda: nested(torch.autocast("cpu", cache_enabled=False)),
    "deterministic": setting(
        torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2
    ),
    "anomalies": lambda: nested(torch.autograd.detect_anomaly(check_nan=True)),
    "matmul precision": setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "allow_tf32": setting(
        lambda: matmul.allow_tf32, lambda v: setattr(matmul, "allow_tf32", v), True
    ),
    "no cudnn tf32": setting(
        lambda: cudnn.allow_tf32, lambda v: setattr(cudnn, "allow_tf32", v), False
    ),
    "cudnn benchmark": setting(
        lambda: cudnn.benchmark, lambda v: setattr(cudnn, "benchmark", v), True
    ),
    "no mkldnn": setting(
        lambda: torch.backends.mkldnn.enabled,
        lambda v: setattr(torch.backends.mkldnn, "enabled", v),
        False,
    ),
    "no attention kernels": lambda: nested(torch.nn.attention.sdpa_kernel([])),
    "numpy raises": numpy_raises,
    "forward mode": lambda: nested(torch.autograd.forward_ad.dual_level()),
    "generators": drawn_from_generators,
}
QUIET = "ignore:Anomaly Detection has been enabled"
ALL = pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 8)
    return rng.normal(size=(9, 6))[labels] + rng.normal(size=(72, 6)), labels


def figures(photos: Path, loss: str, **settings: Any) -> tuple[Any, ...]:
    record = mlbench.run(
        loss, dataset=f"folder:{photos}", settings=QUICK | settings, device="cpu", seed=3
    )
    curve = [row.loss for row in record.curve]
    return record.spec.run_id, record.status, record.metrics, curve, record.loss_report


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_state_reaches_a_run(photos: Path, precision: str) -> None:
    settings = {"training.precision": precision}
    expected = figures(photos, "margin", **settings)
    for name, state in STATES.items():
        with state():
            assert figures(photos, "margin", **settings) == expected, name


@pytest.mark.filterwarnings(QUIET)
@ALL
def test_no_state_reaches_an_evaluation(state: State, cloud: tuple[Any, Any]) -> None:
    expected = mlbench.evaluate(*cloud)
    with state():
        assert mlbench.evaluate(*cloud) == expected


@pytest.mark.filterwarnings(QUIET)
@ALL
def test_no_state_reaches_a_check(state: State) -> None:
    with state():
        results = check_loss("softtriple")
    assert [r.name for r in results if not r.passed] == []


@pytest.mark.filterwarnings(QUIET)
@ALL
def test_a_loss_is_built_to_be_trained(state: State) -> None:
    with state() if state is not STATES["generators"] else nullcontext():
        loss = mlbench.build_loss("softtriple", 4, 3)
    for parameter in loss.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"
        assert not parameter.is_inference()
        assert parameter.requires_grad
    x = torch.nn.functional.normalize(torch.randn(4, 3))
    loss(x, torch.arange(4)).backward()


@pytest.mark.filterwarnings(QUIET)
def test_no_state_reaches_an_embedding(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset": f"folder:{photos}", "settings": QUICK, "device": "cpu"}
    record = mlbench.run("softtriple", out=tmp_path, keep_model=True, **options)
    path = store.record_path(tmp_path, record.spec)
    images = sorted((photos / "class4").iterdir())
    expected = mlbench.load_model(path, device="cpu").embed(images)
    for name, state in STATES.items():
        with state():
            embeddings = mlbench.load_model(path, device="cpu").embed(images)
        assert torch.equal(embeddings, expected), name


@known_state(seed=1)
def interrupted() -> None:
    torch.rand(1)
    raise KeyboardInterrupt


def test_the_state_comes_back_after_an_error() -> None:
    with (
        STATES["float64"](),
        STATES["no grad"](),
        STATES["matmul precision"](),
        STATES["generators"](),
    ):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        with pytest.raises(mlbench.MlbenchError):
            mlbench.build_loss("softtriple", 4, 3, centers_per_class=0)


def test_denormals_are_kept() -> None:
    tiny = torch.tensor(5e-324, dtype=torch.float64)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such switch")
    try:
        with known_state():
            assert float(tiny * 1.0) == 5e-324
        assert float(tiny * 1.0) == 0
    finally:
        torch.set_flush_denormal(False)


MIXED = [
    "pass",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.cudnn.rnn.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    *(f"torch.set_float32_matmul_precision('{each}')" for each in ("high", "medium")),
]
SCRIPT = """
import torch, mlbench
from mlbench.system.known_state import known_state

NAMES = [("generic", "all")] + [(b, o) for b in ("cuda", "mkldnn")
         for o in ("all", "matmul", "conv", "rnn")]

def run(precision):
    settings = {quick} | {{"training.precision": precision}}
    record = mlbench.run("softtriple", dataset="folder:{photos}", settings=settings, device="cpu")
    return record.metrics, [row.loss for row in record.curve]

def state():
    found = [torch._C._get_fp32_precision_getter(*each) for each in NAMES]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError as error:
            found.append("mixed")
    return found

def begin():
    for each in NAMES:
        torch._C._set_fp32_precision_setter(*each, "none")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True

run("tf32")
expected = run("fp32")
for first in {mixed}:
    for second in {mixed}:
        begin()
        exec(first)
        exec(second)
        before = state()
        for precision in ("fp32", "tf32", "fp32"):
            with known_state(precision):
                inside, tf32 = state(), precision == "tf32"
            assert inside[1:5] == ["none"] + (["tf32"] * 3 if tf32 else ["ieee", "none", "none"])
            assert inside[-2:] == (["high", True] if tf32 else ["highest", False])
            assert state() == before, (first, second, before, state())
    begin()
    exec(first)
    assert run("fp32") == expected, first
"""


@pytest.mark.skipif(
    not hasattr(torch._C, "_set_fp32_precision_setter"), reason="needs torch 2.9 or later"
)
def test_precisions_set_by_others_harm_no_run(photos: Path) -> None:
    """Torch's older and newer switches, mixed; in a process of its own, which they may spoil."""
    script = SCRIPT.format(mixed=MIXED, photos=photos, quick=QUICK)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
