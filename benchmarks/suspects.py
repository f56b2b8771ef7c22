"""How many planted mislabels and copies `mlbench suspects` finds, and what else it names.

    python benchmarks/suspects.py IMAGES RECORD [--first 3] [--draws 3]

IMAGES holds a folder per class, such as CUB's; RECORD is of a run made with --keep-model. Each draw
takes 20 classes of up to 30 images, moves 30 of the images to another class, and saves 30 others
again: at JPEG quality 30-85, and by turns also resized by 0.4-0.9, cropped by 1-4 % on each side,
or made brighter or darker by 15 % and resized by 0.7. The thresholds were chosen on classes and
images of draws 0, 1 and 2.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance

from mlbench.models.model import Model, load_model
from mlbench.models.suspects import all_images, find_suspects
from mlbench.registry import DATASETS

CLASSES, IMAGES, PLANTED = 20, 30, 30


@dataclass(frozen=True)
class Planted:
    """True classes of moved images, and originals of copies, by name."""

    moved: dict[str, str]
    copies: dict[str, str]


def plant(source: Path, folder: Path, draw: int) -> Planted:
    """Write the images of a draw into ``folder``."""
    rng = random.Random(draw)
    classes = sorted(rng.sample(sorted(each.name for each in source.iterdir()), CLASSES))
    files = [(c, file) for c in classes for file in sorted((source / c).iterdir())[:IMAGES]]
    rng.shuffle(files)
    moved: dict[str, str] = {}
    for number, (own, file) in enumerate(files):
        label = rng.choice([c for c in classes if c != own]) if number < PLANTED else own
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / label / file.name)
        if label != own:
            moved[f"{label}/{file.name}"] = own
    copies: dict[str, str] = {}
    for number, (own, file) in enumerate(files[PLANTED : 2 * PLANTED]):
        name = f"{own}/again-{number}.jpg"
        changed(file, number % 4, rng).save(folder / name, quality=rng.randint(30, 85))
        copies[name] = f"{own}/{file.name}"
    return Planted(moved, copies)


def changed(file: Path, kind: int, rng: random.Random) -> Image.Image:
    """Return an image as it is, resized, cropped, or brightened."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    if kind == 2:
        edge = rng.uniform(0.01, 0.04)
        box = (edge * width, edge * height, (1 - edge) * width, (1 - edge) * height)
        return image.crop(tuple(map(int, box)))  # type: ignore[arg-type]
    if kind == 3:
        image = ImageEnhance.Brightness(image).enhance(rng.choice([0.85, 1.15]))
    scale = {0: 1.0, 1: rng.uniform(0.4, 0.9), 3: 0.7}[kind]
    return image.resize((int(scale * width), int(scale * height)), Image.Resampling.BICUBIC)


def row(model: Model, folder: Path, planted: Planted) -> list[int]:
    """Return planted, found and false mislabels, then planted, found and false copies."""
    dataset = DATASETS.get(f"folder:{folder}").load()(None)
    found = find_suspects(model, all_images(dataset))
    named = {each.path for each in found.mislabels}
    pairs = {frozenset((each.path, each.original)) for each in found.copies}
    true = {frozenset(each) for each in planted.copies.items()}
    moved = planted.moved.keys()
    return [
        *(len(moved), len(named & moved), len(named - moved)),
        *(len(true), len(pairs & true), len(pairs - true)),
    ]


def main() -> None:
    """Print a line for each draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("--first", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    model = load_model(options.record)
    print("| draw | mislabels planted | found | false | copies planted | found | false |")
    print("|---|---|---|---|---|---|---|")
    for draw in range(options.first, options.first + options.draws):
        with tempfile.TemporaryDirectory() as folder:
            planted = plant(options.images, Path(folder), draw)
            figures = row(model, Path(folder), planted)
        print(f"| {draw} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
