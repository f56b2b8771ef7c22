"""Files of others are data: nothing in them is executed, nothing in their names takes effect."""

import ast
import csv
import html.parser
import io
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.runs import RUNS, record
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbench.backbones.weights import read_state
from mlbench.cli import main
from mlbench.cli._common import print_list
from mlbench.comparison.comparison import Comparison, compare
from mlbench.datasets import glyphs
from mlbench.errors import MlbenchError, printable
from mlbench.records import scores, store
from mlbench.tables.escaping import escape_csv, escape_latex, escape_markdown
from mlbench.tables.formats import DATA_FORMATS, SHEET_FORMATS, render
from mlbench.tables.layout import sheets
from mlbench.tables.text import to_text
from mlbench.training.features import _load

ROOT = Path(__file__).parents[2]
SOURCES = [
    p for d in ("mlbench", "benchmarks", "examples", "stress") for p in (ROOT / d).rglob("*.py")
]
FORMATS = (*SHEET_FORMATS, *DATA_FORMATS)

HOSTILE = (
    "=HYPERLINK('http://x','y')",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "a\nb\r=1",
    "‮backwards",
    "<script src=//x></script>",
    "<img src=x onerror=y>",
    "[link](http://x) ![i](http://x)",
    "`code` **bold** |cell|",
    "[2cm] \\input{/etc/passwd} $x$ 100% & # _ ~ ^ {",
    "* \\write18{rm}",
    "[bold red]rich[/]",
    "\udcff not unicode",
    "~~gone~~ @everyone me@example.org $x$ &lt; www.example.org http://x # !",
    "a\rb\u200bc\u2066d\u3164\ufe0f",
)


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return all calls in a file with what is called, such as ``torch.load``."""
    tree = ast.parse(path.read_text())
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    values = [k.value for k in call.keywords if k.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def test_no_call_executes_what_a_file_holds() -> None:
    for path in SOURCES:
        for name, call in calls(path):
            where = f"{path}:{call.lineno}: {name}"
            if name == "torch.load":
                assert keyword(call, "weights_only") is True, where
            if name in ("np.load", "numpy.load", "np.save", "numpy.save"):
                assert keyword(call, "allow_pickle") is False, where
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen"), where
            assert keyword(call, "shell") is not True, where


def test_nothing_imports_pickle() -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"}
    for path in SOURCES:
        imported = re.findall(r"^\s*(?:import|from) +(\w+)", path.read_text(), re.MULTILINE)
        assert not unsafe & set(imported), path


class Bomb:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def fuse(tmp_path: Path) -> Path:
    """The file that must not appear."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    return tmp_path / "exploded"


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_hold_code(tmp_path: Path, fuse: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": Bomb(fuse)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(MlbenchError, match="is not a weights file; it must contain a plain state"):
        read_state(path)
    assert not fuse.exists()


def objects(fuse: Path) -> np.ndarray:
    return np.array([[Bomb(fuse)]], dtype=object)


def test_features_that_hold_code(tmp_path: Path, fuse: Path) -> None:
    np.save(tmp_path / "features.npy", objects(fuse), allow_pickle=True)
    assert _load(tmp_path / "features.npy", 1) is None
    (tmp_path / "features.npy").write_bytes(pickle.dumps(Bomb(fuse)))
    assert _load(tmp_path / "features.npy", 1) is None
    assert not fuse.exists()


def test_pixels_that_hold_code(tmp_path: Path, fuse: Path) -> None:
    np.savez(tmp_path / "glyphs.npz", pixels=objects(fuse))
    assert glyphs._read_cache(tmp_path / "glyphs.npz") is None
    assert not fuse.exists()


def test_query_results_that_hold_code(tmp_path: Path, fuse: Path) -> None:
    path = store.save(tmp_path, record(RUNS[0]), None)
    np.savez(path.with_suffix(".npz"), ap_at_r=objects(fuse), hits=objects(fuse), ks=[1])
    assert scores.query_scores(path, "R@1") is None
    assert not fuse.exists()


def compared(name: str) -> list[Comparison]:
    """Compare records whose loss, data set, parameters and hardware all have this name."""
    facts = replace(record(RUNS[0]).dataset, name=name)
    place = replace(record(RUNS[0]).provenance, hardware=name, mlbench=name)
    params: dict[str, bool | int | float | str] = {name: name}
    made = [
        record(spec, 0.5, loss=name, params=params, dataset=facts, provenance=place)
        for spec in RUNS[:2]
    ]
    more = record(RUNS[2], 0.7, dataset=facts)
    return compare({Path(f"{i}.json"): each for i, each in enumerate([*made, more])})


class Tags(html.parser.HTMLParser):
    """Collects elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes.update(attrs)


def check_terminal(text: str) -> None:
    assert all(c == "\n" or c.isprintable() for c in text)


def check_html(text: str) -> None:
    tags = Tags(text)
    known = {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong"}
    known |= {"details", "summary", "dl", "dt", "dd"}
    assert tags.found <= known
    assert tags.attributes <= {("scope", "col")}


def check_csv(text: str) -> None:
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1
    for cell in (cell for row in rows for cell in row):
        if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
            float(cell)  # a number is no formula


def check_latex(text: str) -> None:
    """Check that outside of comments only known commands and their arguments take effect."""
    known = (
        r"\\(begin|end)\{tabular\}|\{lr*\}|\\(top|mid|bottom)rule|\\textbf\{|\\text(backslash|"
        r"asciitilde|asciicircum|less|greater)\{\}|\$\\(pm|dagger)\$|\\[&%$#_{}]| & | \\\\$|^\{\}"
    )
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        assert not line.startswith(("[", "*"))
        rest = re.sub(known, "", line).replace("}", "")
        assert not set(rest) & set("\\&%$#_{~^"), line


def check_markdown(text: str) -> None:
    """Check that each row of a table has as many cells as its header, and nothing takes effect."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.sub(r"\\.", "", row).split("|")) for row in rows}
    assert len(bars) == 1
    plain = re.sub(r"\\.|\*\*", "", "".join(row for row in rows if not row.startswith("|--")))
    assert not set(plain) & set("<>[]`*_~$&#!\r\u202e\u200b")
    assert not re.search(r"(?<![A-Za-z0-9])@|@[\w-]+\.\w|://|www\.", plain)


CHECKS = {"html": check_html, "csv": check_csv, "latex": check_latex, "markdown": check_markdown}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_take_no_effect_in_any_format(name: str) -> None:
    comparisons = compared(name)
    for form in FORMATS:
        text = render(comparisons, form)
        check_terminal(text)
        CHECKS.get(form, check_terminal)(text)
    json.loads(render(comparisons, "json"))
    for each in sheets(comparisons):
        check_terminal(re.sub(r"\x1b\[[0-3]m", "", to_text(each, 300, styled=True)))


@settings(max_examples=12, deadline=None)
@given(st.text(max_size=30))
def test_any_name_takes_no_effect_in_any_format(name: str) -> None:
    comparisons = compared(name)
    for form in FORMATS:
        text = render(comparisons, form)
        check_terminal(text)
        CHECKS.get(form, check_terminal)(text)


def test_negative_numbers_stay_numbers() -> None:
    metrics = record(RUNS[0]).metrics | {"NMI": -1e-10}
    text = render(compare({Path("x"): record(RUNS[0], metrics=metrics)}), "csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert float(row["NMI"]) == -1e-10


def test_escapes() -> None:
    assert escape_csv("-5") == "'-5"
    assert escape_csv("5-") == "5-"
    assert escape_csv("＝1") == "'＝1"
    assert escape_latex("[1] a_b") == r"{}[1] a\_b"
    assert escape_latex("a [1]") == "a [1]"
    assert escape_csv("\u200b=1") == "' =1"
    assert escape_markdown("a|b\n<c>") == r"a\|b \<c\>"
    assert escape_markdown("~~a~~\r&lt; $x$ @me R@1") == r"\~\~a\~\~ \&lt; \$x\$ \@me R@1"
    assert escape_markdown("1. a") == r"1\. a"
    assert escape_markdown("- a") == r"\- a"
    assert escape_markdown("-0.5") == "-0.5"
    assert printable("a\x1b[1m\u202e\n\x9bé") == "a [1m   é"


def test_html_names_no_other_resource() -> None:
    text = render(compared("x"), "html")
    assert not re.search(r"https?:|//|src|href|style|script|url\(", text)


def test_lists_and_warnings_of_hostile_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[31m\n[bold]"
    print_list((name, "b"), [(name, name)], [name])
    shown = capsys.readouterr()
    check_terminal(shown.out)
    check_terminal(shown.err)
    assert shown.out.count("[bold]") == 3
    assert len(shown.err.splitlines()) == 1


def test_errors_and_left_out_records_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "re\x1b[31m\nsults"
    folder.mkdir()
    store.save(folder, record(RUNS[0]), None)
    (folder / "bad\x1b[2J\n.json").write_text("{")
    result = CliRunner().invoke(main, ["table", str(folder)])
    assert result.exit_code == 0
    check_terminal(result.stdout + result.stderr)
    assert len(result.stderr.splitlines()) == 1
    result = CliRunner().invoke(main, ["run", "--dataset", "folder:a\x1b[31m\nb"])
    check_terminal(result.stderr)
    assert len(result.stderr.splitlines()) == 1
