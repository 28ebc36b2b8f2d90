"""The pages of the Airflow plugin, as an application of the API server.

Each address asks for Airflow's own login and for leave to read the DAG it tells of. What a user names (a run, a
candidate) is matched against a pattern and looked up in Airflow's database or the store by its exact key; it is never
part of a path to a file otherwise. Pages load nothing: a strict content security policy says so to the browser.
"""

from __future__ import annotations

import functools
import logging
import re
from importlib.resources import files
from typing import Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.state import TaskInstanceState
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from xray_pipeline.airflow_ui import links as airflow_links
from xray_pipeline.base.errors import DatasetError, LedgerError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.pages import template
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.registry import story
from xray_pipeline.registry.ledger import Entry, Ledger, State

log = logging.getLogger(__name__)

RETRAIN, PROMOTE = "xray_retrain", "xray_promote"
WAITING = (TaskInstanceState.DEFERRED, TaskInstanceState.AWAITING_INPUT)
ROWS = 50
CAN_READ_RUN = requires_access_dag("GET", DagAccessEntity.XCOM)  # the DAG of the address
CAN_READ_NIGHT = requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=RETRAIN)
CAN_READ_PROMOTIONS = requires_access_dag("GET", DagAccessEntity.XCOM, param_dag_id=PROMOTE)

_COMMON = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
PAGE_POLICY = f"{_COMMON}; style-src 'sha256-{{}}'"
REPORT_POLICY = f"{_COMMON}; img-src data:; style-src 'unsafe-inline'; sandbox"
"""Curves in a report are SVG with style attributes. No script, no address but the page's own."""

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Against = Annotated[str, Path(pattern=r"^(none|[1-9][0-9]{0,8})$")]
Name = Annotated[str, Path(max_length=250, pattern=r"^[\w.~:+-]+$")]


def application() -> FastAPI:
    """Return the application, to be mounted at `airflow_links.PREFIX`."""
    app = FastAPI(title="xray-retrain", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_headers)
    app.get("/champion", dependencies=[Depends(CAN_READ_PROMOTIONS), Depends(CAN_READ_NIGHT)])(champion)
    app.get("/champion.js", dependencies=[Depends(CAN_READ_PROMOTIONS)])(script)
    app.get("/reports/{candidate}/{against}", dependencies=[Depends(CAN_READ_NIGHT)])(report)
    app.get("/runs/{dag_id}/{run_id}", dependencies=[Depends(CAN_READ_RUN)])(run_report)
    return app


async def _headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", f"{_COMMON}; sandbox")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def champion(session: SessionDep, before: Annotated[int | None, Query(ge=1, le=99_999_999)] = None) -> HTMLResponse:
    """Show champion, challenger, what waits for approval, and the decisions before entry `before`, newest first."""
    settings = Settings()
    try:
        ledger = _ledger(settings.store)
        state, entries = ledger.state(), ledger.entries()
    except (LedgerError, StorageUnavailable) as error:
        return _page("notice.html.j2", 503, title="The ledger can't be read", text=str(error))
    store = open_store(settings.store, settings)
    last = min(before - 1, len(entries)) if before else len(entries)
    shown = entries[max(0, last - ROWS) : last]
    return _page(
        "champion.html.j2",
        name=settings.model_name,
        state=state,
        champion=_role(state.champion, state.since, state, store),
        challenger=_role(state.challenger, state.registered.get(state.challenger or 0), state, store),
        pending=_pending(session, ledger),
        rows=[_row(entry, state, store) for entry in reversed(shown)],
        older=shown[0].sequence if shown and shown[0].sequence > 1 else None,
        newer=last < len(entries),
        mlflow=f"{settings.mlflow_page}/#/models/{settings.model_name}" if settings.mlflow_page else "",
    )


def script() -> Response:
    """Give the component that shows `champion` inside Airflow's own page."""
    text = (files("xray_pipeline.airflow_ui") / "templates" / "champion.js").read_text(encoding="utf-8")
    return Response(text, media_type="text/javascript")


def report(candidate: Digest, against: Against) -> Response:
    """Show the report on a candidate against a champion (its version, or `none`)."""
    return _report(candidate, None if against == "none" else int(against))


def run_report(dag_id: Name, run_id: Name, session: SessionDep) -> Response:
    """Show the report of a DAG run, or say why it has none."""
    said = _returned(session, dag_id, run_id, "decide", "prepare", "conclude")
    about = said.get("decide") or said.get("prepare") or {}
    candidate = str(about.get("candidate", ""))
    if airflow_links.DIGEST.fullmatch(candidate):
        return _report(candidate, about["champion"])
    why = (said.get("conclude") or {}).get("message") or "It is written when the candidate has been evaluated."
    return _page("notice.html.j2", 200, title="This run has no report", text=why)


