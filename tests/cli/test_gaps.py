from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.factorial import study_records
from helpers.settings import QUICK
from PIL import Image

from mlbench.cli import main
from mlbench.records import store


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    for record in study_records().values():
        store.save(out, record, None)
    return out


def test_effects_of_a_folder_as_table_and_picture(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "effects.png"
    result = invoke("effects", folder, "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "softtriple: effects of 7 factors, 2^(7-3), resolution IV" in result.stdout
    assert "picture:" in result.stderr
    with Image.open(picture) as image:
        assert image.width > 500
    assert invoke("effects", folder, "--format", "csv").stdout.startswith("title,metric,what,")


def test_what_effects_cannot_do_is_one_line(folder: Path, tmp_path: Path) -> None:
    record = study_records()["row-03"]
    for run in study_records().values():
        if run.spec != record.spec:
            store.save(tmp_path, run, None)
    refused = invoke("effects", tmp_path)
    assert refused.exit_code == 2
    assert "1 settings have no finished run: input.normalization=none" in refused.stderr
    wrong = invoke("effects", folder, "--picture", tmp_path / "x.pdf")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "use a .png or .svg" in wrong.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no records in" in invoke("effects", empty).stderr


def test_effects_of_a_ladder_as_table_and_picture(tmp_path: Path) -> None:
    study = Path(__file__).parents[2] / "results" / "study" / "ladder-frozen"
    picture = tmp_path / "ladder.png"
    result = invoke("effects", study, "--picture", picture)
    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.stdout.splitlines()]
    assert ["start", "-", "33.7", "±", "1.1", "-", "5"] in words
    assert ["40.2", "±", "0.2", "+6.5", "±", "1.7", "5"] in [line[-7:] for line in words]
    with Image.open(picture) as image:
        assert image.width > 500
    assert "### softtriple, ladder 1" in invoke("effects", study, "--format", "markdown").stdout
    refused = invoke("effects", study, "--format", "json")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "use one of text, markdown, latex, html" in refused.stderr


FACTORIAL = ("ablate", "--from", "blog-code", "--to", "paper", "--design", "factorial")


def test_a_dry_run_prints_the_plan_and_makes_nothing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = invoke(*FACTORIAL, "--dry-run", "--data-root", tmp_path, "--out", out)
    assert planned.exit_code == 0, planned.output
    assert "2^(7-3), resolution IV" in planned.stdout
    assert "20 runs, 1,000 epochs; how many images is not known: cub200: no" in planned.stdout
    small = [f"--set=input.{side}=32" for side in ("size", "test_resize")]
    same = ["--dataset", f"folder:{photos}", "--backbone", "convnet", *small]
    ladder = invoke(*FACTORIAL[:5], "--dry-run", *same)
    assert "7 runs, 350 epochs: " in ladder.stdout
    words = " ".join(ladder.stdout.split())
    assert "images per second (cpu); evaluation is not counted" in words
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "4"], "take 8 runs or more: raise --runs"),
        (["--group", "x"], "--group x: expected NAME=FIELD"),
        (["--group", "x=head.kind", "--group", "x=loss.la"], "--group x is set twice"),
        (["--group", "x=head.dim"], "group x: unknown field that differs 'head.dim'"),
        (["--picture", "x.pdf"], "use a .png or .svg"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str) -> None:
    refused = invoke(*FACTORIAL, "--dry-run", *options)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert message in refused.stderr


def test_a_factorial_from_the_command_line_to_the_picture(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "end.toml").write_text(
        'base = "default"\n[optimizer]\neps = 0.01\n[head]\nkind = "relu-bn-linear"\n'
    )
    picture, out = tmp_path / "effects.svg", tmp_path / "out"
    arguments = ["ablate", "--design", "factorial", "--from", "default", "--seeds", "2"]
    arguments += ["--to", tmp_path / "end.toml", "--dataset", f"folder:{photos}", "--out", out]
    arguments += [f"--set={key}={value}" for key, value in QUICK.items()]
    made = invoke(*arguments, "--picture", picture)
    assert made.exit_code == 0, made.output
    assert "full factorial in 4 settings" in made.stdout
    assert "gap between the ends" in made.stdout
    assert picture.read_text().startswith("<?xml")
    assert invoke("effects", out).stdout in made.stdout


def test_rows_that_cannot_run_share_one_reason(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "end.toml").write_text(
        'base = "default"\n[optimizer]\neps = 0.01\n[backbone]\nname = "bn_inception"\n'
    )
    arguments = ["ablate", "--design", "factorial", "--from", "default", "--seeds", "1"]
    arguments += ["--to", tmp_path / "end.toml", "--dataset", f"folder:{photos}"]
    arguments += [f"--set={key}={value}" for key, value in QUICK.items()]
    arguments += ["--set", "backbone.weights=" + "0" * 64, "--out", tmp_path / "out"]
    made = invoke(*arguments)
    assert made.exit_code == 1
    assert made.stdout.count("pass its path") == 1
    assert "no effects: every row" in made.stdout
