import ast
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from mlbench.datasets import formats
from mlbench.datasets.decode import decode
from mlbench.datasets.formats import (
    FORMATS,
    holds_image,
    readable_formats,
    readable_suffixes,
    upright,
)
from mlbench.datasets.listing import list_images
from mlbench.errors import MlbenchError
from mlbench.models.model import image_set
from mlbench.report.thumbnails import encoded

ROOT = Path(__file__).parents[2]
PACKAGE = Path(formats.__file__).parent
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def saved(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


def test_the_documented_formats_are_those_that_are_read() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z0-9]+) \| ((?:`\.\w+`(?:, )?)+) \|", text, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\.\w+)`", suffixes)) for name, suffixes in rows}
    assert documented == {each.name: each.suffixes for each in FORMATS}
    assert f"{formats.IMAGE_BYTES:,} bytes" in " ".join(text.split())


def test_suffixes_are_those_that_pillow_knows() -> None:
    Image.init()
    known = Image.registered_extensions()
    for each in readable_formats():
        for suffix in each.suffixes:
            assert known[suffix] in (each.name, "MPO")


def test_every_image_is_opened_in_one_place() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    calls = [
        (name, [keyword.arg for keyword in node.keywords])
        for name, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert calls == [("formats.py", ["formats"])]
    assert not any("exif_transpose" in source for source in sources.values())


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "QOI", "SGI", "PCX", "DDS"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.png").write_bytes(saved(form))  # whatever its suffix
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), PIXELS)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path) -> None:
    (tmp_path / "x.AVIF").write_bytes(saved("AVIF", quality=100, subsampling="4:4:4"))
    assert list_images(tmp_path).images == ("x.AVIF",)
    assert np.abs(decode(tmp_path / "x.AVIF").astype(int) - PIXELS).mean() < 4


def test_heic_is_read_only_with_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    without = {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"}
    monkeypatch.setattr(Image, "OPEN", without)
    assert ".heic" not in readable_suffixes()
    monkeypatch.setitem(without, "HEIF", without["PNG"])
    assert ".heic" in readable_suffixes()


@pytest.mark.parametrize("name", ["x.png", "x.eps", "x"])
def test_postscript_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fuse(*_: object, **__: object) -> None:
        pytest.fail("Ghostscript would have been run")

    for function in ("PIL.EpsImagePlugin.Ghostscript", "subprocess.Popen"):
        monkeypatch.setattr(function, fuse)
    path = tmp_path / name
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n")
    assert not holds_image(path)
    with pytest.raises(MlbenchError, match="not an image of a known format"):
        decode(path)


@pytest.mark.parametrize("form", ["TGA", "DIB", "SPIDER"])
def test_formats_that_are_not_listed_are_not_read(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("F" if form == "SPIDER" else "RGB").save(buffer, form)
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    with pytest.raises(MlbenchError, match="not an image of a known format"):
        decode(tmp_path / "x.png")


def test_a_file_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(saved("PNG"))
    monkeypatch.setattr(formats, "IMAGE_BYTES", 100)
    with pytest.raises(MlbenchError, match=r"x\.png: more than 100 bytes, the most that are"):
        decode(tmp_path / "x.png")


def test_a_link_to_an_endless_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("/dev/zero")
    with pytest.raises(MlbenchError, match=r"x\.png: a device, not a regular file; replace"):
        decode(tmp_path / "x.png")


Tag = tuple[int, int, int, bytes]
"""Number, type, count and four bytes of value."""

ODD_TAGS: dict[str, Tag] = {
    "resolution as text": (0x011A, 2, 4, b"72\0\0"),
    "text as a number": (0x010E, 3, 1, struct.pack("<I", 7)),
    "text as a fraction far outside": (0x0131, 5, 1, struct.pack("<I", 0xFFFFFF00)),
    "an unknown type": (0x0132, 99, 1, bytes(4)),
    "EXIF of its own far outside": (0x8769, 4, 1, struct.pack("<I", 0xFFFFFF00)),
    "EXIF of its own as text": (0x8769, 2, 4, b"abc\0"),
    "GPS as a fraction": (0x8825, 5, 1, struct.pack("<I", 8)),
}


def exif(*tags: Tag) -> bytes:
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD_TAGS)
def test_odd_metadata_leave_pixels_and_orientation(tmp_path: Path, form: str, odd: str) -> None:
    tags = sorted([ODD_TAGS[odd], (0x0112, 3, 1, struct.pack("<I", 6))])
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    (tmp_path / "x").write_bytes(saved(form, exif=exif(*tags), **options))
    np.testing.assert_array_equal(decode(tmp_path / "x"), PIXELS.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("odd", ODD_TAGS)
def test_odd_metadata_of_tiff(tmp_path: Path, compression: str, odd: str) -> None:
    number, kind, count, value = ODD_TAGS[odd]
    content = saved("TIFF", compression=compression, tiffinfo={65000: 1, 0x0112: 6})
    placeholder = struct.pack("<H", 65000)  # a tag of the same place for each odd one
    start = content.index(placeholder)
    changed = struct.pack("<HHI", number, kind, count) + value
    (tmp_path / "x").write_bytes(content[:start] + changed + content[start + 12 :])
    np.testing.assert_array_equal(decode(tmp_path / "x"), PIXELS.transpose(1, 0, 2)[:, ::-1])


@pytest.mark.parametrize(
    "tag",
    [
        (0x0112, 3, 1, struct.pack("<I", 0)),
        (0x0112, 3, 1, struct.pack("<I", 9)),
        (0x0112, 3, 1, struct.pack("<I", 65535)),
        (0x0112, 2, 2, b"6\0\0\0"),
        (0x0112, 5, 1, struct.pack("<I", 0xFFFFFF00)),
    ],
)
def test_an_orientation_that_is_none_changes_nothing(tmp_path: Path, tag: Tag) -> None:
    (tmp_path / "x").write_bytes(saved("PNG", exif=exif(tag)))
    np.testing.assert_array_equal(decode(tmp_path / "x"), PIXELS)


@pytest.mark.parametrize("content", [b"Exif\0\0", b"Exif\0\0XX*\0\x08\0\0\0", b"Exif\0\0II*\0\xff"])
def test_damaged_exif_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(saved("PNG", exif=content))
    np.testing.assert_array_equal(decode(tmp_path / "x"), PIXELS)


def test_an_image_of_pillow_is_left_as_it_was() -> None:
    tags = (0x0112, 3, 1, struct.pack("<I", 3))
    image = Image.open(io.BytesIO(saved("PNG", exif=exif(tags))))
    np.testing.assert_array_equal(np.asarray(upright(image)), PIXELS[::-1, ::-1])
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ((1, 1), "RGB"),
        ((3000, 1), "L"),
        ((1, 3000), "RGB"),
        ((9, 9), "CMYK"),
        ((9, 9), "I;16"),
        ((9, 9), "P"),
        ((9, 9), "1"),
    ],
)
def test_thumbnails_of_odd_images(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new(mode, size).save(path)
    assert encoded(image_set([path]), 0)


def test_no_thumbnail_of_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"%!PS")
    assert encoded(image_set([tmp_path / "x.png"]), 0) == ""
