"""Names of losses, data sets and folders made harmless in Markdown, LaTeX and CSV."""

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


def escape_markdown(text: str) -> str:
    """Return ``text`` as one line that GitHub Markdown shows as it is."""
    for character in "\\|*_`<>[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def escape_latex(text: str) -> str:
    """Return ``text`` as one line that LaTeX typesets as it is, also at the start of a row."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    # The end of the row before would take these for its argument.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def escape_csv(text: str) -> str:
    """Return ``text`` as a cell that no spreadsheet reads as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
