"""The example service: an exported model without mlbench gives what ``Model.embed`` gives."""

import io
import json
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.settings import QUICK
from PIL import Image

import mlbench
from mlbench.cli import main
from mlbench.records import store

for package in ("onnx", "onnxscript", "onnxruntime", "starlette", "uvicorn"):
    pytest.importorskip(package, reason=f"{package} is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve-onnx"


def picture(path: Path, mode: str, size: tuple[int, int], orientation: int = 1) -> Path:
    """Write a photograph-like image of smooth noise, which shows any shift of its pixels."""
    rng = np.random.default_rng(zlib.crc32(f"{path.parent.name}/{path.name}".encode()))
    coarse = rng.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257 + 128
        Image.fromarray(grey).save(path)
    else:
        image.convert(mode).save(path, exif=exif)
    return path


def opened(path: Path) -> Image.Image:
    """Return an image as a service gets it: bytes, decoded when its pixels are asked for."""
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes of images of odd sizes, orientations and modes; the last has every kind."""
    root = tmp_path_factory.mktemp("pictures")
    for label in ("a", "b", "c"):
        (root / label).mkdir()
        for number in range(4):
            picture(root / label / f"plain{number}.png", "RGB", (24, 24))
    odd = root / "d"
    odd.mkdir()
    for orientation in range(1, 9):
        picture(odd / f"turned{orientation}.jpg", "RGB", (37, 53), orientation)
    picture(odd / "wide.png", "RGB", (101, 23))
    picture(odd / "grey.png", "L", (45, 31))
    picture(odd / "deep.png", "I;16", (21, 27))
    picture(odd / "clear.png", "RGBA", (29, 33))
    picture(odd / "palette.gif", "P", (35, 35))
    picture(odd / "exact.png", "RGB", (20, 31))
    return root


@pytest.fixture(scope="module")
def served(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model's record, its ONNX file and the embeddings of the pictures."""
    out = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLBENCH_CACHE", str(out / "cache"))
        made = mlbench.run(
            "softmax_norm",
            dataset=f"folder:{pictures}",
            settings=QUICK | {"input.interpolation": "bicubic", "batch.size": 4},
            out=out,
            keep_model=True,
        )
    paths = {"record": store.record_path(out, made.spec)}
    paths |= {"model": out / "model.onnx", "gallery": out / "gallery.npz"}
    for words in (
        ["export", str(paths["record"]), "--format", "onnx", "-o", str(paths["model"])],
        ["embed", str(paths["record"]), str(pictures), "-o", str(paths["gallery"])],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    return paths


@pytest.fixture(scope="module")
def example() -> Iterator[None]:
    """Let the modules of the example be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        yield
    for name in ("embedder", "service"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("example")
def test_the_embeddings_are_those_of_the_model(served: dict[str, Path], pictures: Path) -> None:
    from embedder import Embedder  # type: ignore[import-not-found]

    embedder = Embedder(served["model"])
    model = mlbench.load_model(served["record"], device="cpu")
    paths = sorted(pictures.rglob("*.*"))
    expected = model.embed(paths).numpy()

    def embedded() -> np.ndarray:
        return np.stack([embedder.embed(image) for image in map(opened, paths)])

    found = embedded()
    assert np.abs(found - expected).max() < 1e-5
    # The test could fail: images differ, and another filter is seen.
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    embedder._filter = Image.Resampling.NEAREST
    assert np.abs(embedded() - expected).max() > 1e-4


@pytest.mark.usefixtures("example")
def test_a_file_without_its_preprocessing_is_refused(
    served: dict[str, Path], tmp_path: Path
) -> None:
    import onnx
    from embedder import Embedder  # type: ignore[import-not-found]

    model = onnx.load(served["model"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ValueError, match="not a model whose preprocessing this program knows"):
        Embedder(tmp_path / "bare.onnx")


@pytest.fixture(scope="module")
def address(served: dict[str, Path], example: None) -> Iterator[str]:
    """The service on a free port of this machine."""
    import uvicorn
    from service import application  # type: ignore[import-not-found]

    app = application(served["model"], served["gallery"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    started = threading.Event()
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announced
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer: HTTPResponse = opener.open(request, timeout=20)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    return answer.status, json.loads(answer.read())


def test_the_service_embeds_and_searches(
    address: str, served: dict[str, Path], pictures: Path
) -> None:
    photo = pictures / "d" / "turned6.jpg"
    status, answer = post(f"{address}/embed", photo.read_bytes())
    assert status == 200
    model = mlbench.load_model(served["record"], device="cpu")
    expected = model.embed([photo])[0].numpy()
    assert np.abs(np.array(answer["embedding"]) - expected).max() < 1e-5
    status, answer = post(f"{address}/search?top=3", photo.read_bytes())
    assert status == 200
    with np.load(served["gallery"]) as gallery:
        similarities = gallery["embeddings"] @ expected
        best = np.sort(similarities)[::-1][:3]
        where = {str(path): i for i, path in enumerate(gallery["paths"])}
    assert [hit["similarity"] for hit in answer["hits"]] == pytest.approx(best, abs=1e-5)
    for hit in answer["hits"]:
        assert hit["similarity"] == pytest.approx(similarities[where[hit["path"]]], abs=1e-5)
    assert answer["hits"][0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_the_service_refuses_what_it_cannot_answer(address: str, pictures: Path) -> None:
    whole = (pictures / "d" / "wide.png").read_bytes()
    for path, body, status, reason in (
        ("/embed", b"no image", 415, "the body must be an image"),
        ("/embed", whole[: len(whole) // 2], 422, "the image cannot be read"),
        ("/search?top=0", whole, 422, "top must be a whole number from 1 to 100"),
        ("/search?top=x", whole, 422, "top must be a whole number from 1 to 100"),
        ("/embed", bytes(20_000_001), 413, "more than 20,000,000 bytes"),
    ):
        found, answer = post(f"{address}{path}", body)
        assert found == status
        assert reason in answer["error"]


@pytest.mark.usefixtures("example")
def test_a_gallery_of_another_model_is_refused(served: dict[str, Path], tmp_path: Path) -> None:
    from service import Service  # type: ignore[import-not-found]

    buffer = io.BytesIO()
    np.savez(buffer, embeddings=np.zeros((1, 3), np.float32), paths=np.array(["x.png"]))
    other = tmp_path / "other.npz"
    other.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="embeddings of another model"):
        Service(served["model"], other)
