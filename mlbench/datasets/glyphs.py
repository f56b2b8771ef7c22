"""Letters of five scripts, drawn from the typefaces that matplotlib ships: needs no download."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import PIL
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from mlbench.arrays import ImageArray
from mlbench.datasets.files import fingerprint, with_top_folders
from mlbench.errors import MlbenchError
from mlbench.interfaces import Dataset, ImageSet
from mlbench.system import npz
from mlbench.system.files import atomic_file, cache_dir

VERSION = 1
"""To be raised whenever a changed drawing must not be taken from an old cache."""

SIZE = 32
"""Height and width of the images in pixels."""

IMAGES_PER_CLASS = 48
"""Half of them upper case, half lower case."""

TRAIN_SCRIPTS = ("Latin", "Greek")
TEST_SCRIPTS = ("Cyrillic", "Armenian", "Georgian")

_DEJAVU = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
)
_STIX = tuple(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic"))
# Of Computer Modern these hold true letters under their code points, a-z and A-Z only; cmex10 and
# cmsy10 hold symbols there.
_COMPUTER_MODERN = ("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10")
FACES = _DEJAVU + _STIX + _COMPUTER_MODERN
_MIN_FACES = 8

_ZOOM = 3  # letters are drawn and moved this much larger, then averaged down
_EM = 0.75 * _ZOOM * SIZE
_MAX_EXTENT = 0.8 * _ZOOM * SIZE
_SEED = 2011
# Largest rotation (radians), log of the scale, shear, and shifts (pixels of the image).
_JITTER = np.array([np.radians(15), np.log(1.2), 0.15, 2.5, 2.5])

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Letter:
    """A lower-case letter with an upper case, and the faces that have both."""

    script: str
    name: str
    lower: str
    faces: tuple[str, ...]


@dataclass(frozen=True)
class _Glyph:
    """One image to draw."""

    face: str
    character: str
    name: str
    label: int
    is_upper: bool


def load(root: Path | None) -> Dataset:  # noqa: ARG001 (every data set is given a root)
    """Draw (or take from the cache) the glyphs: Latin and Greek to train on, others to test on.

    A class is a letter, its upper and lower case and all typefaces together: what makes two images
    alike is which letter they are, not how they look. Each is dark on light with a random
    rotation, scale, shear and shift.

    Args:
        root: not used; the typefaces come with matplotlib.

    Raises:
        MlbenchError: matplotlib's fonts are missing, or the cache cannot be written.
    """
    return _load("glyphs", _by_letter)


def load_cased(root: Path | None) -> Dataset:  # noqa: ARG001 (every data set is given a root)
    """Take the images and the split of ``load`` with each case of a letter as its own class.

    Beside ``load``, whose classes hold two kinds of shapes, it shows what a loss gains by allowing
    a class several centres. Some letters look much the same in both cases.

    Args:
        root: not used; the typefaces come with matplotlib.

    Raises:
        MlbenchError: matplotlib's fonts are missing, or the cache cannot be written.
    """
    return _load("glyphs_cased", _by_case)


def _load(name: str, image_set: Callable[..., ImageSet]) -> Dataset:
    fonts = _font_files()
    letters = _letters(fonts)
    sides = [
        [letter for script in scripts for letter in letters if letter.script == script]
        for scripts in (TRAIN_SCRIPTS, TEST_SCRIPTS)
    ]
    plans = [_plan(side) for side in sides]
    pixels = _cached_pixels(plans[0] + plans[1], fonts)
    split = len(plans[0])
    train, test = with_top_folders(
        [
            image_set(sides[0], plans[0], pixels[:split]),
            image_set(sides[1], plans[1], pixels[split:]),
        ]
    )
    digests = (hashlib.sha256(image).digest() for image in pixels)
    return Dataset(name, train, test, fingerprint(_with_digests((train, test), digests)))


def _with_digests(
    sides: Iterable[ImageSet], digests: Iterable[bytes]
) -> list[tuple[ImageSet, list[bytes]]]:
    remaining = iter(digests)
    return [(side, [next(remaining) for _ in side.names]) for side in sides]


def _font_files() -> dict[str, Path]:
    folder = Path(mpl.get_data_path(), "fonts", "ttf")
    fonts = {face: folder / f"{face}.ttf" for face in FACES}
    missing = [face for face, path in fonts.items() if not path.is_file()]
    if missing:
        raise MlbenchError(f"no {missing[0]}.ttf in {folder}; reinstall matplotlib")
    return fonts


def _letters(fonts: dict[str, Path]) -> list[_Letter]:
    """Return the letters that enough faces hold in both cases, by code point."""
    held = {face: frozenset(map(chr, FT2Font(path).get_charmap())) for face, path in fonts.items()}
    letters = []
    for lower in sorted(filter(_is_plain_letter, frozenset().union(*held.values()))):
        faces = tuple(face for face in FACES if {lower, lower.upper()} <= held[face])
        if len(faces) >= _MIN_FACES:
            script, _, name = unicodedata.name(lower).partition(" ")
            name = name.removeprefix("SMALL LETTER ").lower().replace(" ", "-")
            letters.append(_Letter(script.capitalize(), name, lower, faces))
    return letters


def _is_plain_letter(character: str) -> bool:
    """Tell whether this is a lower-case letter with one upper case and without an accent.

    Letters that decompose (accented ones, ligatures and digraphs in one code point) would be near
    duplicates of others.
    """
    upper = character.upper()
    return (
        unicodedata.category(character) == "Ll"
        and len(upper) == 1
        and upper != character
        and upper.lower() == character
        and not unicodedata.decomposition(character)
    )


def _plan(letters: Sequence[_Letter]) -> list[_Glyph]:
    """Deal the images of every class evenly to cases and faces."""
    plan = []
    for label, letter in enumerate(letters):
        for i in range(IMAGES_PER_CLASS):
            # The faces go round in turn; starting elsewhere in each class evens out the rest.
            face = letter.faces[(label + i) % len(letter.faces)]
            is_upper = i >= IMAGES_PER_CLASS // 2
            case = "upper" if is_upper else "lower"
            character = letter.lower.upper() if is_upper else letter.lower
            name = f"{letter.script}/{letter.name}/{case}-{face}-{i:02d}"
            plan.append(_Glyph(face, character, name, label, is_upper))
    return plan


def _by_letter(letters: Sequence[_Letter], plan: Sequence[_Glyph], pixels: Pixels) -> ImageSet:
    class_names = tuple(f"{letter.script}/{letter.name}" for letter in letters)
    return _image_set(plan, [glyph.label for glyph in plan], class_names, pixels)


def _by_case(letters: Sequence[_Letter], plan: Sequence[_Glyph], pixels: Pixels) -> ImageSet:
    class_names = tuple(
        f"{letter.script}/{letter.name}/{case}" for letter in letters for case in ("lower", "upper")
    )
    return _image_set(plan, [2 * g.label + g.is_upper for g in plan], class_names, pixels)


def _image_set(
    plan: Sequence[_Glyph], labels: Sequence[int], class_names: tuple[str, ...], pixels: Pixels
) -> ImageSet:
    def read(i: int) -> ImageArray:
        return np.repeat(pixels[i][:, :, None], 3, axis=2)

    names = tuple(glyph.name for glyph in plan)
    return ImageSet(names, np.array(labels, np.int64), class_names, read)


def _cached_pixels(plan: Sequence[_Glyph], fonts: dict[str, Path]) -> Pixels:
    """Return the grey images, ``(N, SIZE, SIZE)``, drawing them if the cache has none."""
    key = hashlib.sha256(f"{VERSION} {PIL.__version__}".encode())
    for path in fonts.values():
        key.update(path.read_bytes())
    cache = cache_dir("glyphs") / f"{key.hexdigest()[:32]}.npz"
    pixels = _read_cache(cache)
    if pixels is None or pixels.shape != (len(plan), SIZE, SIZE) or pixels.dtype != np.uint8:
        pixels = _draw_all(plan, fonts)
        with atomic_file(cache) as file:
            np.savez(file, pixels=pixels)
    return pixels


def _read_cache(path: Path) -> Pixels | None:
    try:
        return npz.array(npz.read_members(path, ("pixels",))[0])
    except Exception:  # whatever a damaged archive raises, its pixels can be drawn again
        return None


def _draw_all(plan: Sequence[_Glyph], fonts: dict[str, Path]) -> Pixels:
    faces = {
        # The basic layout does not depend on which text-shaping library is installed.
        face: ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)
        for face, path in fonts.items()
    }
    jitter = np.random.default_rng(_SEED).uniform(-_JITTER, _JITTER, (len(plan), len(_JITTER)))
    drawn = [
        _draw(faces[glyph.face], glyph.character, row)
        for glyph, row in zip(plan, jitter, strict=True)
    ]
    return np.stack(drawn)


def _draw(font: ImageFont.FreeTypeFont, character: str, jitter: npt.NDArray[np.float64]) -> Pixels:
    """Draw one character in black on white, its ink in the middle, then jitter it."""
    left, top, right, bottom = font.getbbox(character)
    extent = max(right - left, bottom - top)
    canvas = Image.new("L", (_ZOOM * SIZE, _ZOOM * SIZE), 255)
    origin = (_ZOOM * SIZE - left - right) // 2, (_ZOOM * SIZE - top - bottom) // 2
    ImageDraw.Draw(canvas).text(origin, character, fill=0, font=font)
    coefficients = _affine(jitter, shrink=min(1.0, _MAX_EXTENT / extent))
    moved = canvas.transform(
        canvas.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=255
    )
    return np.asarray(moved.reduce(_ZOOM))


def _affine(jitter: npt.NDArray[np.float64], shrink: float) -> tuple[float, ...]:
    """Return Pillow's coefficients, which lead from the jittered image back to the drawn one."""
    angle, log_scale, shear, *shift = jitter
    cos, sin = np.cos(angle), np.sin(angle)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    back = np.linalg.inv(forward * np.exp(log_scale) * shrink)
    middle = np.full(2, _ZOOM * SIZE / 2)
    offset = middle - back @ (middle + _ZOOM * np.array(shift))
    return tuple(np.column_stack([back, offset]).ravel().tolist())
