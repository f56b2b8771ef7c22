"""The catalogue of built-in losses; their code is imported when one is built."""

from mlbench.interfaces import LossEntry

BUILTIN: tuple[LossEntry, ...] = (
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
        defaults={
            "centers_per_class": 10,
            "la": 20.0,
            "gamma": 0.1,
            "tau": 0.2,
            "margin": 0.01,
            "init": "kaiming-uniform",
        },
    ),
    LossEntry(
        name="softmax_norm",
        target="mlbench.losses.softtriple:softmax_norm",
        summary="cross-entropy of scaled cosines to one learned centre a class",
        paper="Qian et al., ICCV 2019, eq. 3 (SoftTriple with K = 1, margin 0, tau 0)",
        formula="cross-entropy of la x.w_c",
        lr=1e-2,
        defaults={"la": 20.0, "init": "kaiming-uniform"},
    ),
    LossEntry(
        name="npairs",
        target="mlbench.losses.npairs:NPairs",
        summary="softmax over one pair a class, raw dot products",
        paper="Sohn, NeurIPS 2016, eq. 6 and 7",
        formula=(
            "mean_i log(1 + sum_{j!=i} exp(a_i.p_j - a_i.p_i)) + l2_reg mean ||x||^2; "
            "(a_i, p_i): the first two images of class i in the batch"
        ),
        images_per_class=2,
        unit_length=False,
        defaults={"l2_reg": 0.005},
    ),
    LossEntry(
        name="triplet",
        target="mlbench.losses.pml:semihard_triplet",
        summary="hinge on squared distances of all semi-hard triplets in the batch",
        paper="Schroff et al., CVPR 2015, eq. 1 and 4 (margin 0.2)",
        formula=(
            "mean of d_ap - d_an + margin over triplets with d_ap < d_an < d_ap + margin; "
            "d = ||x - y||^2"
        ),
        images_per_class=4,
        defaults={"margin": 0.2},
    ),
)
