"""The package's templates and the files that their pages hold."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from mlbench.tables.escaping import visible


def template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """Return a template that escapes what it is given and stops at what it lacks.

    Args:
        name: of the file.
        filters: that it may use besides Jinja's own, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlbench.report", "."),
        autoescape=True,
        finalize=visible_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tojson": _json, **filters}
    return environment.get_template(name)


def visible_text(value: Any) -> Any:
    """Return what an expression of a template gives, so that all of it can be seen."""
    return visible(value) if isinstance(value, str) else value


def _json(value: Any) -> Markup:
    return htmlsafe_json_dumps(visible(value))


def resource(name: str) -> str:
    """Return the content of a style sheet or a script."""
    return resources.files("mlbench.report").joinpath(name).read_text(encoding="utf-8")
