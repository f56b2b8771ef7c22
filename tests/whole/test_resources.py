"""What is missing or full: one line that says so, and nothing half-written."""

import ast
import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.command import said
from helpers.disks import disk_of
from helpers.runs import RUNS, record
from helpers.settings import QUICK
from PIL import Image

import mlbench as package
from mlbench.cli import main
from mlbench.comparison.comparison import compare
from mlbench.datasets import folder
from mlbench.datasets.pixels import PixelCache, open_cache
from mlbench.errors import DataWarning, MlbenchError
from mlbench.records import store
from mlbench.system.files import cache_dir, expanded, remove_stale
from mlbench.tables.layout import sheets
from mlbench.tables.sheet import Line, Sheet
from mlbench.tables.text import to_list, to_text
from mlbench.training.crops import center_boxes, open_crops

SET = [f"--set={key}={value}" for key, value in QUICK.items()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for spec in RUNS:
        store.save(tmp_path / "results", record(spec, 0.49 + spec.seed / 100), None)
    return tmp_path / "results"


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run(photos: Path, out: Path) -> Result:
    return invoke("run", f"--dataset=folder:{photos}", f"--out={out}", "--losses=npairs", *SET)


def refusal(result: Result) -> str:
    """Return the one line of a refusal."""
    assert result.exit_code == 2, result.output
    (line,) = said(result)
    return line


def contents(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]


def test_disk_full_while_pixels_are_written(photos: Path, tmp_path: Path, cache: Path) -> None:
    with disk_of(5000):
        line = refusal(run(photos, tmp_path / "out"))
    assert line.startswith(f"Error: cannot write {cache}/pixels/20px-")
    assert line.endswith("File too large; make room there or choose another folder")
    assert contents(cache) == []
    assert not (tmp_path / "out").exists()
    assert run(photos, tmp_path / "out").exit_code == 0


def test_disk_full_while_a_record_is_written(photos: Path, tmp_path: Path, cache: Path) -> None:
    dataset = folder.load(str(photos), None)
    for images, name in ((dataset.train, "train"), (dataset.test, "test")):
        open_cache(images, 20, f"{dataset.fingerprint}-{name}")
    with disk_of(100):
        result = run(photos, tmp_path / "out")
    assert result.exit_code != 0
    assert "File too large; make room there or choose another folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").rglob("*.json"))
    assert not list((tmp_path / "out").rglob("*.npz"))


