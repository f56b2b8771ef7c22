"""`mlbench eval` and the reading of files that are not trusted."""

import io
import json
import struct
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import mlbench
from mlbench.cli import main
from mlbench.errors import MlbenchError
from mlbench.metrics import evaluate_pairs
from mlbench.metrics.embeddings import Embeddings, read_embeddings

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 6)).astype(np.float32)
LABELS = RNG.integers(0, 5, 40)
NAMES = np.array(["ant", "bee", "crow", "dö", "eel"])[LABELS]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.npz"


def evaluated(file: Path, *arguments: object, **arrays: object) -> Result:
    np.savez(file, **arrays)  # type: ignore[arg-type]
    result = CliRunner().invoke(main, ["eval", str(file), *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def metrics(result: Result) -> dict[str, float]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["metrics"]


def test_json_is_what_the_api_says(file: Path) -> None:
    result = evaluated(file, "--json", "--ks", "1,3", embeddings=ROWS, labels=LABELS, other=ROWS)
    expected = mlbench.evaluate(ROWS, LABELS, ks=(1, 3))
    counts = {name: expected.pop(name) for name in ("n_query", "n_gallery", "n_lone")}
    assert json.loads(result.stdout) == {
        "file": str(file),
        "metrics": expected,
        **counts,
        "n_class": 5,
        "dimensions": 6,
        "nmi_restarts": 10,
    }


def test_pairs_and_depths_are_measured_where_asked(file: Path) -> None:
    options = ("--no-nmi", "--depths", "2,7", "--verification")
    found = json.loads(evaluated(file, "--json", *options, embeddings=ROWS, labels=LABELS).stdout)
    assert found["verification"] == json.loads(json.dumps(asdict(evaluate_pairs(ROWS, LABELS))))
    assert {"P@2", "mAP@2", "P@7", "mAP@7"} < set(found["metrics"])
    printed = evaluated(file, *options, embeddings=ROWS, labels=LABELS).output
    (point,) = found["verification"]["points"]
    assert f"{100 * point['tar']['value']:.2f} (" in printed
    assert f"{point['threshold']['value']:.4f} (" in printed
    assert "EER " in printed
    refused(evaluated(file, "--depths", "2,x", embeddings=ROWS, labels=LABELS), "--depths: '2,x'")
    alone = evaluated(file, "--verification", embeddings=ROWS[:2], labels=LABELS[:2] * 0)
    refused(alone, "needs a pair of images of one class, and one of two")


def test_text_shows_percent_and_what_was_measured(file: Path) -> None:
    result = evaluated(file, "--nmi-restarts", 2, "--memory-mb", 1, embeddings=ROWS, labels=NAMES)
    expected = mlbench.evaluate(ROWS, LABELS, nmi_restarts=2)
    for name in ("R@1", "R@8", "NMI", "MAP@R", "R-Precision"):
        assert f"{name:<11}  {100 * expected[name]:.2f}" in result.stdout
    assert "40 queries against all others; 5 classes, 6 dimensions; 0 lone queries" in result.stdout
    assert "2 restarts" in result.stdout
    without = evaluated(file, "--no-nmi", embeddings=ROWS, labels=NAMES)
    assert "NMI" not in without.stdout


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        np.char.encode(NAMES, "utf-8"),
        LABELS.astype(np.float64),
        LABELS.astype(np.float16),
        LABELS.astype(">i2"),
        LABELS.astype(np.uint8),
    ],
)
def test_kinds_of_labels(file: Path, labels: np.ndarray) -> None:
    half = {"embeddings": ROWS[:20], "labels": labels[:20]}
    result = evaluated(file, "--json", **half, gallery=ROWS[20:], gallery_labels=labels[20:])
    expected = mlbench.evaluate(
        ROWS[:20], LABELS[:20], gallery=ROWS[20:], gallery_labels=LABELS[20:]
    )
    assert metrics(result) == {name: expected[name] for name in metrics(result)}
    assert (
        "in a gallery of 40" in evaluated(file, **half, gallery=ROWS, gallery_labels=labels).stdout
    )


