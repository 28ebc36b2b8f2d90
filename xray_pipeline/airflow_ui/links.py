"""What the DAGs need of Airflow beyond wiring: addresses of pages, links on tasks, the version an asset event is about.

Imported when a DAG file is parsed and inside tasks, so it knows only Airflow's SDK; the pages are in pages.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from xray_pipeline.base.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Asset

    from xray_pipeline.night.summary import Course

PREFIX = "/xray"
"""Where the pages of the plugin are mounted."""
BASE = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
PAGES = f"{BASE}{PREFIX}"
"""The address of the plugin's pages."""
HISTORY = f"{BASE}/plugin/xray-champion"
REQUEST = f"{BASE}/dags/xray_promote/runs/{{{{ ti.run_id | urlencode }}}}/tasks/approve/required_actions"
"""Jinja template of the page where a request of xray_promote is answered."""
PLACE = urlsplit(PAGES).path
"""The path of the plugin's pages, on whatever name a browser reaches Airflow by."""
DELIVERIES = f"{BASE}/plugin/xray-deliveries"
REPORT_OF_RUN = f"{BASE}/dags/{{{{ ti.dag_id }}}}/runs/{{{{ ti.run_id | urlencode }}}}/plugin/xray-report"
"""Jinja template of the tab *Report* of a run."""
_ASKED = "ti.xcom_pull(task_ids='prepare')"
REPORT_OF_REQUEST = f"{PAGES}/reports/{{{{ {_ASKED}['candidate'] }}}}/{{{{ {_ASKED}['champion'] or 'none' }}}}"
"""Jinja template of the report that a request of xray_promote is about."""

IN_WORDS = "in_words"
"""The XCom of `conclude` that tells the night in one line, also of a night that failed."""
FAILED_ELSEWHERE = "the night failed"

DIGEST = re.compile(r"[0-9a-f]{64}")


def asked_version(context: Mapping[str, Any], registered: Asset) -> tuple[int | None, str, str]:
    """Return what a run of xray_promote is about: a version (None: the challenger), the candidate that it must be (""
    for any), and why there is nothing to ask ("").

    A version of the form comes first, else the newest of the asset events that started the run.
    """
    if (version := context["params"].get("version")) is not None:
        return int(version), "", ""
    events = context.get("triggering_asset_events") or {}
    told = [event for event in events.get(registered, ()) if event.extra and "version" in event.extra]
    if not told:
        return None, "", ""
    newest = max(told, key=lambda event: event.timestamp).extra
    if newest.get("promotes"):
        return None, "", f"the night that registered version {newest['version']} promotes it itself"
    return int(newest["version"]), str(newest.get("candidate", "")), ""


def as_numbers(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the values of a form with those that it gives as text as whole numbers; what is empty stays so."""
    numbers = {name: int(params[name]) for name in names if params.get(name) not in (None, "")}
    return {**params, **numbers}


def course(context: Mapping[str, Any]) -> Course:
    """Return how the tasks of this run went so far: minutes, and the names of those that failed.

    A red `check_delivery` is a delivery that was rejected, or one that `conclude` finds unchecked: no failed night. Nor
    is one that could not look ahead.
    """
    from xray_pipeline.night.summary import Course

    run, task = context["dag_run"], context["ti"].task_id
    ended = context["ti"].get_task_breadcrumbs(run.dag_id, run.run_id)
    night = Course(run.start_date.astimezone(UTC).isoformat(timespec="seconds"))
    for one in ended:
        name = one["task_id"]
        if name != task and one.get("duration"):
            night.minutes[name] = round(night.minutes.get(name, 0.0) + one["duration"] / 60, 3)
        if one["state"] == "failed" and name == "look_ahead":
            night.unwatched = "see its log"
        elif one["state"] == "failed" and name not in ("check_delivery", task):
            night.failed[name] = ""
    if "find_deliveries" in night.failed:
        night.failed.pop("commit_deliveries", None)
    return night


class _Link(BaseOperatorLink):
    """A link computed where the task ran, from what the task returned."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address, "" while there is none."""
        settings = Settings()
        if not settings.mlflow_page:
            return ""
        returned = ti_key.xcom_pull(task_ids=operator.task_id)
        return self.page(settings, returned) if isinstance(returned, Mapping) else ""

    def page(self, settings: Settings, returned: Mapping[str, Any]) -> str:
        raise NotImplementedError


class MlflowRun(_Link):
    """The MLflow run of the candidate a task is about."""

    name = "MLflow run"

    def page(self, settings: Settings, returned: Mapping[str, Any]) -> str:
        """Return the run's address."""
        return run_page(settings, str(returned.get("candidate", "")))


class MlflowVersion(_Link):
    """The registered version a task is about."""

    name = "MLflow version"

    def page(self, settings: Settings, returned: Mapping[str, Any]) -> str:
        """Return the version's address."""
        return version_page(settings, int(returned["version"])) if returned.get("version") else ""


class DeliveryPage(BaseOperatorLink):
    """The page of the delivery that a mapped task is about. Such a task keeps the address itself, while it runs."""

    name = "Delivery"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address."""
        return delivery_page(operator.op_kwargs["delivery"])

    def keep(self, context: Mapping[str, Any]) -> None:
        """Keep the address where Airflow looks for it."""
        context["ti"].xcom_push(self.xcom_key, self.get_link(context["task"], ti_key=context["ti"]))


def put(link: BaseOperatorLink, *results: Any) -> None:
    """Show a link on the tasks that `results` (calls of @task functions) come from."""
    for result in results:
        result.operator.operator_extra_links = [*result.operator.operator_extra_links, link]


def delivery_page(key: str) -> str:
    """Return the address of a delivery in Airflow's page *Deliveries*."""
    return f"{DELIVERIES}#{quote(key, safe='')}"


def version_page(settings: Settings, version: int) -> str:
    """Return MLflow's page on a version, "" without a server."""
    return f"{settings.mlflow_page}/#/models/{settings.model_name}/versions/{version}" if settings.mlflow_page else ""


def run_page(settings: Settings, candidate: str) -> str:
    """Return MLflow's page on the run of a candidate, "" when there is none. Raises StorageUnavailable."""
    from xray_pipeline.base import records
    from xray_pipeline.base.errors import DatasetError, ObjectNotFound
    from xray_pipeline.base.storage import open_store

    if not settings.mlflow_page or not DIGEST.fullmatch(candidate):
        return ""
    try:
        logged = records.read(open_store(settings.store, settings), f"candidates/{candidate}/run.json", dict[str, str])
    except (ObjectNotFound, DatasetError):
        return ""
    return f"{settings.mlflow_page}/#/runs/{logged['run_id']}"
