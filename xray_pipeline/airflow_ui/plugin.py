"""Airflow plugin: the report as a tab of the DAG run, and the pages *Nights*, *Deliveries*, *Review* and *Champion*.

It is an entry point, so it is there wherever the package is installed. Airflow loads plugins into each of its
processes, workers too; the web application behind the pages is made only when the API server asks for it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.plugins_manager import AirflowPlugin

from xray_pipeline.airflow_ui import run_note
from xray_pipeline.airflow_ui.links import BASE, PREFIX

if TYPE_CHECKING:
    from fastapi import FastAPI

ROOT = urlsplit(BASE).path.rstrip("/")
"""The path Airflow itself is served under."""


ICONS = {
    "Nights": "M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5Z",
    "Deliveries": "M4 13v6h16v-6M4 13l3-8h10l3 8M4 13h5l1.5 2.5h3L15 13h5",
    "Review": "M2 12s3.6-6.5 10-6.5S22 12 22 12s-3.6 6.5-10 6.5S2 12 2 12ZM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6Z",
    "Champion": "M7 4h10v5a5 5 0 0 1-10 0zM7 5H4a3 3 0 0 0 3 5M17 5h3a3 3 0 0 1-3 5M12 14v4M8 20h8",
}
"""The pages in the navigation, each with the path of its icon on 24 x 24."""


def _icon(drawn: str, colour: str, around: str) -> str:
    """Return an icon as an address that holds it; the colour around it sets it off where Airflow shows it as chosen."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="24" height="24" fill="none" '
        f'stroke-linecap="round" stroke-linejoin="round"><path stroke="{around}" stroke-width="5" d="{drawn}"/>'
        f'<path stroke="{colour}" stroke-width="1.8" d="{drawn}"/></svg>'
    )
    return f"data:image/svg+xml,{quote(svg)}"


class XrayPlugin(AirflowPlugin):
    """Registers the pages with Airflow's user interface."""

    name = "xray"
    external_views = [  # noqa: RUF012 - as Airflow declares it
        {
            "name": "Report",
            "href": f"{ROOT}{PREFIX}/runs/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "xray-report",
        }
    ]
    listeners = [run_note]  # noqa: RUF012
    # A frame of Airflow's can't open links; these pages have many.
    react_apps = [  # noqa: RUF012
        {
            "name": name,
            "bundle_url": f"{ROOT}{PREFIX}/page.js?of={name.lower()}",
            "destination": "nav",
            "url_route": f"xray-{name.lower()}",
            "nav_top_level": True,
            "icon": _icon(drawn, "#1c2430", "#ffffff"),
            "icon_dark_mode": _icon(drawn, "#e6eaf0", "#14181e"),
        }
        for name, drawn in ICONS.items()
    ]

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The application with the pages."""
        return [{"app": _application(), "url_prefix": PREFIX, "name": "xray"}]


def _application() -> FastAPI:
    from xray_pipeline.airflow_ui.pages import application

    return application()
