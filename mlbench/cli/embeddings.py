"""The command about anyone's embeddings: eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli._common import print_list
from mlbench.errors import MlbenchError
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.metrics.embeddings import Embeddings

_COUNTS = ("n_query", "n_gallery", "n_lone")


def _whole_numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(k) for k in value.split(","))
    except ValueError as error:
        raise MlbenchError(f"--ks: '{value}' is not a list of integers such as 1,2,4,8") from error


@click.command(name="eval")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ks", default="1,2,4,8", show_default=True, callback=_whole_numbers, metavar="K,..")
@click.option("--nmi-restarts", type=click.IntRange(1), default=10, show_default=True)
@click.option("--no-nmi", is_flag=True, help="Leave out NMI, which takes a k-means.")
@click.option(
    "--memory-mb",
    type=click.IntRange(1),
    help="Working memory of the search, above the arrays; by default 256, and 2048 on a GPU.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Unrounded fractions, for programs.")
def evaluate(file: Path, no_nmi: bool, nmi_restarts: int, as_json: bool, **options: Any) -> None:
    """Evaluate the embeddings in FILE under mlbench's protocol.

    FILE is a NumPy .npz with the arrays embeddings (N, D) and labels (N,), integers or names. With
    gallery and gallery_labels too, they are searched; without, all others are.
    """
    from mlbench.metrics.embeddings import read_embeddings

    data = read_embeddings(file)
    restarts = 0 if no_nmi else nmi_restarts
    metrics = _measure(data, restarts, **options)
    counts = {name: int(metrics.pop(name)) for name in _COUNTS}
    counts |= {"n_class": len(set(data.labels.tolist())), "dimensions": data.queries.shape[1]}
    if as_json:
        report = {"file": str(file), "metrics": metrics, **counts, "nmi_restarts": restarts}
        write(json.dumps(report, indent=2) + "\n")
        return
    print_list(("metric", "percent"), [(k, f"{100 * v:.2f}") for k, v in metrics.items()], [])
    write(_summary(counts, restarts, data.gallery is not None))


def _measure(
    data: Embeddings, restarts: int, ks: tuple[int, ...], memory_mb: int | None, device: str
) -> dict[str, float]:
    import torch

    from mlbench.metrics.evaluation import evaluate_queries, nmi, summarize
    from mlbench.training.device import resolve_device

    place = resolve_device(device)
    queries = torch.as_tensor(data.queries).to(place)
    gallery = None if data.gallery is None else torch.as_tensor(data.gallery).to(place)
    results = evaluate_queries(
        queries,
        data.labels,
        gallery=gallery,
        gallery_labels=data.gallery_labels,
        ks=ks,
        memory_mb=memory_mb,
    )
    clustering = {"NMI": nmi(queries, data.labels, restarts=restarts)} if restarts else {}
    return {**summarize(results), **clustering}


def _summary(counts: dict[str, int], restarts: int, has_gallery: bool) -> str:
    against = f"in a gallery of {counts['n_gallery']}" if has_gallery else "against all others"
    lines = [
        f"{counts['n_query']} queries {against}; {counts['n_class']} classes, "
        f"{counts['dimensions']} dimensions; {counts['n_lone']} queries had nothing to find"
    ]
    if restarts:
        lines.append(f"NMI: the best of {restarts} restarts of k-means by inertia, seed 0")
    return "\n".join(lines) + "\n"
