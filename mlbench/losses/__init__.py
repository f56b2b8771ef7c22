"""The catalogue of built-in losses; their code is imported when one is built.

In formulas s is the cosine, a, p and n are an anchor, its positives and its negatives in the batch.
Parameters of class vectors learn at 1e-2, 100 times the trunk, as in the code of SoftTriple and
Proxy-Anchor, unless a comment says otherwise. A search spans a factor of 3 to 10 to each side of
the paper's default, cut where the quantity ends (cosines at 1, distances of unit vectors at 2).
"""

from mlbench.interfaces import LossEntry
from mlbench.losses.entries_pairs import PAIRS
from mlbench.losses.entries_proxies import PROXIES
from mlbench.losses.entries_rankings import RANKINGS

BUILTIN: tuple[LossEntry, ...] = (
    *PROXIES,
    *PAIRS,
    *RANKINGS,
    LossEntry(
        name="pml",
        target="mlbench.losses.pml:by_name",
        prefix=True,
        summary="any loss of pytorch-metric-learning: pml:LossClass or pml:LossClass+MinerClass",
        formula="as that library computes it; arguments miner_... go to the miner",
        images_per_class=4,
        lr=1e-2,
        proxies="free",
    ),
)
