"""Names of losses, data sets and folders made harmless in Markdown, LaTeX, CSV and HTML."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlbench.errors import printable, printable_lines

# What spreadsheets take for the start of a formula, also in full width.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


_MARKDOWN = re.compile(
    r"[\\|*_`<>\[\]~$&#!]"
    r"|(?<![A-Za-z0-9])@|@(?=[\w-]+\.\w)"  # who is mentioned, an address of mail; not R@1
    r"|:(?=//)|(?<=www)\."  # what GitHub makes a link of
    r"|^[-+](?=\s)|(?<=^\d)[.)](?=\s)"  # what begins a list
)


def escape_markdown(text: str) -> str:
    r"""Return ``text`` as one line that GitHub Markdown shows as it is.

    >>> from mlbench.tables.escaping import escape_markdown
    >>> print(escape_markdown("a|b, *not* emphasised"))
    a\|b, \*not\* emphasised
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def escape_latex(text: str) -> str:
    """Return ``text`` as one line that LaTeX typesets as it is, also at the start of a row."""
    escaped = "".join(_LATEX.get(character, character) for character in printable(text))
    # The end of the row before would take these for its argument.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def escape_csv(text: str) -> str:
    """Return ``text`` as a cell that no spreadsheet reads as a formula.

    >>> from mlbench.tables.escaping import escape_csv
    >>> print(escape_csv("=1+1"))
    '=1+1
    """
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def visible(value: Any) -> Any:
    """Return a value for an HTML page, every text in it as ``printable_lines`` makes it.

    Args:
        value: text, or lists and tables with texts in them; markup is left alone, as it is ours.
    """
    if isinstance(value, str):
        return value if hasattr(value, "__html__") else printable_lines(value)
    if isinstance(value, Mapping):
        return {visible(key): visible(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [visible(each) for each in value]
    return value