def test_results_folder_that_cannot_be_made(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(run(photos, tmp_path / "file" / "out"))
    assert "cannot write to the results folder" in line
    assert line.endswith("choose another one with --out")


def test_read_only_results_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    if os.access(tmp_path / "out", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "cannot write to the results folder" in refusal(run(photos, tmp_path / "out"))


@pytest.mark.parametrize("home", ["/proc/nohome", None])
def test_no_home_folder(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("MLBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    else:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user whom the system does not know
    with pytest.raises(MlbenchError, match="set MLBENCH_CACHE to a folder that can be written"):
        cache_dir("pixels")


def test_unknown_home_in_a_path(photos: Path) -> None:
    with pytest.raises(MlbenchError, match="no home folder for ~nobody_knows/x; use the full"):
        expanded("~nobody_knows/x")
    result = invoke("run", "--dataset=folder:~nobody_knows/x")
    assert "no home folder for ~nobody_knows/x" in refusal(result)


def test_links_in_a_circle(tmp_path: Path) -> None:
    for name in ("round", "round.toml"):
        (tmp_path / name).symlink_to(tmp_path / name)
    line = refusal(invoke("run", f"--dataset=folder:{tmp_path}/round"))
    assert "is not a folder" in line
    line = refusal(invoke("run", f"--recipe={tmp_path}/round.toml"))
    assert "Too many levels of symbolic links" in line


def test_no_folder_for_temporary_files(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    store.check_writable(tmp_path / "out")
    store.save(tmp_path / "out", record(RUNS[0]), None)
    assert cache_dir("pixels").is_dir()


def opened(photos: Path) -> PixelCache:
    return open_cache(folder.load(str(photos), None).train, 20, "key")


@pytest.mark.parametrize("processors", [1, None])
def test_one_processor(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, processors: int | None
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert len(opened(photos)) == 24


def test_no_decoding_process_that_could_be_killed() -> None:
    """Images are decoded by threads: nothing needs shared memory, no worker can be lost alone."""
    for path in Path(package.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.startswith(("torch.utils.data", "torch.multiproc")) for n in names)
            assert "multiprocessing.shared_memory" not in names


def test_cache_replaced_while_in_use(photos: Path, cache: Path) -> None:
    pixels = opened(photos)
    before = pixels.image(23).copy()
    (path,) = contents(cache)
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)
    np.testing.assert_array_equal(pixels.image(23), before)


def test_cache_cut_off_while_in_use(photos: Path, cache: Path) -> None:
    pixels = opened(photos)
    crops = open_crops(pixels, torch.device("cpu"))
    boxes = center_boxes(pixels.heights[23:], pixels.widths[23:], 16)
    assert crops(np.array([23]), boxes, 16).any()
    (path,) = contents(cache)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        MlbenchError, match="cache was truncated while in use; run the same command"
    ):
        crops(np.array([23]), boxes, 16)
    assert len(opened(photos)) == 24
    assert opened(photos).image(23).any()


def test_clock_set_back(
    photos: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    made = package.run("npairs", dataset=f"folder:{photos}", settings=QUICK, out=tmp_path / "out")
    assert min(made.cost.seconds.values()) >= 0
    assert min(row.seconds for row in made.curve) >= 0
    assert made.cost.images_per_second > 0


def test_files_from_the_future_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ".a.0123abcd-1-1.tmp"
    path.touch()
    later = time.time() + 10 * 24 * 3600
    os.utime(path, (later, later))
    remove_stale(tmp_path)
    assert path.exists()


def shell(
    results: Path, redirection: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Print the table as a program of its own, so that Python's last flush is part of it."""
    command = f'"{sys.executable}" -m mlbench table "{results}" {redirection}'
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=env, timeout=60)


def test_output_closed_by_its_reader(results: Path) -> None:
    done = shell(results, "| true; exit ${PIPESTATUS[0]}")
    assert done.returncode in (0, 1)  # 0 if the reader was slow to go
    assert done.stderr == b""


def test_output_closed_from_the_start(results: Path) -> None:
    assert shell(results, ">&-").stderr == b""


def test_output_to_a_full_disk(results: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(results, ">/dev/full")
    assert done.returncode == 2
    assert done.stderr == b"Error: input or output failed: No space left on device\n"


def test_output_in_ascii(results: Path) -> None:
    done = shell(results, "", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    text = done.stdout.decode("ascii")
    assert "50.0 +- 1.6" in text
    assert "---  ---" in text
    assert "softtriple" in text


@pytest.mark.parametrize("styled", [False, True])
@pytest.mark.parametrize("columns", [1, 20, 60, 80, 100, 200])
def test_terminals_of_any_width_lose_no_figure(results: Path, columns: int, styled: bool) -> None:
    (given,) = sheets(compare(store.read_results(results).records))
    lines = click.unstyle(to_text(given, columns, styled=styled)).splitlines()
    rules = {line for line in lines if line.startswith("──")}
    assert len(rules) == (columns >= 80)  # below that, paragraphs
    assert all(len(line) <= columns for line in lines) or columns < 80
    assert not any(line != line.rstrip() for line in lines)
    printed = "".join("".join(lines).split())
    for line in given.lines:
        for cell in line.cells:
            assert all(word in printed for word in cell.split())


def test_wide_characters_keep_the_columns_apart() -> None:
    rows = (("日本語", "1.0"), ("a", "22.5 ± 0.3"))
    lines = tuple(Line(row, (False, row[0] == "a")) for row in rows)
    given = Sheet("t", ("loss", "R@1"), lines, (), legend="best")
    assert to_text(given, 40, styled=False).splitlines() == [
        *("t", "loss            R@1", "──────  ───────────"),
        *("日本語         1.0", "a       22.5 ± 0.3*", "*: best"),
    ]
    styled = to_text(given, 40, styled=True)
    assert "\x1b[1m22.5 ± 0.3\x1b[0m\n" in styled
    assert "bold: best" in styled


def test_a_header_of_several_lines_stands_on_the_rule() -> None:
    given = Sheet("", ("loss", "behind in R@1"), (Line(("a", "1.0"), (False, False)),), ())
    assert to_text(given, 14, styled=False).splitlines() == [
        *("      behind", "loss  in R@1", "────  ──────", "a        1.0")
    ]


def test_names_are_cut_last() -> None:
    cells = ("triplet_distance_weighted (margin=0.2)", "48.0 ± 0.5", "9 (1 diverged)")
    given = Sheet("", ("loss", "R@1", "n"), (Line(cells, (False,) * 3),), ())
    assert to_text(given, 55, styled=False).splitlines()[2:] == [
        "triplet_distance_weighted    48.0 ± 0.5  9 (1 diverged)",
        "(margin=0.2)",
    ]
    assert to_text(given, 44, styled=False).splitlines()[2:] == [
        "triplet_distance_weighted    48.0       9 (1",
        "(margin=0.2)                ± 0.5  diverged)",
    ]
    assert to_text(given, 36, styled=False).splitlines()[2:] == [
        "triplet_distance_w   48.0       9 (1",
        "eighted             ± 0.5  diverged)",
        "(margin=0.2)",
    ]


def test_a_list_of_short_words_is_folded() -> None:
    rows = [("a", "an apple a day"), ("b", "or two")]
    assert to_list(("x", "what"), rows, 10).splitlines() == [
        *("x  what", "─  ───────", "a  an", "   apple a", "   day", "b  or two")
    ]


def shown(results: Path, columns: int, terminal: str) -> str:
    """Return what a terminal is sent by ``mlbench table``."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": terminal}
    command = [sys.executable, "-m", "mlbench", "table", str(results)]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=env, timeout=60)
    os.close(theirs)
    printed = os.read(ours, 65536).decode()
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")
    return printed


def test_a_terminal_of_20_columns(results: Path) -> None:
    printed = shown(results, 20, "xterm")
    assert "softtriple" in printed
    assert "50.0 ± 1.6" in printed


def test_bold_is_a_star_where_a_terminal_knows_no_bold(results: Path) -> None:
    assert "\x1b[1m50.0 ± 1.6\x1b[0m" in shown(results, 120, "xterm")
    plain = shown(results, 120, "dumb")
    assert "50.0 ± 1.6*" in plain
    assert "\x1b" not in plain


def test_a_link_to_nothing_is_no_image(tmp_path: Path) -> None:
    for name in "abcd":
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (ord(name), i, 0)).save(tmp_path / name / f"{i}.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")  # would be read for ever
    with pytest.warns(DataWarning, match=r"1 not read \(pipes, sockets or devices: 1\)"):
        assert len(folder.load(str(tmp_path), None).train) == 4
