"""Airflow plugin: the report as a tab of the DAG run, and a page with the champion and its history.

It is an entry point, so it is there wherever the package is installed. Airflow loads plugins into each of its
processes, workers too; the web application behind the pages is made only when the API server asks for it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin

from xray_pipeline.airflow_ui.links import BASE, PREFIX

if TYPE_CHECKING:
    from fastapi import FastAPI

ROOT = urlsplit(BASE).path.rstrip("/")
"""The path Airflow itself is served under."""


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
    # A frame of Airflow's can't open links; this page has many.
    react_apps = [  # noqa: RUF012
        {
            "name": "Champion",
            "bundle_url": f"{ROOT}{PREFIX}/champion.js",
            "destination": "nav",
            "url_route": "xray-champion",
            "nav_top_level": True,
        }
    ]

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The application with the pages."""
        return [{"app": _application(), "url_prefix": PREFIX, "name": "xray"}]


def _application() -> FastAPI:
    from xray_pipeline.airflow_ui.pages import application

    return application()
