"""Losses with class vectors: one proxy or centre a class, or a few."""

from mlbench.interfaces import LossEntry

PROXIES: tuple[LossEntry, ...] = (
    LossEntry(
        name="softtriple",
        target="mlbench.losses.softtriple:SoftTriple",
        summary="cross-entropy over the soft maximum of several learned centres a class",
        paper="Qian et al., ICCV 2019, eq. 6-9; defaults of the authors' code",
        formula=(
            "s_c = sum_k softmax_k(x.w_ck / gamma) x.w_ck; cross-entropy of la (s_c - margin [c=y])"
            " + tau / (C K (K-1)) sum_c sum_{s<t} sqrt(2 + 1e-5 - 2 w_cs.w_ct)"
        ),
        lr=1e-2,
        proxies="unit",
        defaults={
            "centers_per_class": 10,
            "la": 20.0,
            "gamma": 0.1,
            "tau": 0.2,
            "margin": 0.01,
            "init": "kaiming-uniform",
        },
        search={
            "centers_per_class": (2, 20),
            "la": (5, 80),
            "gamma": (0.02, 0.5),
            "tau": (0.02, 2),
        },
    ),
    LossEntry(
        name="softmax_norm",
        target="mlbench.losses.softtriple:softmax_norm",
        summary="cross-entropy of scaled cosines to one learned centre a class",
        paper="Qian et al., ICCV 2019, eq. 3 (SoftTriple with K = 1, margin 0, tau 0)",
        formula="cross-entropy of la x.w_c",
        lr=1e-2,
        proxies="unit",
        defaults={"la": 20.0, "init": "kaiming-uniform"},
        search={"la": (5, 80)},
    ),
    LossEntry(
        name="proxy_nca",
        target="mlbench.losses.proxies:ProxyNCA",
        summary="own proxy against all other proxies, softmax of squared distances",
        paper="Movshovitz-Attias et al., ICCV 2017, L_NCA (no scale: 1); init of Proxy-NCA++",
        formula="mean_i scale d_iy + log sum_{c != y} e^(-scale d_ic); d_ic = ||x_i - p_c||^2",
        lr=1e-2,
        proxies="unit",
        defaults={"scale": 1.0, "init": "normal-0.125"},
        search={"scale": (0.3, 10)},
    ),
    LossEntry(
        name="proxy_nca_pp",
        target="mlbench.losses.proxies:ProxyNCApp",
        summary="softmax of squared distances to all proxies at low temperature",
        paper="Teh et al., ECCV 2020 (temperature 1/9); init of their code",
        formula="cross-entropy of -||x - p_c||^2 / temperature",
        # Theirs is 1e5 times the trunk's, under Adam with epsilon 1; this is Proxy-Anchor's 100.
        lr=1e-2,
        proxies="unit",
        defaults={"temperature": 1 / 9, "init": "normal-0.125"},
        search={"temperature": (0.02, 0.5)},
    ),
    LossEntry(
        name="proxy_anchor",
        target="mlbench.losses.proxies:ProxyAnchor",
        summary="each proxy as an anchor for all images of the batch",
        paper="Kim et al., CVPR 2020, eq. 4; init and rate, 100 times the trunk's, of their code",
        formula=(
            "1/|P+| sum_{c in P+} log(1 + sum_{i in c} e^(-alpha (s_ic - margin))) "
            "+ 1/C sum_c log(1 + sum_{i not in c} e^(alpha (s_ic + margin))); P+: classes present"
        ),
        lr=1e-2,
        proxies="unit",
        defaults={"alpha": 32.0, "margin": 0.1, "init": "kaiming-normal"},
        search={"alpha": (8, 128), "margin": (0, 0.5)},
    ),
    LossEntry(
        name="arcface",
        target="mlbench.losses.proxies:ArcFace",
        summary="softmax of cosines with a margin added to the angle to the true class",
        paper="Deng et al., CVPR 2019, eq. 3; init of their code (insightface)",
        formula=(
            "cross-entropy of scale cos(t_c + margin [c=y]); cos(t_y) - margin sin(margin) where "
            "t_y + margin > pi, as in the authors' code"
        ),
        # One rate for all in the authors' code; 1e-2 as for the other proxies.
        lr=1e-2,
        proxies="unit",
        defaults={"margin": 0.5, "scale": 64.0, "init": "normal-0.01"},
        search={"margin": (0, 1), "scale": (8, 192)},
    ),
    LossEntry(
        name="sub_center_arcface",
        target="mlbench.losses.proxies:ArcFace",
        summary="arcface with the nearest of several centres a class",
        paper="Deng et al., ECCV 2020, eq. 2 (K = 3); init of insightface",
        formula="arcface with cos(t_c) = max_k x.w_ck",
        lr=1e-2,
        proxies="unit",
        defaults={"margin": 0.5, "scale": 64.0, "sub_centers": 3, "init": "normal-0.01"},
        search={"margin": (0, 1), "scale": (8, 192), "sub_centers": (1, 10)},
    ),
    LossEntry(
        name="cosface",
        target="mlbench.losses.proxies:CosFace",
        summary="softmax of cosines with a margin taken from the true class's",
        paper="Wang et al., CVPR 2018, eq. 4 (margin 0.35, scale 64); init of insightface",
        formula="cross-entropy of scale (x.w_c - margin [c=y])",
        lr=1e-2,
        proxies="unit",
        defaults={"margin": 0.35, "scale": 64.0, "init": "normal-0.01"},
        search={"margin": (0, 0.7), "scale": (8, 192)},
    ),
    LossEntry(
        name="sphereface",
        target="mlbench.losses.proxies:SphereFace",
        summary="softmax with the angle to the true class multiplied, raw embeddings",
        paper="Liu et al., CVPR 2017, eq. 7 (margin 4), without annealing; init of their code",
        formula=(
            "cross-entropy of ||x|| f(t_c), f = cos but for the true class (-1)^k cos(margin t) - "
            "2k, k = floor(margin t / pi)"
        ),
        unit_length=False,
        lr=1e-2,
        proxies="unit",
        defaults={"margin": 4, "init": "caffe-xavier"},
        search={"margin": (1, 6)},
    ),
)