@pytest.mark.parametrize(
    "rows",
    [
        np.asfortranarray(ROWS),
        ROWS.astype(">f8"),
        ROWS.astype("f2"),
        ROWS.astype(np.longdouble),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_layouts_are_read_as_numpy_reads_them(file: Path, rows: np.ndarray, save) -> None:
    save(file, embeddings=rows, labels=LABELS)
    data = read_embeddings(file)
    np.testing.assert_array_equal(data.queries, rows)
    assert data.queries.dtype.isnative
    np.testing.assert_array_equal(data.labels, LABELS)


OTHER = {"gallery": ROWS, "gallery_labels": LABELS}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": ROWS, "names": LABELS}, "no array 'labels'; its arrays: embeddings, names"),
        ({"labels": LABELS}, "has no array 'embeddings'; its arrays: labels"),
        ({"labels": LABELS[:9]}, "labels has 9 entries for 40 rows"),
        ({"labels": LABELS[:, None]}, "labels is int64 (40, 1); expected integers or strings (N,)"),
        ({"labels": LABELS + 0.5}, "not a whole number"),
        ({"labels": LABELS + np.nan}, "labels: entry 0 is nan, not a whole number"),
        ({"labels": LABELS > 2}, "labels is bool (40,)"),
        ({"labels": NAMES.astype(object)}, "labels contains Python objects"),
        ({"embeddings": ROWS[0]}, "embeddings is float32 (6,); expected real numbers (N, D)"),
        ({"embeddings": ROWS * 1j}, "embeddings is complex64 (40, 6)"),
        ({"embeddings": ROWS.astype(str)}, "embeddings is <U"),
        ({"embeddings": ROWS[:0], "labels": LABELS[:0]}, "expected a non-empty (N, D) array"),
        ({"embeddings": ROWS * np.where(LABELS == 9, 1, np.nan)[:, None]}, "row 0 is not finite"),
        ({"embeddings": ROWS * (np.arange(40) != 7)[:, None]}, "row 7 is all zeros"),
        ({"gallery": ROWS}, "gallery and gallery_labels belong together"),
        ({"gallery": ROWS[:, :3], "gallery_labels": LABELS}, "have 6 dimensions and the gallery 3"),
        ({**OTHER, "labels": NAMES}, "one has strings, one numbers"),
    ],
)
def test_unsuitable_arrays_are_one_line(file: Path, arrays: dict, message: str) -> None:
    given = {"embeddings": ROWS, "labels": LABELS} | arrays
    if "no array" in message:
        given = arrays
    refused(evaluated(file, **given), message)


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("ks", ["", "1,x", "0", "2,2", "1.5"])
def test_bad_ks(file: Path, ks: str) -> None:
    refused(evaluated(file, "--ks", ks, embeddings=ROWS, labels=LABELS), "ks")


def test_what_is_no_npz(tmp_path: Path) -> None:
    run = CliRunner()
    refused(run.invoke(main, ["eval", str(tmp_path / "none.npz")]), "no file")
    refused(run.invoke(main, ["eval", str(tmp_path)]), "a folder, not a regular file")
    plain = tmp_path / "x.npy"
    np.save(plain, ROWS)
    refused(run.invoke(main, ["eval", str(plain)]), "not an .npz file; write one with numpy.savez")


def with_header(file: Path, header: dict, content: bytes = b"") -> None:
    """Write a file whose embeddings have a header of the test's own."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    np.savez(file, labels=LABELS)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("embeddings.npy", stream.getvalue() + content)


@pytest.mark.parametrize("shape", [(2**40, 64), (2**62, 2**62), (40, 5), (-40, -6), (40, 7)])
def test_header_that_promises_what_is_not_there_takes_no_memory(file: Path, shape: tuple) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with_header(file, header, ROWS.tobytes())
    with pytest.raises(MlbenchError, match="'embeddings' cannot be read"):
        read_embeddings(file)


def test_archive_that_promises_what_is_not_there_takes_no_memory(file: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**28, 3)}
    with_header(file, header)
    size = struct.pack("<L", 3 * 2**30 + 128)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = size
    file.write_bytes(content)
    with pytest.raises(MlbenchError, match="it is not packed as numpy packs"):
        read_embeddings(file)


def test_other_compression_is_refused(file: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, ROWS)
    np.savez(file, labels=LABELS)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("embeddings.npy", stream.getvalue())
    with pytest.raises(MlbenchError, match="it is not packed as numpy packs"):
        read_embeddings(file)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), compressed=st.booleans())
def test_damage_of_any_kind_is_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compressed: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, embeddings=ROWS, labels=NAMES)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    read = outcome(path)
    if isinstance(read, str):
        assert "\n" not in read
    else:
        np.testing.assert_array_equal(read.queries, ROWS)


def outcome(path: Path) -> Embeddings | str:
    try:
        return read_embeddings(path)
    except MlbenchError as error:
        return str(error)
