"""The one error and the one warning that users see."""

import difflib
import re
from collections.abc import Iterable, Sequence

from mlbench._version import DISTRIBUTION


class MlbenchError(Exception):
    """Bad input or a missing resource.

    The message is one line: where, what is wrong, and how to fix it.

    The command line prints the message after ``Error:`` and exits with code 2.
    """


class MlbenchWarning(UserWarning):
    """Something that users should know, in one line; the command line prints it to stderr."""


class DataWarning(MlbenchWarning):
    """One about a data set; processes that another one has started leave it to that one."""


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing, by which two names could look the same.

Those of Unicode's Default_Ignorable_Code_Point that count as printable, and the blank of Braille.
"""


def printable(text: str) -> str:
    """Return ``text`` as one line of what can be seen.

    Without control characters, which could steer a terminal, marks of direction, which could show
    a name backwards, and characters of no width.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return _UNSEEN.sub(" ", text)


def printable_lines(text: str) -> str:
    """Return ``text`` with each of its lines as ``printable`` makes it."""
    return "\n".join(map(printable, text.split("\n")))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> MlbenchError:
    """Return the error for a name that is not known, with its near misses.

    Args:
        kind: what the name should have named, e.g. ``"loss"``.
        name: the name as the user gave it.
        known: all valid names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return MlbenchError(f"unknown {kind} '{name}'; {hint}")


def not_installed(what: str, extra: str) -> MlbenchError:
    """Return the error for an optional package that is needed and missing.

    Args:
        what: what needs which package, e.g. ``"tuning needs Optuna"``.
        extra: of this distribution, which brings the package.
    """
    return MlbenchError(
        f"{what}, which is not installed; run: pip install '{DISTRIBUTION}[{extra}]' "
        f"(in a checkout: pip install -e '.[{extra}]')"
    )


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Return up to five items as text, and how many more there are."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(items[:5]) + more
