"""Our training loop beside a plain one and beside the network alone, which is the limit.

    python benchmarks/speed/training.py [--networks A,B] [--batch 32] [--compile] [--quick]
    python benchmarks/speed/training.py --profile efficientnet_lite0

Loops take turns, each in a process of its own. That of the plain loop is one that mlbench does not
set up, as where nobody uses it; another row shows what those settings alone give it. Times are
those of one step; CPU time includes that of the plain loop's workers. The limit is the least of the
network's own times (both passes and the optimiser over one batch), in either memory layout,
compiled as well with --compile. With --pair there is no limit, and fewer processes are in memory at
once: all of GoogLeNet's need more than 20 GB. On a GPU, --precision changes all but the plain loop,
which is in fp32 with torch's own flags: TF32 in convolutions, not in products of matrices.
"""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _loops import Case, Loop, flops, limit, ours, plain
from _measure import Spread, arguments, finish, ratio, show
from _photos import image_set, photos, pixels
from _processes import Figures, Process, take_turns
from torch.profiler import ProfilerActivity, profile

from mlbench.system.known_state import known_state
from mlbench.training.device import resolve_device

SIZES = {
    "efficientnet_lite0": 128,
    "resnet18": 128,
    "googlenet": 224,
    "convnet": 32,
    "resnet50": 224,
}
OURS, COMPILED, PLAIN = "mlbench", "mlbench, compiled", "plain loop"
LEFT_ALONE = "mlbench, process left alone"
PLAIN_SET = "plain loop, mlbench's process settings"
HEADER = ("loop", "ms a step", "times as fast as plain", "CPU ms a step", "times less CPU")
HEADER += ("share of the limit", "GFLOP/s", "peak MB")
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def measure(case: Case, paths: list[Path], options: Namespace) -> dict[str, Any]:
    """Time all loops of a case in turns and return its figures."""
    loops = {
        PLAIN: Process(partial(build_plain, case, paths), settings=False),
        OURS: Process(partial(build_ours, case, paths)),
    }
    if not options.pair:
        loops[PLAIN_SET] = Process(partial(build_plain, case, paths))
        loops[LEFT_ALONE] = Process(partial(build_ours, case, paths), settings=False)
        loops |= limits(case)
    if options.compile:
        loops[COMPILED] = Process(partial(build_ours, case, paths, compiled=True))
        build = partial(build_limit, case, "channels-last", compiled=True)
        loops["network alone, compiled"] = Process(build)
    return report(case, take_turns(loops, 2 if options.quick else options.rounds, warmup=2))


def limits(case: Case) -> dict[str, Process]:
    """Return the network alone, in each layout."""
    return {f"network alone, {name}": Process(partial(build_limit, case, name)) for name in LAYOUTS}


def build_plain(case: Case, paths: list[Path]) -> tuple[Loop, Loop]:
    """Return the plain loop, and what uses up the batches that its workers have in store."""
    torch.set_num_threads(case.threads)  # and no known state: torch's flags as they are
    steps, drain = plain(case, paths)
    # While other loops have their turns, workers fill their store. A GPU would use it up faster
    # than they fill it; on a CPU they fill one place a step, in a turn as well.
    return waited(steps, case.device), drain if case.device.type == "cuda" else lambda: None


def build_ours(case: Case, paths: list[Path], *, compiled: bool = False) -> tuple[Loop, Loop]:
    """Return mlbench's loop; nothing comes before its turns."""
    set_process(case)
    with pixels(image_set(paths, 1), case.cached_side) as cache:
        return waited(ours(case, cache, compiled=compiled), case.device), lambda: None


def build_limit(case: Case, layout: str, *, compiled: bool = False) -> tuple[Loop, Loop]:
    """Return the network alone; nothing comes before its turns."""
    set_process(case)
    loop = limit(case, LAYOUTS[layout], compiled=compiled)
    return waited(loop, case.device), lambda: None


