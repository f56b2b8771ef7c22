"""Makes one run after the other: in this process, or as a worker's hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from mlbench.errors import MlbenchError
from mlbench.recipes.plan import Files
from mlbench.recipes.spec import Recipe, RunSpec
from mlbench.runs.executors.crew import Event, Finished, Phase, Site
from mlbench.runs.ingredients import Ingredients
from mlbench.runs.outcomes import Outcome, attempt, failed, label
from mlbench.training.device import resolve_device

_REPORT_SECONDS = 0.2


class Inline:
    """Makes each run in this process, when it is started."""

    retries = 0
    remote = False

    def __init__(self) -> None:
        self._finished: list[Event] = []

    def begin(self, ingredients: Ingredients, site: Site) -> None:
        """Take note of the plan."""
        self._ingredients, self._out = ingredients, site.out

    @property
    def free(self) -> bool:
        """Whether the last run's end was told of."""
        return not self._finished

    @property
    def busy(self) -> bool:
        """Whether it was not."""
        return bool(self._finished)

    def start(self, spec: RunSpec) -> None:
        """Make the run; MlbenchError if the GPU failed, as no other run can be made then."""
        outcome = attempt(spec, self._ingredients, self._out)
        if outcome and outcome.device_lost:
            raise MlbenchError(
                f"{label(spec)}: {outcome.problem}; re-run the same command to continue with "
                "the other runs; MLBENCH_DEBUG=1 shows where it failed"
            )
        self._finished.append(Finished(spec, outcome))

    def events(self) -> list[Event]:
        """Return what was finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def stop(self) -> None:
        """Do nothing: a run in this process ends with what interrupts it."""


class Maker:
    """Makes runs in a process of a crew; keeps the last plan's ingredients between them.

    Args:
        where: the name of this process.
        report: gets what is being done, a few times a second.
    """

    def __init__(self, where: str, report: Callable[[Phase], None]) -> None:
        self.where, self.report = where, report
        self._key: tuple[Recipe, Files, str] | None = None
        self._run, self._last = "", ("", 0.0)

    def make(self, spec: RunSpec, site: Site) -> Outcome | None:
        """Make a run as ``attempt`` does."""
        self._run = label(spec)
        self._progress("loading", 0, 0)
        try:
            ingredients = self._laboratory(spec.recipe, site)
            outcome = attempt(spec, ingredients, site.out, site.checkpoints)
        except MlbenchError as error:  # the device is not there
            outcome = failed(spec, site.out, str(error))
        return outcome and replace(outcome, where=self.where)

    def _laboratory(self, recipe: Recipe, site: Site) -> Ingredients:
        key = (recipe, site.files, site.device)
        if self._key != key:
            device = resolve_device(site.device)
            self._ingredients = Ingredients(recipe, site.files, device, self._progress)
            self._key = key
        return self._ingredients

    def _progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._last[0] != phase or now - self._last[1] > _REPORT_SECONDS:
            self._last = phase, now
            self.report(Phase(phase, done, total, self._run, self.where))
