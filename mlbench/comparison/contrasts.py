"""Questions of one's own to the rows of a table: contrasts of several rows, and their order.

Both hold for other test classes and other seeds, as the tables do. A contrast's interval is its
own: whoever prints several chooses among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlbench.comparison.comparison import METRIC, compare
from mlbench.comparison.crossed import ClassTotals, Components, components
from mlbench.comparison.effects import Contrast
from mlbench.comparison.factorial import class_totals
from mlbench.comparison.pairs import both_ways, half_widths, p_values, satterthwaite
from mlbench.errors import MlbenchError, unknown_name
from mlbench.records.store import read_results

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Figures = npt.NDArray[np.float64]

_DRAWS = 100_000


def totals_of(
    folder: str | os.PathLike[str], dataset: str | None = None, metric: str = METRIC
) -> dict[str, ClassTotals]:
    """Return the totals by test class of the rows of a folder's table, by their names there.

    Baselines are among them only where no seed enters them (``features``, ``pca``), so that the
    noise between seeds is that of trained rows, as in tables.

    Args:
        folder: with records, or a pack.
        dataset: name; needed if the folder has tables of several data sets.
        metric: whose totals.

    Raises:
        MlbenchError: the folder has no table or several of this data set, or records without
            totals by class.
    """
    records = read_results(Path(folder)).records
    tables = [table for table in compare(records) if dataset in (None, table.dataset)]
    if len(tables) != 1:
        raise MlbenchError(f"{len(tables)} tables in '{folder}', where one is expected")
    rows = [row for row in tables[0].rows if row.files and (row.copied or not row.baseline)]
    found = {str(path): record for path, record in records.items()}
    return {row.label: class_totals([found[name] for name in row.files], metric) for row in rows}


def contrast(rows: Mapping[str, ClassTotals], weights: Mapping[str, float]) -> Contrast:
    """Return a weighted sum of the means of rows, for other test classes and other seeds.

    With the weights 1 and -1 it is the difference of two rows, with the interval of ``Pairs``.

    Args:
        rows: of one table, tested on the same classes; all of them tell the noise between seeds.
        weights: by row; those of the others are 0.

    Raises:
        MlbenchError: a row that is not there, or no row has two runs.
    """
    import numpy as np

    parts = _known(rows, weights)
    factors = np.array([weights.get(name, 0.0) for name in parts.names])
    value = np.array([factors @ parts.means])
    ways = _ways(parts, factors)
    width, p = half_widths(ways), p_values(value, ways)
    return Contrast(float(value[0]), float(width[0]), float(p[0]))


def _ways(parts: Components, factors: Figures) -> tuple[tuple[Figures, Figures], ...]:
    """Return variance and degrees of freedom of a contrast: in all, of seeds and of classes."""
    import numpy as np

    noise, squares = parts.noise, factors**2 * parts.share_of_run
    groups = [~noise.own, *(np.arange(len(squares)) == n for n in np.flatnonzero(noise.own))]
    terms = [
        (np.array([squares[g] @ noise.seeds[g]]), np.array([noise.freedom[g].max(initial=1)]))
        for g in groups
    ]
    seeds = np.sum([variance for variance, _ in terms], axis=0)
    of_seeds = seeds, satterthwaite(seeds, terms)
    of_classes = np.array([factors @ parts.class_products @ factors])
    classes = of_classes, np.array([parts.class_freedom])
    both = np.array([squares @ noise.both]), of_seeds[1] * parts.class_freedom
    return both_ways(classes, of_seeds, both), of_seeds, classes


def chance_of_order(rows: Mapping[str, ClassTotals], order: Sequence[str]) -> float:
    """Return the chance that a repetition of a study has the means of some rows in this order.

    The repetition has as many runs of each row, with other seeds, and as many test classes of the
    same kind, but other ones. Its means are drawn (100,000 times, always the same) from a normal
    distribution around the measured ones with twice their covariance over classes and seeds: once
    for what is not known of the true means, once for the noise of the repetition. It is an
    estimate; with few seeds or classes a crude one.

    Args:
        rows: of one table, tested on the same classes; all of them tell the noise between seeds.
        order: names of rows, that with the highest mean first.

    Raises:
        MlbenchError: a row that is not there, or no row has two runs.
    """
    import numpy as np

    parts = _known(rows, order)
    chosen = [parts.names.index(name) for name in order]
    noise = np.maximum(parts.noise.seeds - parts.noise.both, 0) * parts.share_of_run
    covariance = (parts.class_products + np.diag(noise))[np.ix_(chosen, chosen)]
    # Cholesky's factor is unique, where eigenvectors may turn with the last digit.
    ridge = np.diag(np.full(len(chosen), 1e-12 * covariance.diagonal().max()))
    factor = np.linalg.cholesky(2 * covariance + ridge)
    drawn = np.random.RandomState(0).standard_normal((_DRAWS, len(chosen))) @ factor.T
    means = parts.means[chosen] + drawn
    return float((np.diff(means, axis=1) < 0).all(axis=1).mean())


def _known(rows: Mapping[str, ClassTotals], names: Iterable[str]) -> Components:
    """Return the components of rows, of which some are asked for."""
    for name in names:
        if name not in rows:
            raise MlbenchError(unknown_name("row", name, rows))
    parts = components(rows)
    if not (parts.for_other_seeds and parts.for_other_classes):
        raise MlbenchError("one seed or one class: nothing can be said for other ones")
    return parts
