import contextlib
import errno
import os
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from mlbench.arrays import ImageArray
from mlbench.datasets.decode import decode
from mlbench.datasets.pixels import PixelCache, find_bad, open_cache
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import ImageSet
from mlbench.system.files import atomic_file

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def noise(height: int, width: int, channels: int = 3) -> ImageArray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def image_set(arrays: list[ImageArray]) -> ImageSet:
    names = tuple(f"{i}.png" for i in range(len(arrays)))
    return ImageSet(names, np.zeros(len(arrays), np.int64), ("only",), arrays.__getitem__)


def failing_set(failures: dict[int, BaseException], count: int = 8) -> ImageSet:
    def read(i: int) -> ImageArray:
        if i in failures:
            raise failures[i]
        return noise(5, 5)

    names = tuple(str(i) for i in range(count))
    return ImageSet(names, np.zeros(count, np.int64), ("only",), read)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def cached_files(cache_root: Path) -> list[Path]:
    files = [path for path in cache_root.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix != ".lock"]  # these stay: see claims.py


class TestDecode:
    def test_rgb_is_unchanged(self, tmp_path):
        pixels = noise(4, 6)
        found = decode(saved(tmp_path / "a.png", Image.fromarray(pixels)))
        np.testing.assert_array_equal(found, pixels)
        assert found.dtype == np.uint8
        assert found.flags.writeable

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, orientation):
        stored = noise(4, 6)
        upright = {
            1: stored,
            2: stored[:, ::-1],
            3: stored[::-1, ::-1],
            4: stored[::-1],
            5: stored.transpose(1, 0, 2),
            6: stored.transpose(1, 0, 2)[:, ::-1],
            7: stored.transpose(1, 0, 2)[::-1, ::-1],
            8: stored.transpose(1, 0, 2)[::-1],
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = saved(tmp_path / "a.png", Image.fromarray(stored), exif=exif)
        np.testing.assert_array_equal(decode(path), upright)

    def test_grey(self, tmp_path):
        grey = noise(4, 6)[:, :, 0]
        found = decode(saved(tmp_path / "a.png", Image.fromarray(grey)))
        np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=2))

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    def test_16_bit_grey_is_scaled(self, tmp_path, suffix):
        grey = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
        found = decode(saved(tmp_path / f"a.{suffix}", Image.fromarray(grey)))
        np.testing.assert_array_equal(found[:, :, 1], np.round(grey / 65535 * 255))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_laid_onto_white(self, tmp_path, mode):
        rgba = Image.fromarray(noise(4, 6, 4), "RGBA").convert(mode)
        found = decode(saved(tmp_path / "a.png", rgba))
        values = np.asarray(rgba.convert("RGBA"), np.float64)
        alpha = values[:, :, 3:] / 255
        expected = alpha * values[:, :, :3] + (1 - alpha) * 255
        assert np.abs(found - expected).max() <= 1

    def test_palette_with_transparency(self, tmp_path):
        palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
        palette.putpalette([10, 20, 30, 40, 50, 60])
        path = saved(tmp_path / "a.png", palette, transparency=bytes([255, 0]))
        shown, white = [10, 20, 30], [255, 255, 255]
        np.testing.assert_array_equal(decode(path), [[shown, white], [white, shown]])

    def test_cmyk(self, tmp_path):
        ink = Image.new("CMYK", (6, 4), (255, 0, 0, 0))
        found = decode(saved(tmp_path / "a.tif", ink))
        np.testing.assert_array_equal(found, np.full((4, 6, 3), [0, 255, 255]))

    def test_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
        path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode(path), np.full((4, 6, 3), [255, 0, 0]))

    def test_warnings_of_pillow_do_not_leak(self, tmp_path):
        broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0"
        path = saved(tmp_path / "a.jpg", Image.fromarray(noise(4, 6)), exif=broken)
        with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(path) as image:
            image.getexif()
        filters = warnings.filters[:]
        assert decode(path).shape == (4, 6, 3)
        assert warnings.filters == filters


