"""Where public data sets come from: addresses, checksums, terms, and what is left to do by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlbench.datasets import cars196, cub200, inshop, sop
from mlbench.errors import unknown_name
from mlbench.system.archives import Limits
from mlbench.system.download import Pin


@dataclass(frozen=True)
class SourceFile:
    """A published file and what becomes of it.

    Attributes:
        name: as it is published.
        target: what it becomes in the data root: a file, or an unpacked folder.
        top: the folder of the archive that is unpacked; empty for a file that stays as it is.
        pin: what is published of it; empty if nothing is.
        urls: places to fetch it from, best first; none if it can only be had by hand.
    """

    name: str
    target: str
    top: str = ""
    pin: Pin = field(default_factory=Pin)
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublicSource:
    """A public data set.

    Attributes:
        name: as in ``mlbench list datasets``.
        files: what it consists of.
        images: their number.
        limits: of each archive.
        page: of its authors.
        terms: one line on what it may be used for.
        by_hand: how to get the files where they cannot be fetched, for "to get it by hand, ...".
        fingerprint: of the official files; None as long as nobody has measured it.
    """

    name: str
    files: tuple[SourceFile, ...]
    images: int
    limits: Limits
    page: str
    terms: str
    by_hand: str
    fingerprint: str | None = None

    @property
    def size(self) -> int | None:
        """Bytes to download; None if the size of a file is not published."""
        sizes = [file.pin.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


_HUB = (
    "https://huggingface.co/datasets/XiN0919/FGVC/resolve/921e8dce38536cd5982739d85d5e9235d2cb2a76"
)
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="

# SHA-256 and size of CUB-200-2011 and of Stanford Online Products: the checksum files of TensorFlow
# Datasets (caltech_birds2011, stanford_online_products). MD5 of Cars196: the loaders of Musgrave's
# powerful-benchmarker; its size: the mirror's own listing.
_SOURCES = (
    PublicSource(
        name="cub200",
        files=(
            SourceFile(
                name="CUB_200_2011.tgz",
                target=cub200.FOLDER,
                top="CUB_200_2011",
                pin=Pin(
                    sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                    size=1_150_585_339,
                ),
                urls=(
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                    "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",
                ),
            ),
        ),
        images=11_788,
        limits=Limits(files=20_000, bytes=4_000_000_000),
        page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        terms="no licence comes with it; the photographs belong to their authors (Flickr users and "
        "others): research only, see its page",
        by_hand="open https://data.caltech.edu/records/65de6-vp158 and download CUB_200_2011.tgz",
    ),
    PublicSource(
        name="cars196",
        files=(
            SourceFile(
                name="car_ims.tgz",
                target=f"{cars196.FOLDER}/car_ims",
                top="car_ims",
                pin=Pin(md5="d5c8f0aa497503f355e17dc7886c3f14", size=1_956_628_579),
                urls=(f"{_HUB}/car_ims.tgz",),
            ),
            SourceFile(
                name="cars_annos.mat",
                target=f"{cars196.FOLDER}/{cars196.ANNOTATIONS}",
                pin=Pin(md5="b407c6086d669747186bd1d764ff9dbc", size=394_471),
                urls=(f"{_HUB}/cars_annos.mat",),
            ),
        ),
        images=16_185,
        limits=Limits(files=20_000, bytes=6_000_000_000),
        page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (offline since 2023)",
        terms="no licence is known; the authors' page is offline, this is a mirror by others; the "
        "photographs belong to their authors: research only",
        by_hand="find copies of the authors' car_ims.tgz and cars_annos.mat (MD5 "
        "d5c8f0aa497503f355e17dc7886c3f14 and b407c6086d669747186bd1d764ff9dbc)",
    ),
    PublicSource(
        name="sop",
        files=(
            SourceFile(
                name="Stanford_Online_Products.zip",
                target=sop.FOLDER,
                top="Stanford_Online_Products",
                pin=Pin(
                    sha256="b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
                    size=3_083_860_082,
                ),
                urls=(f"{_DRIVE}1TclrpQOF_ullUP99wk_gjGN8pKvtErG8",),
            ),
        ),
        images=120_053,
        limits=Limits(files=150_000, bytes=9_000_000_000),
        page="https://cvgl.stanford.edu/projects/lifted_struct/",
        terms="no licence is known; the photographs belong to sellers on eBay: research only",
        by_hand="open https://github.com/rksltnl/Deep-Metric-Learning-CVPR16 and follow its link "
        "to the dataset, or fetch ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
    ),
    PublicSource(
        name="inshop",
        files=(
            SourceFile(name="img.zip", target=f"{inshop.FOLDER}/img", top="img"),
            SourceFile(name=inshop.LIST, target=f"{inshop.FOLDER}/{inshop.LIST}"),
        ),
        images=52_712,
        limits=Limits(files=80_000, bytes=6_000_000_000),
        page="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        terms="non-commercial research and education only (its README); read the agreement on its "
        "page before you download it",
        by_hand="open https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html and "
        "download Img/img.zip and Eval/list_eval_partition.txt of the 'In-shop Clothes Retrieval "
        "Benchmark'",
    ),
)

SOURCES = {source.name: source for source in _SOURCES}


def get_source(name: str) -> PublicSource:
    """Return a public data set by name; MlbenchError with near misses if there is none."""
    if name not in SOURCES:
        raise unknown_name("public data set", name, SOURCES)
    return SOURCES[name]
