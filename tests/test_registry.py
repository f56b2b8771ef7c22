import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

import mlbench
from mlbench import registry
from mlbench.errors import MlbenchError
from mlbench.interfaces import LossEntry
from mlbench.recipes.plan import DEFAULT_LOSSES
from mlbench.registry import Registry


def fresh(*entries: LossEntry) -> Registry[LossEntry]:
    return Registry(
        "loss", "mlbench.test-losses", LossEntry, ("num_classes", "embedding_dim"), entries
    )


BUILTIN = LossEntry(name="one", target="math:sqrt", summary="")


def factory(num_classes: int, embedding_dim: int) -> tuple[int, int]:
    """First line.

    More.
    """
    return num_classes, embedding_dim


def test_decorator_registers_and_returns_the_factory() -> None:
    losses = fresh()
    assert losses.register("two", paper="me", images_per_class=3)(factory) is factory
    entry = losses.get("two")
    assert (entry.summary, entry.images_per_class, entry.source) == (
        "First line.",
        3,
        "this program",
    )
    assert entry.load()(1, 2) == (1, 2)


def test_lazy_targets_are_imported_when_loaded() -> None:
    assert fresh(BUILTIN).get("one").load()(9.0) == 3.0


def test_names_cannot_be_taken_twice() -> None:
    losses = fresh(BUILTIN)
    with pytest.raises(MlbenchError, match="already registered by built-in"):
        losses.register("one")(factory)


@pytest.mark.parametrize("wrong", [lambda: 0, lambda num_classes: 0, lambda a, b, c: 0])
def test_wrong_signatures_are_refused(wrong: Any) -> None:
    with pytest.raises(MlbenchError, match=r"must accept \(num_classes, embedding_dim\)"):
        fresh().register("wrong")(wrong)


def test_unknown_descriptions_are_refused() -> None:
    with pytest.raises(MlbenchError, match="images_a_class"):
        fresh().register("wrong", images_a_class=3)(factory)


def test_prefix_names_bind_their_argument() -> None:
    losses = fresh(LossEntry(name="pre", target=lambda *a: a, summary="", prefix=True))
    assert losses.get("pre:x").load()(1, 2) == ("x", 1, 2)
    for name in ("pre", "pre:"):
        with pytest.raises(MlbenchError, match=r"pre:\.\.\."):
            losses.get(name)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    points: dict[str, str] = {}

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return points


def test_broken_plugins_are_named_and_take_no_other_down(
    plugins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = fresh(BUILTIN)

    def load(point: EntryPoint) -> None:
        if point.name == "broken":
            raise ImportError("no module named nonsense")
        if point.name == "leaving":
            raise SystemExit("bye")
        if point.name != "forgetful":
            losses.register(point.name)(factory)

    monkeypatch.setattr(EntryPoint, "load", load)
    plugins.update(broken="b", fine=__name__, forgetful="g", leaving="l", one="shadow")
    assert [e.name for e in losses.entries()] == ["one", "fine"]
    assert losses.get("one").target == "math:sqrt"
    problems = "\n".join(losses.problems)
    assert "plugin 'broken' of b skipped: ImportError: no module named nonsense" in problems
    assert "plugin 'leaving' of l skipped: SystemExit: bye" in problems
    assert "plugin 'forgetful' of g skipped: importing g registered no loss" in problems
    assert "plugin 'one' of shadow skipped: loss 'one' is already registered" in problems


def test_public_names_are_complete_and_all_there() -> None:
    assert sorted(mlbench.__all__) == mlbench.__all__
    for name in mlbench.__all__:
        assert getattr(mlbench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mlbench.nonsense
    assert set(DEFAULT_LOSSES) < set(mlbench.list_losses())


@pytest.mark.parametrize("command", [["--help"], ["list", "losses"], ["list", "recipes"]])
def test_light_commands_do_not_import_torch(command: list[str]) -> None:
    code = f"""
import sys
from mlbench.cli import main
try:
    main({command!r})
except SystemExit as stop:
    assert not stop.code
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
