"""The page *Champion*: which version is in production, which waits, what was decided, and the forms to decide more."""

from __future__ import annotations

import functools
from typing import Annotated, Any

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from fastapi import Query
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from xray_pipeline.airflow_ui import access, drawing, links
from xray_pipeline.airflow_ui.returned import returned
from xray_pipeline.base.errors import DatasetError, LedgerError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.registry import story
from xray_pipeline.registry.ledger import Entry, Ledger, State

WAITING = (TaskInstanceState.DEFERRED, TaskInstanceState.AWAITING_INPUT)
ROWS = 50


def show(session: SessionDep, before: Annotated[int | None, Query(ge=1, le=99_999_999)] = None) -> HTMLResponse:
    """Show champion, challenger, what waits for approval, and the decisions before entry `before`, newest first."""
    settings = Settings()
    try:
        ledger = _ledger(settings.store)
        state, entries = ledger.state(), ledger.entries()
    except (LedgerError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="The ledger can't be read", text=str(error))
    store = open_store(settings.store, settings)
    last = min(before - 1, len(entries)) if before else len(entries)
    shown = entries[max(0, last - ROWS) : last]
    return drawing.page(
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
        "page": links.version_page(settings, version),
        "entry": entry,
        "run": links.run_page(settings, registered.candidate) if registered else "",
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
        "page": links.version_page(Settings(), entry.version) if entry.version else "",
        "report": _report_address(decided, store) if decided else "",
    }


def _report_address(entry: Entry, store: Store) -> str:
    from xray_pipeline.report.places import report_key

    if not store.exists(report_key(entry.candidate, entry.champion_before)):
        return ""
    return f"{links.BASE}{links.PREFIX}/reports/{entry.candidate}/{entry.champion_before or 'none'}"


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
        .where(
            TaskInstance.dag_id == access.PROMOTE, TaskInstance.state.in_(WAITING), HITLDetail.responded_at.is_(None)
        )
        .order_by(HITLDetail.created_at.desc())
    )
    requests = []
    for run_id, created in session.execute(query):
        asked = returned(session, access.PROMOTE, run_id, "prepare").get("prepare")
        if asked:
            requests.append(
                {
                    "version": asked["version"],
                    "since": created.isoformat(),
                    "void": story.why_void(ledger, asked["version"], asked["champion"], asked.get("models")),
                    "page": f"{links.BASE}/dags/{access.PROMOTE}/runs/{run_id}/tasks/approve/required_actions",
                }
            )
    return requests
