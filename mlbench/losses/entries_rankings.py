"""Losses of the order or the distribution of similarities in a batch."""

from mlbench.interfaces import LossEntry

RANKINGS: tuple[LossEntry, ...] = (
    LossEntry(
        name="histogram",
        target="mlbench.losses.ranking:histogram",
        summary="overlap of the similarity histograms of positive and negative pairs",
        paper="Ustinova and Lempitsky, NeurIPS 2016, section 3; bins of width 0.01",
        formula="sum_r h-_r sum_{q <= r} h+_q; h: soft histograms of s, bins + 1 nodes in -1 .. 1",
        images_per_class=4,
        defaults={"bins": 200},
        search={"bins": (50, 500)},
    ),
    LossEntry(
        name="fast_ap",
        target="mlbench.losses.pml:fast_ap",
        summary="average precision from soft histograms of distances",
        paper="Cakir et al., CVPR 2019, FastAP (10 bins)",
        formula=(
            "1 - mean_q 1/N+ sum_r h+_r H+_r / H_r; h: soft histogram of ||x - y||^2, bins + 1 "
            "nodes in 0 .. 4, H: cumulated"
        ),
        images_per_class=4,
        defaults={"bins": 10},
        search={"bins": (4, 30)},
    ),
    LossEntry(
        name="smooth_ap",
        target="mlbench.losses.ranking:smooth_ap",
        summary="average precision with sigmoids for ranks",
        paper="Brown et al., ECCV 2020 (temperature 0.01); their code ranks the query too",
        formula=(
            "1 - mean_q mean_{i in P} (1 + sum_{j in P} g_ij) / (1 + sum_{j in P or N} g_ij); "
            "g_ij = sigmoid((s_qj - s_qi) / T), j != i; the query in neither P nor N"
        ),
        images_per_class=4,
        defaults={"temperature": 0.01},
        search={"temperature": (0.002, 0.1)},
    ),
)
