"""The page *Champion*: which version is in production, which waits, what was decided, and the forms to decide more."""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from fastapi import Query
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from xray_pipeline.airflow_ui import access, drawing, links, memory
from xray_pipeline.airflow_ui.returned import returned
from xray_pipeline.base.errors import ConfigError, DatasetError, LedgerError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import BARRED
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.intake import alarms
from xray_pipeline.registry import tidied
from xray_pipeline.registry.entries import PUT_FORWARD, Entry
from xray_pipeline.registry.questions import why_void
from xray_pipeline.registry.state import State

if TYPE_CHECKING:
    from xray_pipeline.night.watching import Watched

WAITING = (TaskInstanceState.DEFERRED, TaskInstanceState.AWAITING_INPUT)
ROWS = 50
FORMS = (access.PROMOTE, access.ROLLBACK, access.COMPARE, access.WATCH)
"""The DAGs that its forms start."""


def show(
    session: SessionDep, user: GetUserDep, before: Annotated[int | None, Query(ge=1, le=99_999_999)] = None
) -> HTMLResponse:
    """Show champion, challenger, what waits for approval, and the decisions before entry `before`, newest first."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        ledger = memory.ledger(settings.store)
        state, entries = ledger.state(), ledger.entries()
        last = min(before - 1, len(entries)) if before else len(entries)
        shown, watched = entries[max(0, last - ROWS) : last], _watched(settings)
        return drawing.page(
            "champion.html.j2",
            name=settings.model_name,
            state=state,
            champion=_role(state.champion, state.since, state, store, settings),
            challenger=_role(state.challenger, state.registered.get(state.challenger or 0), state, store, settings),
            barred=_barred(state, entries),
            together=_together(state, store),
            standing=_standing(store),
            watched=watched,
            in_shadow=_in_shadow(settings),
            withdrawn=_withdrawn(settings, len(entries)),
            deliveries=links.DELIVERIES,
            forms=_forms(state, tidied.of_versions(store, state.registered), user),
            acknowledges=watched.alarm and access.may_start(user, access.WATCH),
            may=any(access.may_start(user, dag) for dag in FORMS),
            pending=_pending(session, user, state),
            actions=f"{links.BASE}/required_actions",
            rows=[_row(entry, state, store, settings) for entry in reversed(shown)],
            older=shown[0].sequence if shown and shown[0].sequence > 1 else None,
            newer=last < len(entries),
            mlflow=f"{settings.mlflow_page}/#/models/{settings.model_name}" if settings.mlflow_page else "",
        )
    except (LedgerError, DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="The ledger or the store can't be read", text=str(error))


def _role(
    version: int | None, entry: Entry | None, state: State, store: Store, settings: Settings
) -> dict[str, Any] | None:
    if version is None:
        return None
    registered = state.registered.get(version)
    return {
        "version": version,
        "candidate": registered.candidate if registered else "",
        "artifact": registered.artifact if registered else "",
        "page": links.version_page(settings, version),
        "entry": entry,
        "run": links.run_page(settings, registered.candidate) if registered else "",
        "report": _report_address(registered, store) if registered else "",
        "metrics": _headline(_evidence(registered, store).get("candidate")) if registered else {},
    }


def _row(entry: Entry, state: State, store: Store, settings: Settings) -> dict[str, Any]:
    registered = state.registered.get(entry.version or 0)
    if registered and entry.candidate not in ("", registered.candidate):
        registered = None
    decided = entry if entry.kind in ("registered", "refused") else registered
    return {
        "entry": entry,
        "page": links.version_page(settings, entry.version) if entry.version else "",
        "report": _report_address(decided, store) if decided else "",
    }


def _report_address(entry: Entry, store: Store) -> str:
    from xray_pipeline.report.places import report_key

    if not store.exists(report_key(entry.candidate, entry.champion_before)):
        return ""
    return f"{links.PAGES}/reports/{entry.candidate}/{entry.champion_before or 'none'}"


def _evidence(entry: Entry, store: Store) -> dict[str, Any]:
    """Return the evidence that a version was registered on, empty where it can't be read: the page is of more."""
    from xray_pipeline.night.run import kept_evidence

    try:
        return kept_evidence(store, entry.decision["evidence"])
    except (KeyError, ObjectNotFound, DatasetError):
        return {}


