"""The examples in docstrings print what they say."""

import ast
from collections.abc import Iterator
from doctest import DocTest, DocTestParser, DocTestRunner
from pathlib import Path

import pytest

import mlbench

PACKAGE = Path(mlbench.__file__).parent


def examples() -> Iterator[DocTest]:
    """Yield each example, from the source, as doctest passes over what is decorated."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            if ">>>" in text:
                name = f"{file.relative_to(PACKAGE)}:{getattr(node, 'name', '')}"
                yield DocTestParser().get_doctest(text, {}, name, str(file), node.body[0].lineno)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_it_says(example: DocTest) -> None:
    report: list[str] = []
    result = DocTestRunner(verbose=False).run(example, out=report.append)
    assert result.attempted
    assert not result.failed, "".join(report)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10


def test_a_wrong_example_is_noticed() -> None:
    wrong = DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert DocTestRunner(verbose=False).run(wrong, out=lambda _: None).failed == 1
