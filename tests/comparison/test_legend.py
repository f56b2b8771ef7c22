"""What is printed below a table about its rows."""

from dataclasses import replace

from helpers.runs import RUNS, record

from mlbench.comparison.legend import settings
from mlbench.registry import LOSSES


def test_the_settings_say_what_the_record_says_that_the_loss_declared() -> None:
    """Also where the loss has changed since, or is a plugin that is not installed here."""
    made = record(RUNS[0], needs="9 images per class; step")
    plugin = replace(made, loss="of_a_plugin", params={})
    for one in (made, plugin):
        (text,) = settings([one]).values()
        assert text.startswith("9 images per class; step")


def test_a_record_of_before_reads_the_needs_of_the_catalogue() -> None:
    made = record(RUNS[0])
    (text,) = settings([made]).values()
    assert text.startswith(f"{LOSSES.get(made.loss).needs}; centers_per_class ")
    unknown = replace(made, loss="of_a_plugin", params={})
    assert settings([unknown]) == {"of_a_plugin": "requirements not known here"}
