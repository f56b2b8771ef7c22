"""The command about anyone's embeddings: eval."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlbench.cli._common import print_list
from mlbench.errors import MlbenchError
from mlbench.system.streams import write

if TYPE_CHECKING:
    from mlbench.metrics.embeddings import Embeddings
    from mlbench.metrics.roc import Interval, Verification

_COUNTS = ("n_query", "n_gallery", "n_lone")


def _whole_numbers(
    _ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...]:
    try:
        return tuple(int(k) for k in value.split(",")) if value else ()
    except ValueError as error:
        raise MlbenchError(
            f"--{param.name}: '{value}' is not a list of integers such as 1,2,4,8"
        ) from error


@click.command(name="eval")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--ks", default="1,2,4,8", show_default=True, callback=_whole_numbers, metavar="K,..")
@click.option(
    "--depths",
    callback=_whole_numbers,
    metavar="K,..",
    help="Also print P@k and mAP@k for these k.",
)
@click.option(
    "--verification",
    is_flag=True,
    help="Also compare all pairs: TAR at FAR with its threshold, and EER.",
)
@click.option("--nmi-restarts", type=click.IntRange(1), default=10, show_default=True)
@click.option("--no-nmi", is_flag=True, help="Skip NMI, which requires k-means clustering.")
@click.option(
    "--memory-mb",
    type=click.IntRange(1),
    help="Working memory of the search, in addition to the arrays. [default: 256; on a GPU 2048]",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(file: Path, no_nmi: bool, nmi_restarts: int, as_json: bool, **options: Any) -> None:
    """Evaluate the embeddings in FILE under mlbench's evaluation protocol.

    FILE is a NumPy .npz with the arrays embeddings (N, D) and labels (N,), integers or names. If it
    also contains gallery and gallery_labels, queries are searched in that gallery; otherwise each
    row is searched among all other rows.
    """
    from mlbench.metrics.embeddings import read_embeddings

    data = read_embeddings(file)
    restarts = 0 if no_nmi else nmi_restarts
    metrics, pairs = _measure(data, restarts, **options)
    counts = {name: int(metrics.pop(name)) for name in _COUNTS}
    counts |= {"n_class": len(set(data.labels.tolist())), "dimensions": data.queries.shape[1]}
    if as_json:
        report = {"file": str(file), "metrics": metrics, **counts, "nmi_restarts": restarts}
        report |= {"verification": asdict(pairs)} if pairs else {}
        write(json.dumps(report, indent=2) + "\n")
        return
    print_list(("metric", "percent"), [(k, f"{100 * v:.2f}") for k, v in metrics.items()], [])
    if pairs:
        _print_verification(pairs)
    write(_summary(counts, restarts, data.gallery is not None))


def _measure(
    data: Embeddings,
    restarts: int,
    ks: tuple[int, ...],
    depths: tuple[int, ...],
    verification: bool,
    memory_mb: int | None,
    device: str,
) -> tuple[dict[str, float], Verification | None]:
    import torch

    from mlbench.metrics.evaluation import (
        Others,
        evaluate_pairs,
        evaluate_queries,
        nmi,
        summarize,
    )
    from mlbench.training.device import resolve_device

    place = resolve_device(device)
    queries = torch.as_tensor(data.queries).to(place)
    gallery = None if data.gallery is None else torch.as_tensor(data.gallery).to(place)
    others: Others = {"gallery": gallery, "gallery_labels": data.gallery_labels}
    results = evaluate_queries(
        queries, data.labels, **others, ks=ks, depths=depths, memory_mb=memory_mb
    )
    clustering = {"NMI": nmi(queries, data.labels, restarts=restarts)} if restarts else {}
    pairs = evaluate_pairs(queries, data.labels, **others) if verification else None
    return {**summarize(results), **clustering}, pairs


def _print_verification(pairs: Verification) -> None:
    rows = [
        (f"{point.far:g}", _percent(point.tar), _cosine(point.threshold)) for point in pairs.points
    ]
    print_list(("FAR", "TAR, percent", "threshold, cosine"), rows, [])
    write(
        f"EER {_percent(pairs.eer)} percent; {pairs.genuine:,} pairs of one class, "
        f"{pairs.impostor:,} of two; 95 % intervals over classes\n"
    )


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.2f} ({100 * value.low:.2f} to {100 * value.high:.2f})"


def _cosine(value: Interval) -> str:
    return f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"


def _summary(counts: dict[str, int], restarts: int, has_gallery: bool) -> str:
    against = f"in a gallery of {counts['n_gallery']}" if has_gallery else "against all others"
    lines = [
        f"{counts['n_query']} queries {against}; {counts['n_class']} classes, "
        f"{counts['dimensions']} dimensions; {counts['n_lone']} lone queries, without another "
        "image of their class"
    ]
    if restarts:
        lines.append(f"NMI: the best of {restarts} restarts of k-means by inertia, seed 0")
    return "\n".join(lines) + "\n"
