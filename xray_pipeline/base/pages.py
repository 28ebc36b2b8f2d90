"""The one Jinja environment: each room keeps its templates in its own folder, and shares those in this one."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jinja2

_PACKAGE = Path(__file__).parents[1]


@functools.cache
def template(room: str, name: str) -> jinja2.Template:
    """Return a template of a room, or one that all share. Undefined names raise jinja2.UndefinedError.

    HTML is escaped. In Markdown (`.md.j2`) what could mark text up becomes `?`: a delivery's name is not ours to trust.
    """
    html = name.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_PACKAGE / room / "templates", _PACKAGE / "base" / "templates"]),
        autoescape=html,
        finalize=None if html else _plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.filters["moment"] = lambda at: f"{at[:10]} {at[11:16]}"
    return environment.get_template(name)


def without_pictures(page: str, instead: str = "") -> str:
    """Return an HTML page with its pictures, but for drawings, left out; `instead` is the HTML in the place of each."""
    return re.sub(r"<img [^>]*>", instead, page)


def _plain(value: object) -> str:
    return re.sub(r"[`|<>\[\]\\*\x00-\x1f]", "?", str(value))


def _shown(value: float | str | None) -> str:
    """Return a clause's threshold or actual value as a table cell shows it."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if value.is_integer():
        return f"{value:z,.0f}"
    # As many digits as the sentence beside it has; more where a confidence is nearly 1.
    digits = 2 if round(value, 2) == value else 5 if 0.999 < value < 1 else 4
    return f"{value:z.{digits}f}"
