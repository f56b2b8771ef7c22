"""Losses with class vectors: one proxy or centre a class, or a few."""

from mlbench.interfaces import LossEntry

PROXIES: tuple[LossEntry, ...] = (
    LossEntry(
        name="softtriple",
        target="mlbench.losses.softtriple:SoftTriple",
        summary="cross-entropy over the soft maximum of several learned centres per class",
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
        summary="cross-entropy of scaled cosines to one learned centre per class",
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
        paper="Kim et al., CVPR 2020, eq. 4; init and rate (100 times the backbone's): code",
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
        summary="arcface with the nearest of several centres per class",
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
        summary="softmax with the angle to the true class multiplied, unnormalised embeddings",
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
    LossEntry(
        name="p2sgrad",
        target="mlbench.losses.faces:P2SGrad",
        summary="squared distance of the cosines to all proxies from 1 or 0",
        paper="Zhang et al., CVPR 2019, the loss whose gradient is its eq. 11; init ours",
        formula="mean_i 1/2 sum_c (x_i.w_c - [c=y])^2",
        lr=1e-2,
        proxies="unit",
        defaults={"init": "kaiming-uniform"},
    ),
    LossEntry(
        name="proxy_synthesis",
        target="mlbench.losses.synthesis:ProxySynthesis",
        summary="softmax_norm with synthetic classes between those of the batch",
        paper="Gu et al., AAAI 2021, with normalised softmax; scale, alpha 0.4, mu 1, init: code",
        formula=(
            "cross-entropy of scale x.w_c over images and their mixtures x = a x_i + (1 - a) x_j, "
            "y_i != y_j, whose own classes w = a w_yi + (1 - a) w_yj join the others; "
            "a ~ Beta(mixing, mixing), ratio B mixtures, all L2-normalised"
        ),
        lr=1e-2,
        proxies="unit",
        defaults={"scale": 23.0, "mixing": 0.4, "ratio": 1.0, "init": "linear"},
        search={"scale": (5, 80), "mixing": (0.1, 2), "ratio": (0.2, 1)},
    ),
    LossEntry(
        name="adaface",
        target="mlbench.losses.faces:AdaFace",
        summary="margins that grow or shrink with the norm of the unnormalised embedding",
        paper="Kim et al., CVPR 2022, eq. 12 (m 0.4, h 0.333, momentum 0.01); init of their code",
        formula=(
            "cross-entropy of scale s_c, s_y = cos(t_y - margin q) - margin (1 + q); "
            "q = [concentration (||x|| - mean) / deviation] within -1 .. 1, running, no gradient"
        ),
        unit_length=False,
        lr=1e-2,
        proxies="unit",
        defaults={
            "margin": 0.4,
            "scale": 64.0,
            "concentration": 0.333,
            "momentum": 0.01,
            "init": "unit",
        },
        search={"margin": (0.1, 0.8), "scale": (8, 192), "concentration": (0.1, 1)},
    ),
    LossEntry(
        name="hist",
        target="mlbench.losses.hist:HIST",
        summary="class distributions and a hypergraph network over the unnormalised batch",
        paper="Lim et al., CVPR 2022; parameters of their code for CUB, hidden 512",
        formula=(
            "cross-entropy of -tau d^2_ic + weight cross-entropy of G s(G x W1) W2; d: "
            "Mahalanobis, unit x to class c; G = Dv^-1/2 H De^-1 H' Dv^-1/2, H_ic = 1 if c=y else "
            "e^(-alpha d^2_ic), c present; s: batch norm, leaky ReLU 0.1"
        ),
        unit_length=False,
        # Theirs for CUB, of means and variances; the network's is 5 times their trunk's 1.2e-4.
        lr={"means": 0.1, "log_variances": 0.1, "network": 6e-4},
        proxies="free",
        defaults={
            "tau": 32.0,
            "alpha": 1.1,
            "weight": 1.0,
            "hidden": 512,
            "init": "kaiming-normal",
        },
        search={"tau": (8, 96), "alpha": (0.3, 3), "weight": (0.2, 5)},
    ),
)
