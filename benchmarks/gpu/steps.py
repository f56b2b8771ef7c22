"""The steps that slices.py makes on a GPU, in their order."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
SPEED, CHECKS = ROOT / "benchmarks" / "speed", Path(__file__).parent / "checks.py"
LOSSES = "softtriple,softmax_norm,npairs,triplet,proxy_anchor"
LITE0 = "efficientnet_lite0"
NETWORKS, PRECISIONS = ("bn_inception", "resnet50"), ("fp32", "tf32", "bf16")
TESTS = tuple(f"tests/{room}" for room in ("losses", "metrics", "training"))
MINUTES = {"tests-cpu": 4.0, "tests-gpu": 2.0, "check-compile": 4.0, "check-limits": 4.0}
MINUTES |= {"loop-resnet50": 3.0, "loop-resnet50-compiled": 4.0, "loop-resnet18": 3.0}
MINUTES |= {f"loop-{LITE0}": 3.0, "loop-profile": 2.0, "evaluate-SOP512": 1.5}
"""Guessed, as nothing was timed on a GPU yet; 1 for all others, 0.1 in a rehearsal."""


@dataclass(frozen=True)
class Step:
    """A process to start, and what may be done to it.

    Attributes:
        name: of its mark, its log and its figures.
        tells: what is learned from it.
        command: the process.
        minutes: it is begun only if so much of a slice is left.
        resumes: whether it can be stopped at any time and goes on in the next slice.
        figures: the JSON file that it writes, if it does.
        environment: variables that it gets besides this process's own.
    """

    name: str
    tells: str
    command: tuple[str, ...]
    minutes: float = 1.0
    resumes: bool = False
    figures: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Where and at which size the steps are made.

    Attributes:
        out: folder that gets all of it.
        device: ``cuda`` or ``cpu``.
        tiny: whether sizes are those of a rehearsal.
        jobs: runs of a study at a time.
        images: how ``mlbench run`` gets its images; empty where there are none.
    """

    out: Path
    device: str
    tiny: bool
    jobs: int
    images: tuple[str, ...]

    def steps(self) -> list[Step]:
        """Return all steps; those that need photographs only where there are some."""
        found = [*self._tests(), *self._checks(), *self._loops(), *self._evaluation()]
        if self.images:
            found += [*self._fifty_epochs(), self._limits(), *self._studies()]
        return [replace(each, minutes=self._minutes(each.name)) for each in found]

    def _minutes(self, name: str) -> float:
        return 0.1 if self.tiny else MINUTES.get(name, 1.0)

    def _tests(self) -> Iterator[Step]:
        """Return the tests: first whether the package works on this torch at all."""
        pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        some = ("tests/losses/test_losses.py", "-k", "softtriple") if self.tiny else TESTS
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        yield Step(
            "tests-cpu", "tests of numbers, GPUs hidden", (*pytest, *some), environment=hidden
        )
        seen = {"MLBENCH_TEST_GPU": "1"}
        command = (*pytest, "-m", "gpu", *TESTS, "tests/models")
        yield Step("tests-gpu", "tests that need a GPU", command, environment=seen)

    def _checks(self) -> Iterator[Step]:
        for name, tells in (
            ("search", "neighbours are the CPU's, also where a caller allows TF32"),
            ("compile", "CUDA graphs: time, skips, steps against eager ones, memory"),
        ):
            yield self._script(f"check-{name}", tells, CHECKS, name, *self._tiny("--tiny"))

    def _loops(self) -> Iterator[Step]:
        training, bf16 = SPEED / "training.py", ("--precision", "bf16")
        size = (
            "--networks",
            "convnet",
            "--batch",
            "8",
            "--quick",
            "--steps",
            "1",
            "--workers",
            "1",
        )
        pair = ("resnet18", LITE0)
        for network in ("convnet",) if self.tiny else pair:
            some = ("--networks", network, "--rounds", "5", "--workers", "8", "--compile")
            given = (*size, "--pair") if self.tiny else (*some, *bf16)
            yield self._script(
                f"loop-{network}", "a step of 32 beside a plain loop", training, *given
            )
        network = "convnet" if self.tiny else LITE0
        given = self._tiny(*size) or ("--compile", *bf16)
        command = ("--profile", network, *given)
        yield self._script("loop-profile", "what a step's time goes to", training, *command)
        for compiled in () if self.tiny else ((), ("--compile",)):
            some = ("--networks", "resnet50", "--batch", "256", "--steps", "8", "--rounds", "3")
            given = (*some, *bf16, "--workers", "8", "--pair", *compiled)
            name = "loop-resnet50" + "-compiled" * bool(compiled)
            yield self._script(name, "images a second at 256", training, *given)

    def _evaluation(self) -> Iterator[Step]:
        script = SPEED / "evaluator.py"
        quick = self._tiny("--quick", "--threads", "1")
        for shape in ("CUB",) if self.tiny else ("SOP64", "SOP512"):
            given = ("--alone", "--shape", shape, *quick)
            yield self._script(f"evaluate-{shape}", "evaluation without NMI", script, *given)
        yield self._script("kmeans", "ten restarts at CUB's shape", script, "--kmeans", *quick)

    def _fifty_epochs(self) -> Iterator[Step]:
        networks, precisions = (("convnet",), ("fp32",)) if self.tiny else (NETWORKS, PRECISIONS)
        epochs = self._epochs(5)
        softtriple = ("--losses", "softtriple", "--set", "backbone.weights=none")
        for network in networks:
            for precision in precisions:
                chosen = ("--backbone", network, "--set", f"training.precision={precision}")
                given = (*chosen, *softtriple, *epochs)
                tells = "seconds of five epochs"
                yield self._runs(f"epochs-{network}-{precision}", tells, *given)
        network = networks[0]
        given = ("--backbone", network, "--set", f"training.precision={precisions[-1]}")
        given += (*softtriple, "--seeds", "2", *self._epochs(50))
        given += () if self.tiny else ("--compile",)
        yield self._runs("fifty-epochs", "compiled: nothing kept at first, then all", *given)

    def _limits(self) -> Step:
        given = ("limits", *self._tiny("--tiny"), "--", *self.images)
        tells = "too large a batch, two runs at a time, Ctrl-C, kill and continue"
        return self._script("check-limits", tells, CHECKS, *given)

    def _studies(self) -> Iterator[Step]:
        network = ("--backbone", "convnet" if self.tiny else LITE0)
        many = ("--jobs", str(self.jobs), *network, *self._epochs(50))
        if self.tiny:
            many += ("--set", "backbone.weights=none")
        losses = ("--losses", "softtriple,proxy_anchor" if self.tiny else LOSSES)
        seeds = ("--seeds", "1" if self.tiny else "3")
        yield self._runs("study", "losses under recipe paper, 224 px", *losses, *seeds, *many)
        ends = ("--design", "factorial", "--from", "blog-code", "--to", "paper")
        given = (*ends, *many, *self._tiny("--runs", "8", "--seeds", "2"))
        picture = self.out / "packed" / "factorial.png"
        command = self._mlbench("ablate", "factorial", *given, "--picture", str(picture))
        tells = "what each factor between the code and the paper does"
        yield Step("factorial", tells, command, resumes=True)

    def _epochs(self, count: int) -> tuple[str, ...]:
        if not self.tiny:
            few = ("--set", f"schedule.epochs={count}", "--set", "schedule.milestones=[]")
            return few if count != 50 else ()
        values = ("schedule.epochs=1", "schedule.milestones=[]", "evaluation.nmi_restarts=1")
        values += ("input.size=32", "input.test_resize=32")
        return tuple(word for value in values for word in ("--set", value))

    def _tiny(self, *words: str) -> tuple[str, ...]:
        return words if self.tiny else ()

    def _script(self, name: str, tells: str, script: Path, *words: str) -> Step:
        figures = self.out / "figures" / f"{name}.json"
        given = ("--device", self.device, "--json", str(figures))
        place = words.index("--") if "--" in words else len(words)
        command = (sys.executable, str(script), *words[:place], *given, *words[place:])
        return Step(name, tells, command, figures=figures)

    def _runs(self, name: str, tells: str, *words: str) -> Step:
        command = self._mlbench("run", name, "--recipe", "paper", *words)
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor")}
        return Step(name, tells, command, resumes=True, environment=environment)

    def _mlbench(self, verb: str, name: str, *words: str) -> tuple[str, ...]:
        folder = str(self.out / "records" / name)
        own = (sys.executable, "-m", "mlbench", verb, "--device", self.device, "--out", folder)
        return (*own, *self.images, *words)


def path() -> str:
    """Return the PYTHONPATH with which steps find mlbench and the benchmarks of this tree."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), str(SPEED), *([before] if before else [])])
