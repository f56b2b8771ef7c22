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
    LossEntry(
        name="roadmap",
        target="mlbench.losses.ranking:roadmap",
        summary="an upper bound of 1 - average precision, and cosines calibrated across batches",
        paper="Ramzi et al., NeurIPS 2021, SupAP and calibration; parameters of their code",
        formula=(
            "(1 - calibration) mean_q (1 - mean_p r_p / (r_p + sum_n h(s_qn - s_qp))) "
            "+ calibration mean_q (mean_p [positive_margin - s]_+ + mean_n [s - negative_margin]_+)"
            "; r_p: rank among positives; h(t) = sigmoid(t / T) + [t > 0] / 2 to delta, then a line"
        ),
        images_per_class=4,
        defaults={
            "temperature": 0.01,
            "slope": 100.0,
            "delta": 0.05,
            "positive_margin": 0.9,
            "negative_margin": 0.6,
            "calibration": 0.5,
        },
        search={
            "temperature": (0.002, 0.1),
            "slope": (20, 500),
            "delta": (0.01, 0.2),
            "calibration": (0.1, 0.9),
        },
    ),
    LossEntry(
        name="recall_surrogate",
        target="mlbench.losses.ranking:recall_surrogate",
        summary="recall at 1, 2, 4 ... with sigmoids for ranks; made for batches of thousands",
        paper="Patel et al., CVPR 2022, RS@k (k to 16, temperatures 0.01 and 1), without SiMix",
        formula=(
            "1 - mean_k mean_q min(k, sum_p sigmoid((k - r_p) / k_temperature)) / min(k, |P|); "
            "r_p = 1 + sum_j sigmoid((s_qj - s_qp) / rank_temperature), j neither p nor the query"
        ),
        images_per_class=4,
        defaults={"largest_k": 16, "rank_temperature": 0.01, "k_temperature": 1.0},
        search={"rank_temperature": (0.002, 0.1), "k_temperature": (0.3, 3)},
    ),
)
