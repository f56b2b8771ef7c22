"""The conformance suite of losses: what ``mlbench check NAME`` runs, and plugin tests with it.

from mlbench.contract import assert_loss

def test_my_loss() -> None:
    assert_loss("my-loss")
"""

from mlbench.contract.subject import resolve_subject
from mlbench.contract.suite import CheckResult, assert_loss, check_loss

__all__ = ["CheckResult", "assert_loss", "check_loss", "resolve_subject"]