class TestBadFiles:
    def check(self, path: Path, reason: str) -> None:
        with pytest.raises(MlbenchError, match=reason) as caught:
            decode(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    def test_truncated(self, tmp_path, suffix):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise(64, 64)))
        path.write_bytes(path.read_bytes()[:1000])
        self.check(path, "cannot read image")

    def test_empty(self, tmp_path):
        (tmp_path / "a.jpg").touch()
        self.check(tmp_path / "a.jpg", "empty")

    def test_not_an_image(self, tmp_path):
        (tmp_path / "a.jpg").write_text("hello")
        self.check(tmp_path / "a.jpg", "not an image")

    def test_missing(self, tmp_path):
        self.check(tmp_path / "a.jpg", "No such file")

    def test_folder(self, tmp_path):
        self.check(tmp_path, "a folder, not a regular file")

    def test_floating_point(self, tmp_path):
        path = saved(tmp_path / "a.tif", Image.fromarray(np.ones((4, 6), np.float32)))
        self.check(path, "floating-point")

    @pytest.mark.parametrize("side", [11, 30])  # Pillow only warns about the first
    def test_decompression_bomb(self, tmp_path, monkeypatch, side):
        path = saved(tmp_path / "a.png", Image.fromarray(noise(side, side)))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        self.check(path, "more than 100 pixels")

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_damaged_bytes_never_raise_anything_else(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("damaged") / "a.png"
        Image.fromarray(noise(8, 8)).save(path)
        content = bytearray(path.read_bytes())
        for _ in range(3):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(MlbenchError):
            assert decode(path).shape[2] == 3


class TestOpenCache:
    @settings(deadline=None, max_examples=40)
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
        side=st.integers(1, 64),
    )
    def test_equals_torchvision_resize(self, sizes, side):
        arrays = [
            np.random.default_rng(side).integers(0, 256, (*size, 3), np.uint8) for size in sizes
        ]
        cache = open_cache(image_set(arrays), side, f"{sizes}")
        assert len(cache) == len(arrays)
        for i, array in enumerate(arrays):
            expected = np.asarray(Resize(side)(Image.fromarray(array)))
            np.testing.assert_array_equal(cache.image(i), expected)

    def test_bicubic_images_have_a_cache_of_their_own(self):
        array = noise(9, 13)
        images = image_set([array])
        linear, cubic = (
            open_cache(images, 5, "key", interpolation=way).image(0)
            for way in ("bilinear", "bicubic")
        )
        resize = Resize(5, interpolation=InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(cubic, np.asarray(resize(Image.fromarray(array))))
        np.testing.assert_array_equal(linear, np.asarray(Resize(5)(Image.fromarray(array))))
        assert not np.array_equal(linear, cubic)

    def test_flat_layout(self):
        arrays = [noise(4, 6), noise(5, 4)]
        cache = open_cache(image_set(arrays), 4, "key")
        assert cache.heights.tolist() == [4, 5]
        assert cache.widths.tolist() == [6, 4]
        assert cache.offsets.tolist() == [0, 72]
        assert {a.dtype for a in (cache.heights, cache.widths, cache.offsets)} == {np.dtype("i8")}
        np.testing.assert_array_equal(cache.data, np.concatenate([a.ravel() for a in arrays]))

    def test_opened_without_decoding_again(self):
        arrays = [noise(4, 6), noise(6, 4)]
        first = open_cache(image_set(arrays), 8, "key")
        again = open_cache(failing_set({0: AssertionError()}, 2), 8, "key")
        np.testing.assert_array_equal(first.data, again.data)

    def test_keys_and_sides_are_kept_apart(self):
        a, b = noise(4, 4), noise(4, 4)
        np.testing.assert_array_equal(open_cache(image_set([a]), 4, "x/a").image(0), a)
        np.testing.assert_array_equal(open_cache(image_set([b]), 4, "x/b").image(0), b)
        assert open_cache(image_set([a]), 2, "x/a").image(0).shape == (2, 2, 3)

    def test_side_zero_keeps_the_original_pixels(self):
        arrays = [noise(4, 6), noise(50, 40)]
        cache = open_cache(image_set(arrays), 0, "original")
        for i, array in enumerate(arrays):
            np.testing.assert_array_equal(cache.image(i), array)

    def test_more_images_than_one_chunk_keep_their_order(self):
        arrays = [np.full((2, 2, 3), i % 256, np.uint8) for i in range(600)]
        seen: list[tuple[int, int]] = []
        cache = open_cache(image_set(arrays), 2, "key", lambda *step: seen.append(step))
        assert [int(cache.image(i)[0, 0, 0]) for i in range(600)] == [i % 256 for i in range(600)]
        assert seen == [(i + 1, 600) for i in range(600)]

    def test_non_contiguous_images(self):
        array = noise(4, 6)[:, :, ::-1]
        np.testing.assert_array_equal(open_cache(image_set([array]), 4, "key").image(0), array)

    def test_torch_wraps_it_and_the_file_is_safe(self):
        array = noise(4, 6)
        torch.from_numpy(open_cache(image_set([array]), 4, "key").data).zero_()
        np.testing.assert_array_equal(open_cache(image_set([array]), 4, "key").image(0), array)

    @pytest.mark.parametrize("keep", [0, 10, 40, -1])
    def test_damaged_cache_is_rebuilt(self, cache_root, keep):
        arrays = [noise(4, 6), noise(6, 4)]
        open_cache(image_set(arrays), 4, "key")
        (path,) = cached_files(cache_root)
        path.write_bytes(path.read_bytes()[:keep])
        np.testing.assert_array_equal(open_cache(image_set(arrays), 4, "key").image(1), arrays[1])

    @pytest.mark.parametrize("stop", [KeyboardInterrupt(), ValueError("bug"), MlbenchError("x")])
    def test_interrupted_build_leaves_nothing(self, cache_root, stop):
        with pytest.raises(type(stop)):
            open_cache(failing_set({3: stop}), 5, "key")
        assert cached_files(cache_root) == []

    def test_unfinished_file_is_not_taken_for_a_cache(self, cache_root):
        """A power cut after the rename may leave zeros where the sizes should be."""
        open_cache(image_set([noise(4, 4)]), 4, "key")
        (path,) = cached_files(cache_root)
        path.write_bytes(bytes(path.stat().st_size))
        assert open_cache(image_set([noise(4, 4)]), 4, "key").heights.tolist() == [4]

    def test_concurrent_builders(self, cache_root):
        images = image_set([noise(20, 30) for _ in range(50)])
        caches: list[PixelCache] = []
        threads = [
            threading.Thread(target=lambda: caches.append(open_cache(images, 10, "key")))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(caches) == 6
        assert all(np.array_equal(cache.data, caches[0].data) for cache in caches)
        assert len(cached_files(cache_root)) == 1

    def test_all_bad_images_in_one_error(self):
        failures: dict[int, BaseException] = {
            i: MlbenchError(f"cannot read image {i}.png: bad; replace or remove it")
            for i in range(7)
        }
        with pytest.raises(MlbenchError) as caught:
            open_cache(failing_set(failures), 5, "key")
        listed = "; ".join(f"cannot read image {i}.png: bad" for i in range(5))
        expected = f"7 unreadable images: {listed} and 2 more; replace or remove them, or"
        expected += " skip them with --on-bad-image skip"
        assert str(caught.value) == expected

    def test_one_bad_image_keeps_its_message(self):
        bad = MlbenchError("image 3 is bad; replace or remove it")
        with pytest.raises(MlbenchError, match=r"^image 3 is bad; replace or remove it, or skip"):
            open_cache(failing_set({3: bad}), 5, "key")

    def test_very_narrow_image(self):
        with pytest.raises(MlbenchError, match=r"0\.png: 9000 x 1 pixels are too narrow"):
            open_cache(image_set([np.zeros((1, 9000, 3), np.uint8)]), 256, "key")

    @pytest.mark.parametrize(
        "wrong",
        [
            None,
            [[[0, 0, 0]]],
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
            np.zeros((4, 4, 3), np.float32),
        ],
        ids=str,
    )
    def test_data_set_that_reads_something_else(self, wrong):
        with pytest.raises(MlbenchError, match=r"0\.png: the data set must read \(H, W, 3\)"):
            open_cache(image_set([wrong]), 4, "key")

    def test_file_that_a_plugin_cannot_read(self):
        error = PermissionError(errno.EACCES, "Permission denied")
        with pytest.raises(MlbenchError, match=r"image 3: Permission denied; replace or remove"):
            open_cache(failing_set({3: error}), 5, "key")

    def test_find_bad_names_each_with_its_reason(self):
        failures: dict[int, BaseException] = {i: MlbenchError(f"{i} is bad") for i in (2, 5)}
        seen: list[tuple[int, int]] = []
        found = find_bad(failing_set(failures), 5, lambda *step: seen.append(step))
        assert found == {2: "2 is bad", 5: "5 is bad"}
        assert seen[-1] == (8, 8)

    def test_threads_leave_the_warning_filters_alone(self, tmp_path):
        path = saved(tmp_path / "a.jpg", Image.fromarray(noise(8, 8)))
        images = ImageSet(
            tuple(map(str, range(200))), np.zeros(200, np.int64), ("only",), lambda _: decode(path)
        )
        filters = warnings.filters[:]
        open_cache(images, 8, "key")
        assert warnings.filters == filters


class TestAtomicFile:
    def test_replaces_only_at_the_end(self, tmp_path):
        path = tmp_path / "a"
        path.write_bytes(b"old")
        with atomic_file(path) as file:
            file.write(b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]

    def test_full_disk_is_a_clear_error(self, tmp_path):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(MlbenchError, match=r"No space left.*make room"):
            self.write_and_raise(tmp_path / "a", full)
        assert list(tmp_path.iterdir()) == []

    def write_and_raise(self, path: Path, error: OSError) -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    def test_what_dead_builders_left_goes_after_a_day(self, tmp_path):
        dead, alive, other = ".a.0123abcd-1-1.tmp", ".a.0123abcd-2-2.tmp", ".notes.tmp"
        for name, hours in ((dead, 25), (alive, 1), (other, 25)):
            (tmp_path / name).touch()
            then = time.time() - hours * 3600
            os.utime(tmp_path / name, (then, then))
        with atomic_file(tmp_path / "a"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"a", alive, other}


def test_first_few():
    assert first_few(["a", "b"]) == "a, b"
    assert first_few(list("abcde")) == "a, b, c, d, e"
    assert first_few(list("abcdefg"), "; ") == "a; b; c; d; e and 2 more"
