"""Our training loop beside a plain one and beside the network alone, which is the limit.

    python benchmarks/speed/training.py [--networks A,B] [--batch 32] [--compile] [--quick]
    python benchmarks/speed/training.py --profile efficientnet_lite0

Loops take turns in one process. Times are those of one step. The limit is the least of the
network's own times (both passes and the optimiser over one batch), in either memory layout,
compiled as well with --compile. On a GPU, --precision changes all but the plain loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from _loops import Case, Loop, flops, limit, ours, plain
from _measure import Seconds, Spread, arguments, finish, ratio, show, take_turns
from _photos import image_set, photos, pixels
from torch.profiler import ProfilerActivity, profile

from mlbench.known_state import known_state
from mlbench.laboratory import resolve_device

SIZES = {"efficientnet_lite0": 128, "resnet18": 128, "googlenet": 224, "resnet50": 224}
OURS, COMPILED, PLAIN = "mlbench", "mlbench, compiled", "plain loop"
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}


def measure(case: Case, paths: list[Path], *, compiled: bool, rounds: int) -> dict[str, Any]:
    """Time all loops of a case in turns and return its figures."""
    with pixels(image_set(paths, 1), case.cached_side) as cache:
        steps, drain = plain(case, paths)
        loops = {PLAIN: steps, OURS: ours(case, cache, compiled=False)}
        if compiled:
            loops[COMPILED] = ours(case, cache, compiled=True)
        loops |= limits(case, compiled=compiled)

        def before(name: str) -> None:
            # While other loops have their turns, workers fill their store. A GPU would use it up
            # faster than they fill it; on a CPU they fill one place a step, in a turn as well.
            if name == PLAIN and case.device.type == "cuda":
                drain()

        waiting = {name: waited(loop, case.device) for name, loop in loops.items()}
        seconds = take_turns(waiting, rounds, warmup=2, before=before)
    return report(case, seconds)


def limits(case: Case, *, compiled: bool) -> dict[str, Loop]:
    """Return the network alone, in each way."""
    found = {
        f"network alone, {name}": limit(case, layout, compiled=False)
        for name, layout in LAYOUTS.items()
    }
    if compiled:
        found["network alone, compiled"] = limit(case, torch.channels_last, compiled=True)
    return found


def waited(loop: Loop, device: torch.device) -> Loop:
    """Return the loop with the wait for the device at its end."""
    if device.type == "cpu":
        return loop

    def run() -> None:
        loop()
        torch.cuda.synchronize()

    return run


def report(case: Case, seconds: Seconds) -> dict[str, Any]:
    """Print a case's table and return its figures."""
    alone = [name for name in seconds if name.startswith("network alone")]
    best = min(alone, key=lambda name: Spread.of(seconds[name]).median)
    operations = flops(case)
    milliseconds = {n: Spread.of(v).scaled(1e3 / case.steps) for n, v in seconds.items()}
    faster = {name: ratio(seconds, PLAIN, name) for name in seconds}
    reached = {name: ratio(seconds, best, name) for name in seconds}
    rows = [
        (
            name,
            str(each),
            str(faster[name]),
            str(reached[name]),
            f"{operations / each.median / 1e6:.0f}",
        )
        for name, each in milliseconds.items()
    ]
    title = f"{case.backbone}, {case.size} px, batch {case.batch}, {case.device}, {case.precision}"
    header = ("loop", "ms a step", "times as fast as plain", "share of the limit", "GFLOP/s")
    show(title, header, rows)
    return {
        "network": case.backbone,
        "size": case.size,
        "batch": case.batch,
        "device": case.device.type,
        "precision": case.precision,
        "flops_of_a_step": operations,
        "limit": best,
        "milliseconds": milliseconds,
        "times_as_fast_as_plain": faster,
        "share_of_the_limit": reached,
    }


def print_profile(case: Case, paths: list[Path], *, compiled: bool) -> None:
    """Print what the time of some of our steps goes to."""
    activities = [ProfilerActivity.CPU]
    if case.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
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
    parser.add_argument("--compile", action="store_true", help="our loop compiled as well")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--profile", metavar="NETWORK", choices=SIZES, help="only this table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    steps = options.steps or (20 if gpu else 1)
    some = list(SIZES) if gpu else list(SIZES)[:-1]
    names = options.networks.split(",") if options.networks else some
    if options.profile:
        names = [options.profile]
    cases = [
        Case(name, SIZES[name], options.batch, steps, device, options.precision) for name in names
    ]
    count = max(512, options.batch * max(steps, 8))
    with known_state(options.precision), photos(count) as paths:
        if options.profile:
            print_profile(cases[0], paths, compiled=options.compile)
            return
        rounds = 2 if options.quick else 10
        found = [measure(case, paths, compiled=options.compile, rounds=rounds) for case in cases]
    finish({"cases": found}, options.json, device.type)


if __name__ == "__main__":
    main()
