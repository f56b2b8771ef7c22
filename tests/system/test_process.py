"""What importing mlbench sets, in whichever process: as seen from the process itself."""

import ctypes
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlbench.runs.executors import ray
from mlbench.system import process

PROBE = """
import json, os, resource, sys
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * 2**26  # 16,384 pages, freed at once
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({"spins": os.environ.get("GOMP_SPINCOUNT"), "faults": faults,
                  "torch": "torch" in sys.modules}), flush=True)
"""
PAGES = 2**26 // 4096
GLIBC = process._has_glibc() and sys.platform == "linux"


def probed(code: str, **variables: str) -> dict[str, Any]:
    names = ("GOMP_SPINCOUNT", "GLIBC_TUNABLES", process.VARIABLE, *process._USERS_OWN)
    environment = {k: v for k, v in os.environ.items() if k not in names} | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def is_set_up(facts: dict[str, Any]) -> bool:
    kept = facts["faults"] < 3 * PAGES if GLIBC else True
    return facts["spins"] == "1000" and kept


CHILD = f"""
from mlbench.runs.executors.local import _Child
class Probe:
    def __reduce__(self):  # run where it is unpickled
        return exec, ({PROBE!r},)
if __name__ == "__main__":
    child = _Child(0, 1, None)
    child.pipe.send(Probe())
    child.process.join()
"""


@pytest.mark.parametrize(
    "code",
    [
        "import mlbench",
        "from mlbench.losses import softtriple",
        "import mlbench.cli",
        f"import pickle; pickle.loads({pickle.dumps(ray._make)!r})",  # as a Ray worker gets it
    ],
)
def test_whatever_imports_mlbench_is_set_up(code: str) -> None:
    assert is_set_up(probed(f"{code}\n{PROBE}"))


def test_it_is_set_up_before_torch_is_loaded() -> None:
    facts = probed(f"import mlbench\n{PROBE}")
    assert is_set_up(facts)
    assert not facts["torch"]


def test_a_process_of_jobs_is_set_up(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    names = ("GOMP_SPINCOUNT", process.VARIABLE)
    environment = {k: v for k, v in os.environ.items() if k not in names}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert is_set_up(json.loads(done.stdout.splitlines()[0]))


def test_memory_is_kept_where_torch_was_loaded_first() -> None:
    assert is_set_up(probed(f"import torch, mlbench\n{PROBE}"))


RELEASE = """
import json
import mlbench
from mlbench.system.process import memory_released

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

sizes = [resident()]
with memory_released():
    blocks = [b"x" * 2**22 for _ in range(50)]
    kept = blocks[::10]
    del blocks
    sizes.append(resident())
print(json.dumps({"mb": [(size - sizes[0]) / 1024 for size in [*sizes[1:], resident()]]}))
"""


@pytest.mark.skipif(not GLIBC, reason="no glibc")
def test_memory_kept_within_a_block_is_given_back_at_its_end() -> None:
    within, after = probed(RELEASE)["mb"]
    assert within > 190
    assert after < 30  # five of the fifty blocks of 4 MB are in use


@pytest.mark.skipif(not GLIBC, reason="no glibc")
def test_the_variable_leaves_the_process_as_it_is() -> None:
    facts = probed(f"import mlbench\n{PROBE}", MLBENCH_PROCESS_SETTINGS="0")
    assert facts["spins"] is None
    assert facts["faults"] > 9 * PAGES


@pytest.mark.skipif(not GLIBC, reason="no glibc")
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_MAX_": "65536"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_the_user_has_set_is_left_alone(variables: dict[str, str]) -> None:
    facts = probed(f"import mlbench\n{PROBE}", GOMP_SPINCOUNT="7", **variables)
    assert facts["spins"] == "7"
    assert facts["faults"] > 9 * PAGES


def test_it_is_harmless_where_the_c_library_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("called into a library that is not glibc")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(os, "confstr", lambda _: (_ for _ in ()).throw(ValueError("unknown name")))
    process.set_up()  # musl, macOS
    monkeypatch.setattr(os, "confstr", lambda _: None)
    process.set_up()
    monkeypatch.delattr(os, "confstr")
    process.set_up()  # Windows


def test_it_is_harmless_where_mallopt_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_has_glibc", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    process.set_up()
