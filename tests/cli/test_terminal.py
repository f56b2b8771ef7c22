"""What is seen on terminals of any width, what shells complete, and what scripts read."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from helpers.command import mlbench, run
from helpers.runs import PLAN, RUNS, record
from rich.console import Console

from mlbench.cli import main
from mlbench.cli._lines import ProgressLines
from mlbench.cli._live import LiveRuns, _Count
from mlbench.recipes.reading import recipe_names
from mlbench.registry import LOSSES
from mlbench.runs.executors.crew import Note, Phase
from mlbench.runs.executors.options import ExecutorOptions
from mlbench.runs.outcomes import Outcome, failed, with_baselines

SPECS = with_baselines(PLAN)
FIRST, SECOND = "softtriple seed 0", "npairs seed 0"


def outcome(number: int, *, reused: bool = False, where: str = "") -> Outcome:
    spec = SPECS[number]
    return Outcome(spec, record(RUNS[0]), Path("x.json"), reused=reused, where=where)


@pytest.fixture
def matrix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LiveRuns:
    """A display with so many columns in the middle of 15 runs, two of which are under way."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(request.param))
    made = LiveRuns(Path("out"), "cpu", ExecutorOptions(jobs=2))
    made._count = _Count(made.bars, SPECS, wide=made._wide)
    made._hear(Phase("decoding the train images", 50, 100))
    for number in range(9):
        made._count.finish(outcome(number))
    made._count.finish(failed(SPECS[9], Path("out"), "no memory"))
    made._hear(Phase("training softtriple, loss 1.25", 10, 100, FIRST, "process 1"))
    made._hear(Phase("training softtriple, loss 1.25", 30, 100, FIRST, "process 1"))
    made._hear(Phase("loading", 0, 0, SECOND, "process 2"))
    return made


def shown(matrix: LiveRuns, width: int, *, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system="standard")
    console.print(matrix.bars.get_renderable())
    return file.getvalue() if colour else re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())


@pytest.mark.parametrize("matrix", [100], indirect=True)
def test_a_wide_display_counts_runs_and_shows_loss_rate_and_time(matrix: LiveRuns) -> None:
    total, first, second = shown(matrix, 100).splitlines()
    assert total.startswith("runs 10/15: 2 running, 1 failed ")
    assert first.startswith("process 1: softtriple seed 0: training, loss 1.25 ")
    assert re.search(r"\d+ img/s +\d\d:\d\d\s*$", first)
    assert second.startswith("process 2: npairs seed 0: loading ")
    assert "img/s" not in total + second


@pytest.mark.parametrize("matrix", [100], indirect=True)
def test_what_a_process_did_goes_with_it(matrix: LiveRuns) -> None:
    matrix._hear(Note("its process was killed", "process 1"))
    total, second = shown(matrix, 100).splitlines()
    assert "1 running" in total
    assert "process 2" in second
    assert matrix._count is not None
    matrix._count.finish(replace(outcome(10), where="process 2"))
    assert shown(matrix, 100).startswith("runs 11/15: 1 failed ")


@pytest.mark.parametrize(
    ("matrix", "width", "needle"),
    [
        (80, 80, "process 1: softtriple seed 0: training, loss 1.25"),
        (40, 40, "softtriple seed 0: "),
        (30, 30, "softtriple "),
        (20, 20, "softtriple"),
    ],
    indirect=["matrix"],
)
def test_a_narrow_display_is_a_line_each_with_the_figures_whole(
    matrix: LiveRuns, width: int, needle: str
) -> None:
    lines = shown(matrix, width).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("runs 10/15")
    assert lines[1].startswith(needle)
    if width < 72:
        assert " 30%" in lines[1]
    if width >= 30:
        assert re.search(r"\d\d:\d\d\s*$", lines[1])


