"""Built-in data sets, by name; their modules are imported when they are first loaded."""

from mlbench.interfaces import DatasetEntry

BUILTIN: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="glyphs",
        target="mlbench.datasets.glyphs:load",
        summary="letters of five scripts in many typefaces, drawn here; needs no files",
        needs_root=False,
    ),
    DatasetEntry(
        name="glyphs_cased",
        target="mlbench.datasets.glyphs:load_cased",
        summary="the same letters, upper and lower case as classes of their own; needs no files",
        needs_root=False,
    ),
    DatasetEntry(
        name="cub200",
        target="mlbench.datasets.cub200:load",
        summary="CUB-200-2011 birds: 100 species to train on, 100 others to test on",
        paper="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001, 2011",
    ),
    DatasetEntry(
        name="cars196",
        target="mlbench.datasets.cars196:load",
        summary="Cars196: 98 models of cars to train on, 98 others to test on",
        paper="Krause et al., 3D Object Representations for Fine-Grained Categorization, 3dRR 2013",
    ),
    DatasetEntry(
        name="sop",
        target="mlbench.datasets.sop:load",
        summary="Stanford Online Products: 11,318 products to train on, 11,316 others to test on",
        paper="Oh Song et al., Deep Metric Learning via Lifted Structured Feature Embedding, "
        "CVPR 2016",
        ks=(1, 10, 100, 1000),
    ),
    DatasetEntry(
        name="inshop",
        target="mlbench.datasets.inshop:load",
        summary="In-Shop Clothes: 3,997 items to train on; queries of 3,985 others and a gallery",
        paper="Liu et al., DeepFashion: Powering Robust Clothes Recognition and Retrieval with "
        "Rich Annotations, CVPR 2016",
        ks=(1, 10, 20, 30),
    ),
    DatasetEntry(
        name="folder",
        target="mlbench.datasets.folder:load",
        summary="your folder of class folders: first half to train on, second half to test on",
        prefix=True,
        needs_root=False,
    ),
    DatasetEntry(
        name="table",
        target="mlbench.datasets.table:load",
        summary="your table of images (.csv, .tsv, .parquet): path, label, split and more",
        prefix=True,
        needs_root=False,
    ),
)
