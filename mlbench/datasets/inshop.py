"""In-Shop Clothes Retrieval of DeepFashion in its official layout: queries and a gallery."""

from __future__ import annotations

from pathlib import Path

from mlbench.datasets.data_root import find
from mlbench.datasets.files import file_dataset
from mlbench.datasets.lists import MEND, Listed, Side, build_side, check_disjoint, line_error, rows
from mlbench.errors import MlbenchError, first_few
from mlbench.interfaces import Dataset, ImageSet

FOLDER = "inshop"
LIST = "list_eval_partition.txt"
MARKERS = (LIST, "img")
_OFFICIAL_FOLDER = "In-shop Clothes Retrieval Benchmark"
_OFFICIAL_MARKERS = (f"Eval/{LIST}", "Img/img")

_HEADER = ("image_name", "item_id", "evaluation_status")
_TRAIN = Side("train", 25_882, 3_997)
_QUERY = Side("query", 14_218, 3_985)
_GALLERY = Side("gallery", 12_612, 3_985)


def load(root: Path | None) -> Dataset:
    """Load In-Shop Clothes Retrieval (Liu et al. 2016): each query is searched in the gallery.

    Args:
        root: the folder that holds ``list_eval_partition.txt`` and ``img``, or the official one
            with ``Eval`` and ``Img``, or the parent of either; see
            ``mlbench.datasets.data_root`` for the default.

    Raises:
        MlbenchError: its files are not there, or not those of the data set.
    """
    return _load(*locate(root), _TRAIN, _QUERY, _GALLERY)


def locate(root: Path | None) -> tuple[Path, Path]:
    """Return the list and the folder that its paths are relative to; MlbenchError if not there."""
    try:
        folder = find("inshop", root, _OFFICIAL_FOLDER, _OFFICIAL_MARKERS)
    except MlbenchError:
        folder = find("inshop", root, FOLDER, MARKERS)
        return folder / LIST, folder
    return folder / "Eval" / LIST, folder / "Img"


def _load(source: Path, folder: Path, train: Side, query: Side, gallery: Side) -> Dataset:
    listed = _listed(source)
    sides = [build_side(source, folder, listed[s.name], s) for s in (train, query, gallery)]
    check_disjoint(source, *sides)
    _check_gallery(source, *sides[1:])
    return file_dataset("inshop", folder, *sides)


def _listed(path: Path) -> dict[str, list[Listed]]:
    """Read lines of ``image_name item_id status`` below the number of images and a header."""
    listed: dict[str, list[Listed]] = {"train": [], "query": [], "gallery": []}
    for number, (name, item, status) in rows(path, _HEADER, above=1):
        if status not in listed:
            problem = f"expected one of {', '.join(listed)}"
            raise line_error(path, number, problem, status)
        listed[status].append(Listed(name, item))
    return listed


def _check_gallery(source: Path, query: ImageSet, gallery: ImageSet) -> None:
    if query.class_names != gallery.class_names:
        alone = sorted(set(query.class_names) ^ set(gallery.class_names))
        raise MlbenchError(
            f"{source}: {first_few(alone)} are not both among the queries and in the gallery; "
            f"{MEND}"
        )
    if set(query.names) & set(gallery.names):
        raise MlbenchError(f"{source}: an image is both a query and in the gallery; {MEND}")