@pytest.mark.parametrize("matrix", [80], indirect=True)
def test_no_color_is_kept(matrix: LiveRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[\d;]*3\d")
    assert colours.search(shown(matrix, 80, colour=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search(shown(matrix, 80, colour=True))


@pytest.mark.parametrize("matrix", [80], indirect=True)
def test_runs_that_were_there_say_nothing_of_the_time_left(matrix: LiveRuns) -> None:
    count = _Count(matrix.bars, SPECS, wide=True)
    for number in range(12):
        count.finish(outcome(number, reused=True))
    task = matrix.bars.tasks[-1]
    assert task.completed == sum(spec.loss.name in ("softtriple", "npairs") for spec in SPECS[:12])
    assert task.speed is None


def test_quiet_leaves_the_table(photos: Path, tmp_path: Path) -> None:
    loud = run(photos, tmp_path / "out", "--losses", "npairs")
    lines = [line for line in loud.stderr.splitlines() if line.startswith("[")]
    assert [line[:5] for line in lines] == [f"[{number}/4]" for number in range(1, 5)]
    quiet = run(photos, tmp_path / "out", "--losses", "npairs,triplet", "-q")
    assert quiet.exit_code == 0
    assert quiet.stderr == ""
    assert quiet.stdout == mlbench("table", tmp_path / "out").stdout


def test_quiet_keeps_errors(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mlbench.training.trainer.Trainer.step", broken)
    result = run(photos, tmp_path / "out", "--losses", "npairs", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith("FAILED npairs seed 0: out of memory")


SHELLS = (BashComplete, ZshComplete, FishComplete)


def completed(shell: type[ShellComplete], *words: str) -> list[str]:
    """Return what a shell offers for the last word."""
    complete = shell(main, {}, "mlbench", "_MLBENCH_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("shell", SHELLS)
def test_names_are_completed(shell: type[ShellComplete]) -> None:
    assert completed(shell, "sh") == ["show"]
    assert completed(shell, "run", "--losses", "softt") == ["softtriple"]
    assert completed(shell, "run", "--losses", "npairs,trip")[0] == "npairs,triplet"
    assert completed(shell, "run", "--dataset", "fol") == ["folder:"]
    assert completed(shell, "run", "--backbone", "bn_i") == ["bn_inception"]
    assert completed(shell, "run", "--track", "ten") == ["tensorboard"]
    assert completed(shell, "tune", "--recipe", "fro") == ["frozen"]
    assert completed(shell, "diff", "blog", "pap") == ["paper"]
    assert completed(shell, "show", "multi") == ["multi_similarity"]
    assert completed(shell, "check", "npairs", "multi") == ["multi_similarity"]


def test_a_loss_is_not_offered_twice_and_a_recipe_may_be_a_file() -> None:
    offered = completed(BashComplete, "run", "--losses", "triplet,")
    assert "triplet,triplet" not in offered
    assert len(offered) == len([e for e in LOSSES.entries() if e.source == "built-in"]) - 1
    assert set(recipe_names()) == set(completed(BashComplete, "run", "--recipe", ""))
    complete = BashComplete(main, {}, "mlbench", "_MLBENCH_COMPLETE")
    (item,) = complete.get_completions(["run", "--recipe"], "mine/")
    assert (item.type, item.value) == ("file", "mine/")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_takes_no_torch_and_prints_its_script(shell: str) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "from mlbench.cli import main; main(prog_name='mlbench')"
    )
    words = "softtriple,trip"
    answer = {
        "COMP_WORDS": f"mlbench run --losses {words}",
        "COMP_CWORD": words if shell == "fish" else "3",
    }

    def asked(mode: str) -> str:
        environment = {**os.environ, **answer, "_MLBENCH_COMPLETE": f"{shell}_{mode}"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    printed = asked("complete")
    assert "softtriple,triplet_hard" in printed
    assert printed.endswith("False\n")
    if shell != "bash":  # which click asks for its version first
        assert f"_MLBENCH_COMPLETE={shell}_complete" in asked("source")


def read(*arguments: str, code: int = 0) -> object:
    result = mlbench(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("kind", ["losses", "datasets", "backbones", "recipes"])
def test_lists_are_read_by_scripts(kind: str) -> None:
    rows = read("list", kind)
    assert isinstance(rows, list)
    plain = mlbench("list", kind).stdout
    header = plain.split("\n", 1)[0].split()
    for row in rows:
        assert list(row) == header
        assert row["name"] in plain


def test_a_loss_is_read_by_scripts() -> None:
    facts = read("show", "softtriple")
    assert isinstance(facts, dict)
    assert facts["parameters"] == LOSSES.get("softtriple").defaults
    assert facts["loss"] == "softtriple"


def test_checks_are_read_by_scripts() -> None:
    rows = read("check", "npairs")
    assert isinstance(rows, list)
    assert {row["loss"] for row in rows} == {"npairs"}
    assert {row["result"] for row in rows} <= {"passed", "skipped"}


def test_differences_are_read_by_scripts_as_values() -> None:
    changed = read("diff", "blog", "paper")
    assert isinstance(changed, dict)
    assert changed["input.test_resize"] == {"a": 224, "b": 256}
    assert read("diff", "paper", "paper") == {}


def test_without_a_terminal_a_phase_is_a_line_and_then_one_a_minute() -> None:
    now, said = [0.0], []
    lines = ProgressLines(said.append, lambda: now[0])
    for seconds in range(0, 150, 10):
        now[0] = float(seconds)
        lines.show("process 1", f"training a, loss {150 - seconds}", seconds, 150)
        lines.show("process 2", "loading", 0, 0)
    lines.show("process 1", "evaluating", 0, 0)
    assert said == [
        "training a ...",
        "loading ...",
        "training a, loss 90 (40%) ...",
        "loading ...",
        "training a, loss 30 (80%) ...",
        "loading ...",
        "evaluating ...",
    ]


def test_a_log_tells_what_is_under_way(photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "out", "--losses", "npairs")
    lines = result.stderr.splitlines()
    assert "features of the test images ..." in lines
    assert "training npairs ..." in [line.rpartition(": ")[2] for line in lines]
    assert "\x1b" not in result.stderr