def _report(candidate: str, against: int | None) -> Response:
    from xray_pipeline.report.places import report_key

    settings = Settings()
    try:
        content = open_store(settings.store, settings).read(report_key(candidate, against))
    except ObjectNotFound as error:
        raise HTTPException(404, "there is no such report") from error
    except StorageUnavailable as error:
        raise HTTPException(503, "the store did not answer") from error
    return HTMLResponse(content, headers={"Content-Security-Policy": REPORT_POLICY})


# --- what the pages show


@functools.lru_cache(maxsize=1)
def _ledger(store: str) -> Ledger:
    """Open one ledger per process: it keeps the entries that it has read."""
    return Ledger(open_store(store, Settings()))


def _role(version: int | None, entry: Entry | None, state: State, store: Store) -> dict[str, Any] | None:
    if version is None:
        return None
    settings, registered = Settings(), state.registered.get(version)
    return {
        "version": version,
        "candidate": registered.candidate if registered else "",
        "artifact": registered.artifact if registered else "",
        "page": airflow_links.version_page(settings, version),
        "entry": entry,
        "run": airflow_links.run_page(settings, registered.candidate) if registered else "",
        "report": _report_address(registered, store) if registered else "",
        "metrics": _metrics(registered, store) if registered else {},
    }


def _row(entry: Entry, state: State, store: Store) -> dict[str, Any]:
    registered = state.registered.get(entry.version or 0)
    if registered and entry.candidate not in ("", registered.candidate):
        registered = None
    decided = entry if entry.kind in ("registered", "refused") else registered
    return {
        "entry": entry,
        "page": airflow_links.version_page(Settings(), entry.version) if entry.version else "",
        "report": _report_address(decided, store) if decided else "",
    }


def _report_address(entry: Entry, store: Store) -> str:
    from xray_pipeline.report.places import report_key

    if not store.exists(report_key(entry.candidate, entry.champion_before)):
        return ""
    return f"{airflow_links.BASE}{airflow_links.PREFIX}/reports/{entry.candidate}/{entry.champion_before or 'none'}"


def _metrics(entry: Entry, store: Store) -> dict[str, dict[str, float]]:
    """Return the metrics that a version was registered with."""
    from xray_pipeline.night.run import kept_evidence

    try:
        evidence = kept_evidence(store, entry.decision["evidence"])
    except (KeyError, ObjectNotFound, DatasetError):  # the page is of more than this
        return {}
    metrics = evidence["candidate"]["metrics"]
    return {name: metrics[name] for name in HEADLINE if name in metrics}


def _pending(session: Session, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the requests of xray_promote that nobody has answered, newest first, each with why it is void if it is."""
    query = (
        select(TaskInstance.run_id, HITLDetail.created_at)
        .join(TaskInstance, HITLDetail.ti_id == TaskInstance.id)
        .where(TaskInstance.dag_id == PROMOTE, TaskInstance.state.in_(WAITING), HITLDetail.responded_at.is_(None))
        .order_by(HITLDetail.created_at.desc())
    )
    requests = []
    for run_id, created in session.execute(query):
        asked = _returned(session, PROMOTE, run_id, "prepare").get("prepare")
        if asked:
            requests.append(
                {
                    "version": asked["version"],
                    "since": created.isoformat(),
                    "void": story.why_void(ledger, asked["version"], asked["champion"], asked.get("models")),
                    "page": f"{airflow_links.BASE}/dags/{PROMOTE}/runs/{run_id}/tasks/approve/required_actions",
                }
            )
    return requests


def _returned(session: Session, dag_id: str, run_id: str, *tasks: str) -> dict[str, dict[str, Any]]:
    """Return what tasks of a run returned, by task, of those that returned an object."""
    query = XComModel.get_many(run_id=run_id, key="return_value", dag_ids=dag_id, task_ids=tasks)
    rows: list[Any] = list(session.scalars(query))
    values = {row.task_id: XComModel.deserialize_value(row) for row in rows}
    return {task: value for task, value in values.items() if isinstance(value, dict)}


# --- drawing


def _page(page: str, status: int = 200, **values: Any) -> HTMLResponse:
    text = template("airflow_ui", page).render(**values)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    return HTMLResponse(
        text, status, {"Content-Security-Policy": PAGE_POLICY.format(_digest(style.group(1) if style else ""))}
    )


def _digest(style: str) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
