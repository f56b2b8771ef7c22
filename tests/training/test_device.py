"""What is asked of a GPU, with stand-ins where none is at hand."""

from types import SimpleNamespace

import pytest
import torch

from mlbench.records import provenance
from mlbench.training import crops
from mlbench.training.crops import ResidentCrops, StreamedCrops, open_crops
from mlbench.training.device import device_lost, out_of_memory

CUDA = torch.device("cuda")
ASSERTED = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be")


@pytest.mark.parametrize(
    ("error", "lost", "lacking"),
    [
        (ASSERTED, True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    ],
)
def test_a_lost_gpu_is_told_from_one_without_memory(
    error: Exception, lost: bool, lacking: bool
) -> None:
    assert (device_lost(error), out_of_memory(error)) == (lost, lacking)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch is older")
def test_torchs_own_type_of_a_lost_gpu_is_known() -> None:
    assert device_lost(torch.AcceleratorError("unspecified launch failure"))


class Pixels:
    """Stands in for the pixels of a cache: their size, and whether a GPU takes them."""

    nbytes = 300

    def __init__(self, taken: bool) -> None:
        self.taken = taken

    def to(self, _: torch.device) -> "Pixels":
        if not self.taken:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self


@pytest.mark.parametrize(
    ("free", "resident", "taken", "kind"),
    [
        (1000, 0, True, ResidentCrops),
        (1000, 200, True, StreamedCrops),  # 500 of 1000 bytes are more than 0.4
        (500, 0, True, StreamedCrops),  # more than half of what is free
        (1000, 0, False, StreamedCrops),  # another process was faster
    ],
)
def test_pixels_are_kept_on_a_gpu_within_one_budget(
    monkeypatch: pytest.MonkeyPatch, free: int, resident: int, taken: bool, kind: type
) -> None:
    pixels = Pixels(taken)
    cache = SimpleNamespace(data=pixels, image=lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1000))
    monkeypatch.setattr(crops.torch, "from_numpy", lambda data: data)
    assert isinstance(open_crops(cache, CUDA, resident), kind)  # pyright: ignore[reportArgumentType]


def test_the_peak_of_a_gpus_memory_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("forget"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_000_000)
    provenance.forget_peak_memory("cpu")
    assert calls == []
    provenance.forget_peak_memory("cuda")
    assert calls == ["forget"]
    assert provenance.peak_memory_mb("cuda") == 5
