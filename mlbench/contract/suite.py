"""Runs the checks and says how they came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mlbench.contract import checks, gradients, state
from mlbench.contract.subject import CheckFailed, CheckSkipped, brief, resolve_subject
from mlbench.contract.synchronisation import no_synchronisation
from mlbench.contract.training import learns
from mlbench.interfaces import LossEntry
from mlbench.system.known_state import known_state

Check = Callable[[LossEntry], None]

# What fails these would fail the rest too, with less to say.
_FIRST: dict[str, Check] = {
    "finite-scalar": checks.finite_scalar,
    "labels-from-zero": checks.labels_from_zero,
}
_REST: dict[str, Check] = {
    "gradients-reach": gradients.gradients_reach,
    "true-gradient": gradients.true_gradient,
    "deterministic": checks.deterministic,
    "batch-order": checks.batch_order,
    "label-renaming": checks.label_renaming,
    "declared-length": checks.declared_length,
    "declared-proxies": checks.declared_proxies,
    "parameters-matter": checks.parameters_matter,
    "edge-batches": checks.edge_batches,
    "half-precision": checks.half_precision,
    "no-synchronisation": no_synchronisation,
    "memory": state.memory,
    "state-round-trip": state.state_round_trip,
    "learns": learns,
}


@dataclass(frozen=True)
class CheckResult:
    """How one check came out.

    Attributes:
        name: of the check, e.g. ``"batch-order"``.
        passed: False if the loss failed it; True also if it was skipped.
        message: what was expected and what came out, or why it was skipped; empty if passed.
        skipped: True if the check does not apply to this loss.
    """

    name: str
    passed: bool
    message: str = ""
    skipped: bool = False


def check_loss(subject: LossEntry | str) -> tuple[CheckResult, ...]:
    """Run all checks on a loss, on the CPU, in about a second.

    Args:
        subject: an entry, or what ``resolve_subject`` takes: a name or ``module:attribute``.

    Returns:
        the results in the order of the checks; if one of the first two fails, the others are
        skipped. The state of torch, NumPy and their generators is not changed.

    Raises:
        MlbenchError: there is no such loss. (A loss that cannot be built fails its first check.)
    """
    entry = resolve_subject(subject) if isinstance(subject, str) else subject
    first = [_run(entry, name, check) for name, check in _FIRST.items()]
    failed = [result.name for result in first if not result.passed]
    if failed:
        reason = f"needs {failed[0]}"
        return *first, *(CheckResult(name, True, reason, skipped=True) for name in _REST)
    return *first, *(_run(entry, name, check) for name, check in _REST.items())


def assert_loss(subject: LossEntry | str) -> None:
    """Fail a test with every check that the loss fails; arguments as in ``check_loss``.

    Raises:
        AssertionError: a line for each failed check.
        MlbenchError: there is no such loss.
    """
    failures = [f"{r.name}: {r.message}" for r in check_loss(subject) if not r.passed]
    if failures:
        raise AssertionError("\n".join(["the loss fails its contract", *failures]))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from sharing out tensors so small that waiting for threads is all it would do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(entry: LossEntry, name: str, check: Check) -> CheckResult:
    try:
        with known_state(seed=0), _one_thread():
            check(entry)
    except CheckFailed as failure:
        return CheckResult(name, False, str(failure))
    except CheckSkipped as reason:
        return CheckResult(name, True, str(reason), skipped=True)
    except Exception as error:  # the loss is foreign code
        return CheckResult(name, False, f"raised {brief(error)}")
    return CheckResult(name, True)
