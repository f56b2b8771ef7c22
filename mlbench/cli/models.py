"""Commands that use trained models: export, embed, index, search."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mlbench.cli._common import print_list, progress_bar, record_argument
from mlbench.errors import MlbenchError, first_few, printable
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.models.folders import EmbeddedFolder
    from mlbench.models.index import Index
    from mlbench.models.model import Model
    from mlbench.models.search import Answer, Hit

_run = record_argument("run", kept=True)
_weights = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="File of the backbone's weights, if the backbone is frozen and its recipe names a file.",
)
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
_folder = click.argument("folder", type=click.Path(path_type=Path))
_on_bad_image = click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="If images cannot be read: report them and stop, or skip them.",
)


def _output(**settings: str | bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option("--output", "-o", type=kind, help="File to write.", **settings)  # type: ignore[arg-type]


@click.command()
@_run
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "pt2", "safetensors"]),
    required=True,
    help="ONNX, torch.export, or the tensors of the network.",
)
@_output(required=True)
@_weights
def export(
    run: Path, form: Literal["onnx", "pt2", "safetensors"], output: Path, weights: Path | None
) -> None:
    """Write the model of RUN for other programs.

    RUN is a record made with --keep-model, a folder with one, or FOLDER:LOSS.

    The network maps uint8 RGB crops (B, 3, size, size) to L2-normalised embeddings (B, D), for any
    B, and includes the normalisation of pixels. The exported network is run and compared with the
    original: if an entry differs by more than 1e-4, no file is written and the exit code is 1.
    """
    from mlbench.models.export import TOLERANCE, export
    from mlbench.models.model import load_model
    from mlbench.system.files import atomic_file

    with progress_bar() as report:
        model = load_model(run, device="cpu", weights=weights)
        report(f"exporting as {form}", 0, 0)
        exported = export(model, form)
    click.echo(f"largest difference to the original: {exported.difference:.2g}", err=True)
    if not exported.faithful:
        click.echo(f"Error: above {TOLERANCE:g}; {output} is not written", err=True)
        sys.exit(1)
    with atomic_file(output) as file:
        file.write(exported.content)
    megabytes = len(exported.content) / 1e6
    click.echo(
        f"{output}: {megabytes:.1f} MB; input uint8 RGB (B, 3, {model.size}, {model.size}), the "
        f"centre of an image whose shorter side is {model.resize}",
        err=True,
    )


@click.command()
@_run
@_folder
@_output(default="embeddings.npz", show_default=True)
@_on_bad_image
@_device
@_weights
def embed(
    run: Path, folder: Path, output: Path, on_bad_image: str, device: str, weights: Path | None
) -> None:
    """Embed all images below FOLDER with the model of RUN.

    RUN is a record made with --keep-model, a folder with one, or FOLDER:LOSS.

    Writes a NumPy .npz: embeddings, float32 (N, D), L2-normalised; paths (N,), relative to FOLDER;
    and, if every image is in a subfolder of FOLDER, the names of these folders as labels (N,), so
    that `mlbench eval` can read it.
    """
    from mlbench.models.folders import save_embeddings

    _, embedded = _embedded(run, folder, on_bad_image, device, weights)
    save_embeddings(embedded, output)
    labels = "" if embedded.labels is None else f", {len(set(embedded.labels))} classes"
    click.echo(f"{output}: {len(embedded.paths):,} images{labels}", err=True)


def _embedded(
    run: Path, folder: Path, on_bad_image: str, device: str, weights: Path | None
) -> tuple[Model, EmbeddedFolder]:
    from mlbench.models.folders import embed_folder
    from mlbench.models.model import load_model

    with progress_bar() as report:
        model = load_model(run, device=device, weights=weights)
        embedded = embed_folder(
            model, folder, lambda done, total: report("embedding images", done, total)
        )
    _name_bad(embedded.bad, on_bad_image)
    return model, embedded


def _name_bad(bad: Sequence[str], on_bad_image: str) -> None:
    """Stop at images that cannot be read, or warn of them."""
    from mlbench.datasets.decode import BadImagesError

    if bad and on_bad_image == "error":
        raise BadImagesError(bad)
    if bad:
        click.echo(f"Warning: skipped {len(bad)}: {_some(bad)}", err=True)


def _some(items: Sequence[str]) -> str:
    return printable(first_few(items, "; "))


@click.command()
@_run
@_folder
@_output()
@click.option(
    "--index",
    "kind",
    type=click.Choice(["auto", "exact", "ivf"]),
    default="auto",
    show_default=True,
    help="Search all images (exact), or the cells nearest to a query (ivf). auto uses ivf from "
    "100,000 images on, if it is faster at a recall of 0.99.",
)
@click.option(
    "--update",
    is_flag=True,
    help="Embed only images that are new or changed since the index was made, and remove deleted "
    "ones.",
)
@_on_bad_image
@_device
@_weights
def index(
    run: Path,
    folder: Path,
    output: Path | None,
    kind: Literal["auto", "exact", "ivf"],
    update: bool,
    on_bad_image: str,
    device: str,
    weights: Path | None,
) -> None:
    """Embed all images below FOLDER for `mlbench search`.

    RUN is a record made with --keep-model, a folder with one, or FOLDER:LOSS. Without -o the index
    is written next to the record, where a search with RUN finds it. For an approximate index (ivf),
    its recall against exact search is printed.
    """
    from mlbench.models.index import default_index, make_index, save_index

    output = output or default_index(run)
    if update:
        made = _updated(output, folder, on_bad_image, device, weights)
    else:
        _, embedded = _embedded(run, folder, on_bad_image, device, weights)
        made = make_index(embedded, run, kind)
    save_index(made, output)
    click.echo(f"{output}: {len(made.paths):,} images{_cells(made)}", err=True)


def _updated(
    output: Path, folder: Path, on_bad_image: str, device: str, weights: Path | None
) -> Index:
    from mlbench.models.folders import existing_folder
    from mlbench.models.index import open_index, update_index
    from mlbench.models.model import load_model

    with progress_bar() as report:
        found = open_index(output)
        if existing_folder(folder) != found.root:
            raise MlbenchError(
                f"{output}: is an index of {found.root}; pass that folder, or omit --update"
            )
        model = load_model(found.run, device=device, weights=weights)
        made, change = update_index(
            model, found, lambda done, total: report("embedding images", done, total)
        )
    _name_bad(change.bad, on_bad_image)
    click.echo(f"{change.added:,} images embedded, {change.removed:,} removed", err=True)
    return made


def _cells(index: Index) -> str:
    from mlbench.models.approximate import recall

    if index.cells is None:
        return ""
    return (
        f"; approximate: {index.cells.probes:,} of {len(index.cells.centroids):,} cells per query, "
        f"recall {recall(index.cells, index.embeddings):.3f} of the exact 10 nearest of a sample"
    )


@click.command()
@click.argument("source", metavar="RUN|INDEX", type=click.Path(path_type=Path))
@click.argument(
    "queries", metavar="QUERY...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True)
@click.option(
    "--threshold",
    metavar="COSINE|far=F",
    help="Print same or different: same from this cosine on, or from the run's threshold at "
    "false accept rate F on.",
)
@click.option(
    "--html",
    "sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write an HTML page with the images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_device
@_weights
def search(
    source: Path,
    queries: tuple[Path, ...],
    top: int,
    threshold: str | None,
    sheet: Path | None,
    as_json: bool,
    device: str,
    weights: Path | None,
) -> None:
    """Print the images of an index that are most similar to each QUERY, a file or a folder.

    The query itself, and copies of its file, are excluded. Where the folder of a query is a class
    of the index, hits of that class are marked. Similarity is the cosine of embeddings. The
    search is exact unless the index is approximate. Images that were changed or deleted since they
    were indexed are reported.
    """
    from mlbench.models.index import open_index
    from mlbench.models.model import load_model
    from mlbench.models.search import query_files, search
    from mlbench.models.search import threshold as threshold_of

    if source.suffix != ".npz":
        from mlbench.records.choice import choose_record

        source = choose_record(source, kept=True)
    with progress_bar() as report:
        found = open_index(source)
        files = query_files(queries)
        model = load_model(found.run, device=device, weights=weights)
        least = None if threshold is None else threshold_of(threshold, model.record)
        answers = search(
            model, found, files, top, lambda done, total: report("embedding queries", done, total)
        )
    for state in ("changed", "gone"):
        paths = found.in_state(state)
        if paths:
            count = f"{len(paths):,} of {len(found.paths):,}"
            click.echo(f"Warning: {state} since indexed: {count}: {_some(paths)}", err=True)
    if sheet is not None:
        from mlbench.report.search import write_sheet

        write_sheet(answers, found, sheet)
        click.echo(f"{sheet}: {sheet.stat().st_size / 1e6:.1f} MB", err=True)
    if as_json:
        tables = [_table(answer, found.root, least) for answer in answers]
        write(json.dumps(tables, indent=1) + "\n")
    else:
        _print_answers(answers, found.root, least)


def _table(answer: Answer, root: Path, least: float | None) -> dict[str, Any]:
    hits = [
        {**asdict(hit), "path": str(root / hit.path), **_verdict(hit, least)} for hit in answer.hits
    ]
    return {"query": str(answer.query), "results": hits}


def _verdict(hit: Hit, least: float | None) -> dict[str, str]:
    if least is None:
        return {}
    return {"verdict": "same" if hit.similarity >= least else "different"}


def _print_answers(answers: Sequence[Answer], root: Path, least: float | None) -> None:
    verdict = () if least is None else (f"from {least:.4f}",)
    for answer in answers:
        click.echo(printable(f"{answer.query}, in {root}:"))
        rows = [
            (
                str(rank),
                f"{hit.similarity:.4f}",
                *_verdict(hit, least).values(),
                hit.path,
                "" if hit.same_class is None else "yes" if hit.same_class else "no",
                "" if hit.state == "same" else hit.state,
            )
            for rank, hit in enumerate(answer.hits, 1)
        ]
        print_list(("", "similarity", *verdict, "image", "same class", ""), rows, [])


COMMANDS = (export, embed, index, search)
