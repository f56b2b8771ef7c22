"""Results as one HTML file that needs nothing else: no server, no network, no script library."""

from __future__ import annotations

from pathlib import Path

from mlbench.errors import MlbenchError
from mlbench.progress import PhaseProgress
from mlbench.records.store import read_results
from mlbench.report.page import render
from mlbench.report.svg import figures as svg_files
from mlbench.system.files import atomic_file, check_path

__all__ = ["write_report"]


def write_report(
    folder: Path,
    output: Path,
    data_root: Path | None = None,
    figures: Path | None = None,
    progress: PhaseProgress = lambda *_: None,
) -> tuple[str, ...]:
    """Write all results of a folder as one HTML file.

    The same records (and images) give the same files.

    Args:
        folder: of the records.
        output: the file, replaced if it exists.
        data_root: folder that holds the data sets of the records, for figures by class, gallery
            and map; without it the page says what is missing.
        figures: folder for the page's figures as SVG files too, each named as in the page.
        progress: told of each phase and each comparison that is drawn.

    Returns:
        one line for each file that is no readable record.

    Raises:
        MlbenchError: no folder, no readable record, or a file cannot be written.
    """
    check_path(output)
    if output.is_dir():
        raise MlbenchError(
            f"{output} is a folder; pass a file with -o, such as {output}/report.html"
        )
    results = read_results(folder)
    if not results.records:
        raise MlbenchError(f"no readable record in '{folder}'")
    text = render(results, folder, data_root, progress)
    with atomic_file(output) as file:
        # A file name may hold bytes that are no text.
        file.write(text.encode("utf-8", "replace"))
    if figures is not None:
        for name, svg in svg_files(text).items():
            with atomic_file(figures / f"{name}.svg") as file:
                file.write(svg.encode("utf-8", "replace"))
    return results.problems