def _headline(evaluation: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    metrics = evaluation["metrics"] if evaluation else {}
    return {name: metrics[name] for name in HEADLINE if name in metrics}


def _together(state: State, store: Store) -> dict[str, Any] | None:
    """Return the figures of those in charge, as they were measured last; None where they never were."""
    from xray_pipeline.night.scores import in_charge, last_scores

    scores = last_scores(store, state, in_charge(state))
    if scores is None:
        return None
    measured = dict(zip(scores.versions, scores.evaluations, strict=True))
    first = scores.evaluations[0]
    shown = {role: measured.get(version or 0) for role, version in _roles(state).items()}
    return {
        **{role: _headline(evaluation.to_dict() if evaluation else None) for role, evaluation in shown.items()},
        "differences": scores.comparison.to_dict()["differences"] if scores.comparison else {},
        "radiographs": first.n,
        "patients": first.patients,
        "at": scores.scored,
    }


def _roles(state: State) -> dict[str, int | None]:
    return {"champion": state.champion, "challenger": state.challenger}


def _barred(state: State, entries: Sequence[Entry]) -> str:
    """Say why the policy does not let the challenger be promoted, as it was registered; "" when it does, or when it was
    put forward since."""
    registered = state.registered.get(state.challenger or 0)
    about = [entry for entry in entries if entry.version is not None and entry.version == state.challenger]
    if about and about[-1].request.startswith(PUT_FORWARD):
        return ""
    if registered is None or registered.decision.get("may_promote", True):
        return ""
    reasons = list(registered.decision.get("reasons", ()))
    against = reasons[reasons.index(BARRED) + 1 :] if BARRED in reasons else reasons
    return " ".join(against) or "the policy in force does not allow it"


def _watched(settings: Settings) -> Watched:
    """Return the champion's record as it reads today, or why it can't be told."""
    from xray_pipeline.night import watching
    from xray_pipeline.night.run import Run

    try:
        return watching.watched(Run(settings))
    except ConfigError as error:  # the policy's, which the page needs for nothing else
        return watching.Watched(None, "", "", str(error), None)


def _in_shadow(settings: Settings) -> str:
    from xray_pipeline.night import shadow
    from xray_pipeline.night.run import Run

    return shadow.in_words(Run(settings))


def _standing(store: Store) -> dict[str, tuple[str, ...]]:
    """Return the channels of each delivery whose drift alarms nobody has settled."""
    found = {key: alarms.of_delivery(store, key) for key in memory.alarmed(store)}
    return {key: channels for key, channels in found.items() if channels}


def _withdrawn(settings: Settings, entries: int) -> int | None:
    """Return from how many radiographs that are withdrawn by now the champion learned, None where nobody knows."""
    commits = Dataset(settings).commits
    return _learned_withdrawn(settings.store, commits.head(), entries) if commits.amendments() else 0


@functools.lru_cache(maxsize=1)
def _learned_withdrawn(store: str, head: str, entries: int) -> int | None:
    """Count once for each state of the dataset (its newest commit) and of the ledger: it reads every manifest."""
    from xray_pipeline.night.affected import champion_learned_withdrawn

    return champion_learned_withdrawn(Settings(store=store))[1]


def _forms(state: State, removed: Container[int], user: BaseUser) -> dict[str, Any]:
    """Return what each form offers: versions, newest first; none where Airflow does not let this person start it.

    What `xray tidy` removed can't be promoted or compared.
    """
    versions = sorted((version for version in state.registered if version not in removed), reverse=True)
    others = [version for version in versions if version != state.champion]
    rejected = [version for version in versions if version in state.rejected]
    return {
        "compare": versions if len(versions) > 1 and access.may_start(user, access.COMPARE) else [],
        "promote": others if access.may_start(user, access.PROMOTE) else [],
        "reopen": rejected if access.may_start(user, access.PROMOTE) else [],
        "rollback": list(dict.fromkeys(reversed(state.previous))) if access.may_start(user, access.ROLLBACK) else [],
    }


def _pending(session: Session, user: BaseUser, state: State) -> list[dict[str, Any]]:
    """Return the requests of xray_promote that nobody has answered, newest first, each with why it is void if it is."""
    query = (
        select(TaskInstance.run_id, HITLDetail.created_at, HITLDetail.assignees)
        .join(TaskInstance, HITLDetail.ti_id == TaskInstance.id)
        .where(
            TaskInstance.dag_id == access.PROMOTE, TaskInstance.state.in_(WAITING), HITLDetail.responded_at.is_(None)
        )
        .order_by(HITLDetail.created_at.desc())
    )
    requests = []
    for run_id, created, assignees in session.execute(query):
        assigned = [str(one["id"]) for one in assignees or ()]
        asked = returned(session, access.PROMOTE, run_id, "prepare").get("prepare")
        if asked:
            requests.append(
                {
                    "version": asked["version"],
                    "since": created.isoformat(),
                    "void": why_void(state, asked["version"], asked["champion"], asked.get("models")),
                    "may": access.may_answer(user, assigned),
                    "assigned": assigned,
                    "page": f"{links.BASE}/dags/{access.PROMOTE}/runs/{run_id}/tasks/approve/required_actions",
                }
            )
    return requests
