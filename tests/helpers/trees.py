"""Tiny data sets in the official layouts, for tests of loaders, of the data command and of runs."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from mlbench.datasets.lists import Side


def write_image(path: Path, seed: int, mode: str = "RGB") -> None:
    """Write a small picture whose colour depends on the seed's tens, so that classes differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(seed // 10).integers(40, 215, 3)
    noise = np.random.default_rng(seed).integers(-30, 30, (24, 26, 3))
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


CUB_CLASSES = ("001.Auk", "002.Bunting", "003.Crow", "004.Dove")


def cub(root: Path) -> Path:
    """Write CUB-200-2011 with four classes of 3, 2, 3 and 2 images."""
    folder = root / "CUB_200_2011"
    sizes = zip(CUB_CLASSES, (3, 2, 3, 2), strict=True)
    names = [f"{name}/{i}.jpg" for name, count in sizes for i in range(count)]
    for number, name in enumerate(names):
        write_image(folder / "images" / name, 10 * int(name[:3]) + number)
    tables = {
        "classes.txt": list(enumerate(CUB_CLASSES, 1)),
        "images.txt": list(enumerate(names, 1)),
        "image_class_labels.txt": [(i, int(name[:3])) for i, name in enumerate(names, 1)],
    }
    for file, lines in tables.items():
        (folder / file).write_text("".join(f"{a} {b}\n" for a, b in lines))
    return folder


CARS_TRAIN = Side("training", 4, 2)
CARS_TEST = Side("test", 6, 2)
CARS_NUMBERS = (3, 1, 4, 2, 1, 4, 3, 2, 4, 3)


def cars(root: Path, **changed: object) -> Path:
    """Write Cars196 with ten images of four classes; the first is grey.

    Args:
        root: parent of the folder.
        **changed: other columns of the annotations, or ``class_names``.
    """
    folder = root / "cars196"
    paths = [f"car_ims/{i:06d}.jpg" for i in range(1, 11)]
    for number, path in enumerate(paths):
        seed = 10 * CARS_NUMBERS[number] + number
        write_image(folder / path, seed, "RGB" if number else "L")
    columns = {"relative_im_path": paths, "class": list(CARS_NUMBERS), "test": [0] * 10}
    names = changed.pop("class_names", ["Audi A 1", "BMW B/2", "Colt", "Dodge"])
    columns |= changed
    fields = [(name, object) for name in columns]
    table = np.array(list(zip(*columns.values(), strict=True)), dtype=fields)
    cell = np.array(names, dtype=object)
    savemat(folder / "cars_annos.mat", {"annotations": table, "class_names": cell})
    return folder


SOP_TRAIN = Side("training", 5, 2)
SOP_TEST = Side("test", 6, 3)


def sop(root: Path) -> Path:
    """Write Stanford Online Products with 2 and 3 classes."""
    folder = root / "Stanford_Online_Products"
    lists = {"Ebay_train.txt": (2, 2, 10, 10, 10), "Ebay_test.txt": (11, 11, 12, 12, 113, 113)}
    image = 0
    for file, classes in lists.items():
        lines = ["image_id class_id super_class_id path"]
        for number in classes:
            image += 1
            path = f"chair_final/{image:04d}_{number}.JPG"
            write_image(folder / path, 10 * number + image)
            lines.append(f"{image} {number} 1 {path}")
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder


INSHOP_SIDES = (Side("train", 16, 4), Side("query", 8, 4), Side("gallery", 12, 4))


def inshop(folder: Path) -> Path:
    """Write In-Shop: 4 items of 4 images to train on, 4 of 2 queries and 3 in the gallery."""
    lines = ["36", "image_name item_id evaluation_status"]
    for item in range(1, 9):
        statuses = ["train"] * 4 if item <= 4 else ["query"] * 2 + ["gallery"] * 3
        for number, status in enumerate(statuses):
            path = f"img/MEN/Tees/id_{item:08d}/{number:02d}_front.jpg"
            write_image(folder / path, 10 * item + number)
            lines.append(f"{path:<60} id_{item:08d} {status}      ")
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return folder
