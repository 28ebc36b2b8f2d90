"""How the plugin's pages become answers: rendered, under a policy that lets a browser run nothing, and load nothing but
the plugin's own pictures."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from fastapi.responses import HTMLResponse

from xray_pipeline.base.pages import template
from xray_pipeline.base.text import SHORTEST_REASON

COMMON = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
_PAGE = f"{COMMON}; frame-src 'self'; img-src 'self' data:; style-src 'sha256-{{}}'"
CONTENT_POLICY = f"{COMMON}; img-src data:; style-src 'unsafe-inline'; sandbox allow-same-origin"
"""For pages that the store holds. Curves in a report are SVG with style attributes; a link to a delivery's page carries
Airflow's login only from its own origin."""


def page(drawn: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template of this room; its one style sheet is named by digest. Raises jinja2.UndefinedError."""
    text = template("airflow_ui", drawn).render(shortest_reason=SHORTEST_REASON, **values)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode() if style else b"").digest()).decode()
    return HTMLResponse(text, status, {"Content-Security-Policy": _PAGE.format(digest)})


def kept(content: bytes) -> HTMLResponse:
    """Give a page as the store holds it."""
    return HTMLResponse(content, headers={"Content-Security-Policy": CONTENT_POLICY})