def set_process(case: Case) -> None:
    """Set torch's threads, and the known state that a run of that precision has."""
    torch.set_num_threads(case.threads)
    known_state(case.precision).__enter__()  # for as long as the process lives


def waited(loop: Loop, device: torch.device) -> Loop:
    """Return the loop with the wait for the device at its end."""
    if device.type == "cpu":
        return loop

    def run() -> None:
        loop()
        torch.cuda.synchronize()

    return run


def report(case: Case, figures: Figures) -> dict[str, Any]:
    """Print a case's table and return its figures."""
    wall, cpu = figures.wall, figures.cpu
    alone = [name for name in wall if name.startswith("network alone")]
    best = min(alone, key=lambda name: Spread.of(wall[name]).median, default=None)
    operations = flops(case)
    milliseconds = {n: Spread.of(v).scaled(1e3 / case.steps) for n, v in wall.items()}
    cpu_milliseconds = {n: Spread.of(v).scaled(1e3 / case.steps) for n, v in cpu.items()}
    faster = {name: ratio(wall, PLAIN, name) for name in wall}
    cheaper = {name: ratio(cpu, PLAIN, name) for name in cpu}
    reached = {name: ratio(wall, best, name) for name in wall} if best else {}
    rows = [
        (
            name,
            str(each),
            str(faster[name]),
            str(cpu_milliseconds[name]),
            str(cheaper[name]),
            str(reached.get(name, "")),
            f"{operations / each.median / 1e6:.0f}",
            f"{figures.peak_mb[name]:.0f}",
        )
        for name, each in milliseconds.items()
    ]
    where = f"{case.device}, {case.threads} threads, {case.precision}"
    show(f"{case.backbone}, {case.size} px, batch {case.batch}, {where}", HEADER, rows)
    return {
        "network": case.backbone,
        "size": case.size,
        "batch": case.batch,
        "device": case.device.type,
        "precision": case.precision,
        "threads": case.threads,
        "workers": case.workers,
        "flops_of_a_step": operations,
        "limit": best,
        "milliseconds": milliseconds,
        "cpu_milliseconds": cpu_milliseconds,
        "times_as_fast_as_plain": faster,
        "times_less_cpu_than_plain": cheaper,
        "share_of_the_limit": reached,
        "peak_mb": figures.peak_mb,
    }


def print_profile(case: Case, paths: list[Path], *, compiled: bool) -> None:
    """Print what the time of some of our steps goes to."""
    activities = [ProfilerActivity.CPU]
    if case.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    set_process(case)
    with pixels(image_set(paths, 1), case.cached_side) as cache:
        loop = waited(ours(case, cache, compiled=compiled), case.device)
        loop()
        with profile(activities=activities) as profiler:
            loop()
    print(
        profiler.key_averages().table(sort_by=f"self_{case.device.type}_time_total", row_limit=25)
    )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = arguments(__doc__)
    parser.add_argument("--networks", metavar="A,B", help="of " + ", ".join(SIZES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, help="of a turn [default: 1 on a CPU, 20 on a GPU]")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    parser.add_argument("--pair", action="store_true", help="the plain loop and ours alone")
    parser.add_argument("--compile", action="store_true", help="our loop compiled as well")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--profile", metavar="NETWORK", choices=SIZES, help="only this table")
    options = parser.parse_args()
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    steps = options.steps or (20 if gpu else 1)
    some = [name for name in SIZES if gpu or name != "resnet50"]
    names = options.networks.split(",") if options.networks else some
    if options.profile:
        names = [options.profile]
    cases = [
        Case(
            name,
            SIZES[name],
            options.batch,
            steps,
            device,
            options.precision,
            options.threads,
            options.workers,
        )
        for name in names
    ]
    count = max(64 if options.quick else 512, options.batch * max(steps, 8))
    with known_state(options.precision), photos(count) as paths:
        if options.profile:
            print_profile(cases[0], paths, compiled=options.compile)
            return
        found = [measure(case, paths, options) for case in cases]
    finish({"cases": found}, options.json, device.type)


if __name__ == "__main__":
    main()
