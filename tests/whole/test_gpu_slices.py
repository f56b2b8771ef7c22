"""The slices in which benchmarks/gpu works, with steps that take a moment."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
WAITS = "import time; time.sleep(60)"


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("steps", "slices"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return sys.modules["slices"]


def test_a_slice_goes_on_where_the_last_one_stopped(slices: ModuleType, tmp_path: Path) -> None:
    def step(name: str, code: str, *, resumes: bool = False, minutes: float = 0.0) -> object:
        command = (sys.executable, "-S", "-c", code)
        return slices.Step(name, "", command, minutes=minutes, resumes=resumes)

    written = f"open({str(tmp_path / 'made')!r}, 'a').write('x')"
    steps = [
        step("good", written),
        step("bad", "raise SystemExit(3)"),
        step("long", "", minutes=60),
        step("study", WAITS, resumes=True),
    ]
    marks, logs = slices.Marks(tmp_path / "marks"), tmp_path / "logs"
    for number in (1, 2):
        slices.make_slice(steps, marks, logs, time.monotonic() + 1.0)
        study = marks.read(steps[3])
        assert (study.state, study.slices) == ("stopped", number)
    assert (tmp_path / "made").read_text() == "x"
    assert (marks.read(steps[0]).state, marks.read(steps[1]).exit) == ("done", 3)
    assert marks.read(steps[1]).state == "failed"
    assert marks.read(steps[2]) is None
    assert [marks.open(each) for each in steps] == [False, False, True, True]
    slices.save_state(tmp_path, tmp_path / "state.tar.gz")
    slices.load_state(tmp_path / "state.tar.gz", tmp_path / "fresh")
    there = slices.Marks(tmp_path / "fresh" / "marks")
    assert [there.read(each) for each in steps] == [marks.read(each) for each in steps]


def test_what_cannot_go_on_is_tried_twice(slices: ModuleType, tmp_path: Path) -> None:
    step = slices.Step("loop", "", (sys.executable, "-S", "-c", WAITS))
    first = slices.make(step, None, tmp_path / "log", 0.2)
    assert first.state == "stopped"
    assert slices.make(step, first, tmp_path / "log", 0.2).state == "failed"


@pytest.mark.parametrize("tiny", [False, True])
def test_every_step_names_a_script_that_is_there(
    slices: ModuleType, tmp_path: Path, tiny: bool
) -> None:
    plan = sys.modules["steps"].Plan(tmp_path, "cuda", tiny, 4, ("--dataset", "cub200"))
    steps = plan.steps()
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert {"tests-gpu", "check-search", "kmeans", "study", "factorial"} <= set(names)
    for step in steps:
        assert Path(step.command[1]).is_file() or step.command[1] == "-m"
    json.dumps([step.command for step in steps])
    without = sys.modules["steps"].Plan(tmp_path, "cuda", tiny, 4, ()).steps()
    assert "study" not in {step.name for step in without}
