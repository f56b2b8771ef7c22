"""A benchmark file run whole: its digest, and records in the folder that are not of it."""

import json
from pathlib import Path

import pytest
from helpers.command import mlbench, run
from helpers.settings import QUICK

from mlbench.recipes.plan import Request, declared_digest, make_plan

FILE = """
seeds = {seeds}
losses = [{losses}]
[recipe]
base = "frozen"
data = {{ name = "folder:photos" }}
backbone = {{ name = "convnet", weights = "none" }}
evaluation = {{ ks = [1], nmi_restarts = 1 }}
"""


@pytest.fixture
def benchmark(photos: Path) -> Path:
    path = photos.parent / "b.toml"
    path.write_text(FILE.format(seeds=2, losses='"npairs", "triplet"'))
    return path


def request(path: Path, **fields: object) -> Request:
    return Request(benchmark=path, data_root=path.parent, **fields)  # type: ignore[arg-type]


def test_the_digest_is_of_all_runs_and_of_nothing_else(benchmark: Path) -> None:
    first = make_plan(request(benchmark)).digest
    benchmark.write_text("# in other words\n" + FILE.format(seeds=2, losses='"triplet", "npairs"'))
    assert make_plan(request(benchmark)).digest == first
    assert make_plan(request(benchmark, compile=True)).digest == first, (
        "no part of a run's identity"
    )
    changed = [
        make_plan(request(benchmark, seeds=3)).digest,
        make_plan(request(benchmark, losses=("triplet",))).digest,
        make_plan(request(benchmark, settings=(("schedule.epochs", 3),))).digest,
        make_plan(request(benchmark, settings=(("triplet.margin", 0.3),))).digest,
    ]
    assert len({first, *changed}) == 5
    assert declared_digest(request(benchmark, seeds=3)) == first


def test_a_file_that_is_no_plan_by_itself_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text('losses = ["npairs"]\nrecipe = "nowhere"\n')
    assert declared_digest(request(tmp_path / "b.toml", recipe="frozen")) is None


def test_the_digest_stands_below_the_table_and_strangers_are_named(
    benchmark: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    small = [f"--set={key}={value}" for key, value in QUICK.items()]
    common = ["run", benchmark, "--data-root", benchmark.parent, "--out", out, *small]
    asked = request(benchmark, settings=tuple(QUICK.items()))
    digest, declared = make_plan(asked).digest, declared_digest(asked)

    tried = mlbench(*common, "--losses", "contrastive", "--seeds", 1)
    assert "contrastive" in tried.stdout
    whole = mlbench(*common)
    assert whole.stderr.startswith(f"benchmark {benchmark}: digest {digest}\n"), "before any run"
    last = whole.stdout.splitlines()[-3:]
    assert last[0].endswith(f"digest {digest}, fixed before the first run; all 4 runs")
    assert last[1] == f"  overridden by options: the file itself has the digest {declared}"
    assert last[2].startswith(
        f"  1 record(s) in {out} do not belong to this benchmark: folder-photos-"
    )
    assert "contrastive-seed0-" in last[2]


def test_random_splits_have_a_table_of_their_own(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fast = (
        "--set=schedule.epochs=1",
        "--set=schedule.milestones=[]",
        "--set=backbone.trunk=frozen",
    )
    ran = run(photos, out, *fast, "--losses", "npairs,triplet", "--splits", 3)
    assert ran.exit_code == 0, ran.output
    # Three baselines and two losses, on the data set's own split and on three others.
    assert len(list(out.rglob("*.json"))) == 5 * 4
    standard, dealt = ran.stdout.split("\n\n", 1) if "\n\n" in ran.stdout else ("", "")
    assert "random splits" not in standard
    own, random = json.loads(mlbench("table", out, "--format", "json").stdout)
    assert random["title"] == f"{own['title']}, random splits of its classes"
    assert {row["loss"]: row["n"] for row in random["rows"]}["npairs"] == 3
    assert "classes the data set's own split -> random splits" in random["differences"]
    assert "other test classes" in dealt
    assert "random splits 0-2: each divides all" in dealt
    again = run(photos, out, *fast, "--losses", "npairs,triplet", "--splits", 3)
    assert again.stderr.count("already there") == 20


def test_one_random_split_says_nothing_of_others() -> None:
    refused = mlbench("run", "--splits", 1)
    assert refused.exit_code == 2
    assert "1 is not in the range" in refused.stderr
