"""Losses of the pairs, triplets and tuples of a batch."""

from mlbench.interfaces import LossEntry

PAIRS: tuple[LossEntry, ...] = (
    LossEntry(
        name="npairs",
        target="mlbench.losses.npairs:NPairs",
        summary="softmax over one pair per class, unnormalised dot products",
        paper="Sohn, NeurIPS 2016, eq. 6 and 7 (l2_reg 0.005 ours: the paper gives no value)",
        formula=(
            "mean_i log(1 + sum_{j!=i} exp(a_i.p_j - a_i.p_i)) + l2_reg mean ||x||^2; "
            "(a_i, p_i): the first two images of class i in the batch"
        ),
        images_per_class=2,
        unit_length=False,
        defaults={"l2_reg": 0.005},
        search={"l2_reg": (0.0005, 0.05)},
    ),
    LossEntry(
        name="triplet",
        target="mlbench.losses.pairs:semihard_triplet",
        summary="hinge on squared distances of all semi-hard triplets in the batch",
        paper="Schroff et al., CVPR 2015, eq. 1 and 4 (margin 0.2)",
        formula=(
            "mean of d_ap - d_an + margin over triplets with d_ap < d_an < d_ap + margin; "
            "d = ||x - y||^2"
        ),
        images_per_class=4,
        defaults={"margin": 0.2},
        search={"margin": (0.05, 0.8)},
    ),
    LossEntry(
        name="triplet_hard",
        target="mlbench.losses.pml:batch_hard",
        summary="hinge on each anchor's hardest positive and negative in the batch",
        paper="Hermans et al., arXiv 1703.07737 (2017), eq. 5; soft margin as in their code",
        formula=(
            "mean_a softplus(max_p d_ap - min_n d_an + margin), or [...]_+ unless soft; "
            "d = ||x - y||, unnormalised embeddings"
        ),
        images_per_class=4,
        unit_length=False,
        defaults={"margin": 0.0, "soft": True},
        search={"margin": (0, 1)},
    ),
    LossEntry(
        name="triplet_all",
        target="mlbench.losses.pml:batch_all",
        summary="hinge on all triplets of the batch, satisfied ones included in the mean",
        paper="Hermans et al., arXiv 1703.07737 (2017), eq. 6; soft margin as for triplet_hard",
        formula=(
            "mean_{a,p,n} softplus(d_ap - d_an + margin), or [...]_+ unless soft; "
            "d = ||x - y||, unnormalised embeddings"
        ),
        images_per_class=4,
        unit_length=False,
        defaults={"margin": 0.0, "soft": True},
        search={"margin": (0, 1)},
    ),
    LossEntry(
        name="triplet_distance_weighted",
        target="mlbench.losses.sampling:triplet",
        summary="hinge on triplets whose negatives are drawn evenly over distances",
        paper="Wu et al., ICCV 2017, section 4; cutoff and far of the authors' code",
        formula=(
            "mean over positive pairs (a, p) of [d_ap - d_an + margin]_+; d = ||x - y||, n drawn "
            "with P(n) ~ 1 / q(max(d_an, cutoff)) for d_an < far; "
            "q(d) = d^(D-2) (1 - d^2/4)^((D-3)/2)"
        ),
        images_per_class=4,
        defaults={"margin": 0.2, "cutoff": 0.5, "far": 1.4},
        search={"margin": (0.05, 0.8)},
    ),
    LossEntry(
        name="margin",
        target="mlbench.losses.pml:margin",
        summary="pair hinges around a learned boundary per class, distance-weighted negatives",
        paper="Wu et al., ICCV 2017, section 4; defaults of the authors' code",
        formula=(
            "sum over triplets of [d_ap - beta_a + margin]_+ + [beta_a - d_an + margin]_+ + nu "
            "beta_a, divided by the number of hinges above 0; triplets of triplet_distance_weighted"
        ),
        images_per_class=4,
        # The authors train beta by plain SGD at 0.1; this is Roth et al. (ICML 2020) for Adam.
        lr=5e-4,
        proxies="free",
        defaults={"margin": 0.2, "beta": 1.2, "nu": 0.0, "cutoff": 0.5, "far": 1.4},
        search={"margin": (0.05, 0.8), "beta": (0.4, 1.8)},
    ),
    LossEntry(
        name="contrastive",
        target="mlbench.losses.pairs:contrastive",
        summary="squared hinge on the distance of every pair of the batch",
        paper="Hadsell et al., CVPR 2006, eq. 4 (leaves margin and length open; 1 and unit ours)",
        formula="mean over pairs of d^2 / 2 (same class) or [margin - d]_+^2 / 2; d = ||x - y||",
        images_per_class=4,
        defaults={"margin": 1.0},
        search={"margin": (0.2, 2)},
    ),
    LossEntry(
        name="lifted_structure",
        target="mlbench.losses.pairs:lifted_structure",
        summary="each positive pair against all negatives of both its images",
        paper="Oh Song et al., CVPR 2016, eq. 4 (margin 1)",
        formula=(
            "1 / (2 |P|) sum_{(i,j) in P} [log(sum_k e^(margin - d_ik) + sum_l e^(margin - d_jl)) "
            "+ d_ij]_+^2; d = ||x - y||, unnormalised embeddings"
        ),
        images_per_class=4,
        unit_length=False,
        defaults={"margin": 1.0},
        search={"margin": (0.2, 5)},
    ),
    LossEntry(
        name="lifted_structure_general",
        target="mlbench.losses.pairs:lifted_structure_general",
        summary="smooth hardest positive against smooth hardest negative of each anchor",
        paper="Hermans et al., arXiv 1703.07737 (2017), L_LG (margin 1: their largest)",
        formula=(
            "mean_a [log sum_p e^d_ap + log sum_n e^(margin - d_an)]_+; d = ||x - y||, "
            "unnormalised embeddings"
        ),
        images_per_class=4,
        unit_length=False,
        defaults={"margin": 1.0},
        search={"margin": (0.2, 5)},
    ),
    LossEntry(
        name="multi_similarity",
        target="mlbench.losses.pml:multi_similarity",
        summary="soft weights of mined pairs by self- and relative similarity",
        # The authors' code sets beta 40; 50 is their paper's.
        paper="Wang et al., CVPR 2019, L_MS, mined; base 0.5 of the authors' code (paper: 1)",
        formula=(
            "mean_i log(1 + sum_p e^(-alpha (s_ip - base))) / alpha + log(1 + sum_n e^(beta (s_in "
            "- base))) / beta over p: s_ip < max_n s_in + epsilon, n: s_in > min_p s_ip - epsilon"
        ),
        images_per_class=4,
        defaults={"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
        search={"alpha": (0.5, 10), "beta": (10, 150), "base": (0, 1), "epsilon": (0.02, 0.5)},
    ),
    LossEntry(
        name="circle",
        target="mlbench.losses.pairs:circle",
        summary="pairs weighted by their distance from the optimum",
        paper="Sun et al., CVPR 2020, eq. 4-8 (m 0.4, gamma 80: their image retrieval)",
        formula=(
            "mean_i log(1 + sum_n e^(gamma [s_n + m]_+ (s_n - m)) "
            "sum_p e^(-gamma [1 + m - s_p]_+ (s_p - 1 + m))), brackets without gradient"
        ),
        images_per_class=4,
        defaults={"m": 0.4, "gamma": 80.0},
        search={"m": (0, 0.8), "gamma": (20, 320)},
    ),
    LossEntry(
        name="supcon",
        target="mlbench.losses.pairs:supcon",
        summary="softmax over the batch, averaged over an anchor's positives",
        paper="Khosla et al., NeurIPS 2020, eq. 2 (temperature 0.1)",
        formula="mean_i mean_p -log(e^(s_ip / T) / sum_{a != i} e^(s_ia / T))",
        images_per_class=4,
        defaults={"temperature": 0.1},
        search={"temperature": (0.02, 0.5)},
    ),
    LossEntry(
        name="ntxent",
        target="mlbench.losses.pairs:ntxent",
        summary="softmax of one positive among an anchor's negatives",
        paper="Chen et al., ICML 2020, eq. 1; temperature 0.1 (their best on ImageNet)",
        formula="mean over pairs (i, p) of log(1 + sum_n e^((s_in - s_ip) / T))",
        images_per_class=2,
        defaults={"temperature": 0.1},
        search={"temperature": (0.02, 0.5)},
    ),
    LossEntry(
        name="snr",
        target="mlbench.losses.pairs:snr",
        summary="contrastive loss on the noise-to-signal ratio, unnormalised embeddings",
        paper="Yuan et al., CVPR 2019, contrastive form; margin and weight ours",
        formula=(
            "mean_p r_ap + mean_n [margin - r_an]_+ + zero_mean mean_i |sum_d x_id|; "
            "r_ij = var(x_i - x_j) / var(x_i)"
        ),
        images_per_class=4,
        unit_length=False,
        defaults={"margin": 1.0, "zero_mean": 0.1},
        search={"margin": (0.2, 5), "zero_mean": (0.01, 1)},
    ),
    LossEntry(
        name="angular",
        target="mlbench.losses.pml:angular",
        summary="bounds the angle at the negative of every triplet",
        paper="Wang et al., ICCV 2017, section 3.3 (batch form; alpha 45 degrees)",
        formula=(
            "mean_{a,p} log(1 + sum_n e^f); f = 4 tan(alpha)^2 (x_a + x_p).x_n "
            "- 2 (1 + tan(alpha)^2) x_a.x_p"
        ),
        images_per_class=2,
        defaults={"alpha": 45.0},
        search={"alpha": (30, 60)},
    ),
    LossEntry(
        name="centroid_triplet",
        target="mlbench.losses.pairs:centroid_triplet",
        summary="triplet loss against class centroids of the batch",
        paper="Wieczorek et al., ICONIP 2021, squared distances; nearest centroid of their code",
        formula=(
            "mean_a [||a - c_own||^2 - min_c ||a - c||^2 + margin]_+; c: mean of another class, "
            "c_own: that of its own class without a; unnormalised embeddings"
        ),
        images_per_class=4,
        unit_length=False,
        # 0.5 is the margin of their code, whose distances, unlike their paper's, are not squared.
        defaults={"margin": 0.5},
        search={"margin": (0.1, 2)},
    ),
    LossEntry(
        name="intra_pair_variance",
        target="mlbench.losses.pairs:tuplet_margin",
        summary="tuplet margin loss plus the variance of positive and negative cosines",
        paper="Yu and Tao, ICCV 2019 (scale 64, margin 5.73 degrees, weight 0.5, epsilon 0.01)",
        formula=(
            "mean_{a,p} log(1 + sum_n e^(scale (cos t_an - cos(t_ap - margin)))) + variance (mean "
            "[(1 - epsilon) E_p - cos t_p]_+^2 + mean [cos t_n - (1 + epsilon) E_n]_+^2); "
            "E: mean cosine"
        ),
        images_per_class=4,
        defaults={"scale": 64.0, "margin": 0.1, "variance": 0.5, "epsilon": 0.01},
        search={"scale": (16, 192), "margin": (0.02, 0.5), "variance": (0.1, 2)},
    ),
    LossEntry(
        name="ranked_list",
        target="mlbench.losses.pairs:ranked_list",
        summary="violating positives against weighted violating negatives of each anchor",
        paper="Wang et al., CVPR 2019, ranked list loss (alpha 1.2, margin 0.4, T 10, balance 0.5)",
        formula=(
            "mean_i (1 - balance) mean_p [d_ip - (alpha - margin)]_+ + balance sum_n w_n "
            "[alpha - d_in]_+ / sum_n w_n, over terms above 0; w = e^(temperature (alpha - d)), "
            "without gradient; d = ||x - y||"
        ),
        images_per_class=4,
        defaults={"alpha": 1.2, "margin": 0.4, "temperature": 10.0, "balance": 0.5},
        search={"alpha": (0.6, 1.8), "margin": (0.1, 1), "temperature": (2, 50)},
    ),
    LossEntry(
        name="contrastive_cosine",
        target="mlbench.losses.pairs:contrastive_cosine",
        summary="hinge on the cosine of every pair of the batch, summed",
        paper="Wang et al., CVPR 2020, the contrastive loss of XBM (margin 0.5)",
        formula="mean_i sum_p (1 - s_ip) + sum_n [s_in - margin]_+",
        images_per_class=4,
        defaults={"margin": 0.5},
        search={"margin": (0.1, 0.9)},
    ),
    LossEntry(
        name="xbm",
        target="mlbench.losses.memory:CrossBatchMemory",
        summary="a loss of pairs of the batch, and of the batch against a memory of earlier ones",
        paper="Wang et al., CVPR 2020, XBM (start 1000); memory ours, the batch itself not in it",
        formula=(
            "L(batch) + weight L(batch against the last `memory` embeddings of earlier batches) "
            "from step `start` on; L: xbm.loss with its own defaults, no gradient into the memory"
        ),
        images_per_class=4,
        context=("step",),
        defaults={"loss": "contrastive_cosine", "memory": 4096, "start": 1000, "weight": 1.0},
        search={"memory": (512, 32768), "weight": (0.2, 5)},
    ),
)
