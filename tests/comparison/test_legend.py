"""What stands below a table about its rows."""

from dataclasses import replace

from helpers.runs import RUNS, record

from mlbench.comparison.legend import stamp
from mlbench.registry import LOSSES


def test_the_line_by_loss_says_what_the_record_says_that_the_loss_declared() -> None:
    """Also where the loss has changed since, or is a plugin that is not installed here."""
    made = record(RUNS[0], needs="9 a class, raw, lr scale 0.5, step")
    plugin = replace(made, loss="of_a_plugin", params={})
    for one in (made, plugin):
        assert f"{one.loss}: 9 a class, raw, lr scale 0.5, step" in "\n".join(stamp([one]))


def test_a_record_of_before_reads_the_needs_of_the_catalogue() -> None:
    made = record(RUNS[0])
    lines = "\n".join(stamp([made]))
    assert f"{made.loss}: {LOSSES.get(made.loss).needs}" in lines
    unknown = replace(made, loss="of_a_plugin", params={})
    assert "of_a_plugin: needs not known here" in "\n".join(stamp([unknown]))
