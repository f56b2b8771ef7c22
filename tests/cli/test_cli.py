import json
from pathlib import Path

import pytest
from helpers.command import SET, assert_refused, mlbench, run, said
from PIL import Image, ImageOps


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_run_prints_the_table_and_goes_on_where_it_stopped(photos: Path, out: Path) -> None:
    first = run(photos, out, "--losses", "softtriple,npairs", "--seeds", 2)
    assert first.exit_code == 0, first.output
    for text in ("softtriple", "npairs", "untrained", "features", "pca", "R@1", "NMI", "±"):
        assert text in first.stdout
    best = next(line for line in said(first) if line.startswith("Highest R@1: "))
    assert best.partition("-seed0-")[0].endswith(("/softtriple", "/npairs"))
    assert said(first)[-2:] == [f"Next: mlbench table {out}", f"      mlbench report {out}"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    assert len(before) == 10
    again = run(photos, out, "--losses", "softtriple,npairs,triplet", "--seeds", 2)
    assert again.stderr.count("already there") == 10
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert len(list(out.rglob("*.json"))) == 12

    table = mlbench("table", out)
    assert table.stdout == again.stdout
    for form, needle in {"markdown": "| loss", "latex": "toprule", "csv": "recipe_id"}.items():
        assert needle in mlbench("table", out, "--format", form).stdout
    (comparison,) = json.loads(mlbench("table", out, "--format", "json").stdout)
    assert len(comparison["rows"]) == 6


def test_a_damaged_record_is_named_and_the_rest_shown(photos: Path, out: Path) -> None:
    run(photos, out, "--losses", "softtriple")
    damaged = next(out.rglob("softtriple*.json"))
    damaged.write_text("{")
    table = mlbench("table", out)
    assert table.exit_code == 0
    assert str(damaged) in table.stderr
    assert "untrained" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "softripl"], "unknown loss 'softripl'; did you mean softtriple"),
        (["--dataset", "glyph"], "unknown dataset 'glyph'; did you mean glyphs"),
        (["--backbone", "conv"], "unknown backbone 'conv'; did you mean convnet"),
        (["--recipe", "forzen"], "unknown recipe 'forzen'; did you mean frozen"),
        (["--set", "epoch=3"], "unknown recipe field 'epoch'"),
        (["missing.toml"], "no file 'missing.toml'"),
        (["--dataset", "folder:/nonexistent"], "is not a folder"),
        (["--dataset", "cub200", "--data-root", "/nonexistent"], "/nonexistent"),
        (["--backbone", "resnet50", "--set", "backbone.weights=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments: list[str], message: str, out: Path) -> None:
    assert_refused(mlbench("run", "--out", out, *arguments), message)
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_bad_images_are_named(photos: Path, out: Path, content: bytes | None) -> None:
    bad = photos / "class1" / "bad.jpg"
    whole = next(photos.rglob("*.png")).read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert_refused(run(photos, out), str(bad))
    assert not out.exists()


def test_a_class_with_one_image_is_named(photos: Path, out: Path) -> None:
    (photos / "lonely").mkdir()
    next(photos.rglob("*.png")).rename(photos / "lonely" / "0.png")
    assert_refused(run(photos, out), "lonely")


def test_table_of_nothing_is_refused(tmp_path: Path) -> None:
    assert_refused(mlbench("table", tmp_path), "no records in")
    assert_refused(mlbench("table", tmp_path / "none"), "no results folder")
    (tmp_path / "x.json").write_text("{")
    result = mlbench("table", tmp_path)
    assert result.exit_code == 2
    assert "x.json" in result.stderr


def test_ctrl_c_says_how_to_continue(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlbench.training.trainer.Trainer.step", stop)
    result = run(photos, out, "--losses", "npairs")
    assert result.exit_code == 130
    assert "re-run the same command to resume" in result.stderr
    assert len(list(out.rglob("*.json"))) == 3


@pytest.mark.parametrize("what", ["losses", "datasets", "backbones", "recipes"])
def test_lists(what: str) -> None:
    result = mlbench("list", what)
    assert result.exit_code == 0
    wanted = {
        "losses": "softmax_norm",
        "datasets": "folder:...",
        "backbones": "timm:...",
        "recipes": "frozen",
    }
    assert wanted[what] in result.stdout


def test_version() -> None:
    assert "0.1.0" in mlbench("--version").stdout


def test_tune_prints_both_tables_and_goes_on_where_it_stopped(photos: Path, out: Path) -> None:
    for path in [*(photos / "class0").iterdir(), *(photos / "class1").iterdir()]:
        other = photos / f"{path.parent.name}b" / path.name
        other.parent.mkdir(exist_ok=True)
        with Image.open(path) as image:
            ImageOps.invert(image).save(other)
    arguments = ("--dataset", f"folder:{photos}", "--losses", "softmax_norm,npairs", "--out", out)
    first = mlbench("tune", *arguments, *SET, "--trials", 2)
    assert first.exit_code == 0, first.output
    assert first.stderr.count("[trial ") == 4
    for text in ("tuning on validation classes", "l2_reg=", "features", "2 trials, trained on"):
        assert text in first.stdout
    again = mlbench("tune", *arguments, *SET, "--trials", 2)
    assert "[trial " not in again.stderr
    assert again.stdout == first.stdout
