#!/usr/bin/env python3
"""Write the recipes of a two-level factorial study, one TOML a row.

    python benchmarks/factorial.py OUT

OUT gets row-00.toml to row-15.toml, corner-foot-N, corner-top-N, long-foot and long-top. The plan
is results/study/recipe-factorial/PLAN.md. Seven factors between the reproduction's code (-) and the
paper's recipe (+), 2^(7-3), resolution IV: A input, B batch norm, C scale of the loss, D start of
the centres, E = ABC, F = BCD, G = ACD.
"""

import itertools
import sys
from pathlib import Path

BASE = """\
[data]
name = "cub200"
holdout = 0.0

[input]
size = 128
train_resize = 146
test_resize = {test_resize}
train_crop = "random-resized"
min_area = 0.25
flip = true
normalization = "{normalization}"
channels = "rgb"

[backbone]
name = "efficientnet_lite0"
weights = "imagenet"
trunk = "train"
bn_stats = "{bn_stats}"
bn_affine = "{bn_affine}"

[head]
kind = "{head}"
dim = 64

[optimizer]
name = "adam"
lr = 1e-4
head_lr = 1e-4
loss_lr = 1e-2
eps = {eps}
weight_decay = {weight_decay}

[schedule]
epochs = {epochs}
milestones = {milestones}
decay = 0.1
warmup = 0

[batch]
size = 32
drop_last = {drop_last}

[training]
precision = "fp32"

[selection]
rule = "last"
folds = 0
patience = 0

[evaluation]
ks = [1, 2, 4, 8]
nmi_restarts = 10

[losses.softtriple]
centers_per_class = 10
la = {la}
gamma = 0.1
tau = 0.2
margin = 0.01
init = "{init}"
"""

LEVELS = {  # factor: what it sets at - and at +
    "A": ({"normalization": "none"}, {"normalization": "backbone"}),
    "B": (
        {"bn_stats": "live", "bn_affine": "frozen"},
        {"bn_stats": "frozen", "bn_affine": "train"},
    ),
    "C": ({"la": 5.0}, {"la": 20.0}),
    "D": ({"init": "xavier-normal"}, {"init": "kaiming-uniform"}),
    "E": ({"eps": 1e-8, "weight_decay": 0.0}, {"eps": 0.01, "weight_decay": 1e-4}),
    "F": ({"head": "relu-bn-linear"}, {"head": "linear"}),
    "G": ({"test_resize": 128, "drop_last": "true"}, {"test_resize": 146, "drop_last": "false"}),
}


def row(signs: dict[str, int], epochs: int) -> str:
    """Return the recipe of one setting of the seven factors, each -1 or +1."""
    chosen: dict[str, object] = {"epochs": epochs, "milestones": [3 * epochs // 8, 6 * epochs // 8]}
    for factor, sign in signs.items():
        chosen |= LEVELS[factor][sign > 0]
    return BASE.format(**chosen)


def main(out: Path) -> None:
    """Write all 22 recipes into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for number, (a, b, c, d) in enumerate(itertools.product((-1, 1), repeat=4)):
        signs = {"A": a, "B": b, "C": c, "D": d, "E": a * b * c, "F": b * c * d, "G": a * c * d}
        text = "".join(f"{name}{'+' if sign > 0 else '-'}" for name, sign in signs.items())
        (out / f"row-{number:02}.toml").write_text(f"# {text}, seed {number}\n{row(signs, 8)}")
    for name, sign in (("foot", -1), ("top", 1)):
        corner = dict.fromkeys("ABCDEFG", sign)
        for number in (1, 2):  # two more seeds a corner: pure error, and the gap itself
            (out / f"corner-{name}-{number}.toml").write_text(
                f"# seed {100 + number}\n{row(corner, 8)}"
            )
        (out / f"long-{name}.toml").write_text(f"# seed 0\n{row(corner, 20)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
