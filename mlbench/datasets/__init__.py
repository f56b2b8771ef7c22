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
        name="cub200",
        target="mlbench.datasets.cub200:load",
        summary="CUB-200-2011 birds: 100 species to train on, 100 others to test on",
        paper="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001, 2011",
    ),
    DatasetEntry(
        name="folder",
        target="mlbench.datasets.folder:load",
        summary="your folder of class folders: first half to train on, second half to test on",
        prefix=True,
        needs_root=False,
    ),
)
