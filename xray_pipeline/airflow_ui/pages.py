"""The pages of the Airflow plugin, as an application of the API server.

Each address asks for Airflow's own login and for leave to read the DAG it tells of. What a user names (a run, a
candidate) is matched against a pattern and looked up in Airflow's database or the store by its exact key; it is never
part of a path to a file otherwise. Pages load nothing: a strict content security policy says so to the browser.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any, Literal

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dagrun import DagRun
from airflow.utils.state import DagRunState
from fastapi import Depends, FastAPI, HTTPException, Path, Request, Response
from sqlalchemy import select

from xray_pipeline.airflow_ui import access, champion_page, deliveries_page, drawing, links, nights_page, review_page
from xray_pipeline.airflow_ui.returned import returned
from xray_pipeline.base.errors import ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Against = Annotated[str, Path(pattern=r"^(none|[1-9][0-9]{0,8})$")]
Name = Annotated[str, Path(max_length=250, pattern=r"^[\w.~:+-]+$")]


def application() -> FastAPI:
    """Return the application, to be mounted at `links.PREFIX`."""
    app = FastAPI(title="xray-retrain", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(_headers)
    app.get("/champion", dependencies=[Depends(access.CAN_READ_PROMOTIONS), Depends(access.CAN_READ_NIGHT)])(
        champion_page.show
    )
    app.get("/nights", dependencies=[Depends(access.CAN_READ_NIGHT)])(nights_page.show)
    app.get("/deliveries", dependencies=[Depends(access.CAN_READ_NIGHT)])(deliveries_page.show)
    app.get("/deliveries/{key}", dependencies=[Depends(access.CAN_READ_NIGHT)])(deliveries_page.show_one)
    app.get("/deliveries/{key}/intake", dependencies=[Depends(access.CAN_READ_NIGHT)])(deliveries_page.show_intake)
    for path, shows in review_page.ADDRESSES.items():
        app.get(path, dependencies=[Depends(access.CAN_REVIEW)])(shows)
    app.get("/{name}.js", dependencies=[Depends(access.CAN_READ_NIGHT)])(script)
    app.get("/reports/{candidate}/{against}", dependencies=[Depends(access.CAN_READ_NIGHT)])(report)
    app.get("/runs/{dag_id}/{run_id}", dependencies=[Depends(access.CAN_READ_RUN)])(run_report)
    return app


async def _headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", f"{drawing.COMMON}; sandbox")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


def script(name: Literal["page", "review"]) -> Response:
    """Give the component that shows a page inside Airflow's own, or what else the page Review needs."""
    text = (files("xray_pipeline.airflow_ui") / "templates" / f"{name}.js").read_text(encoding="utf-8")
    return Response(text, media_type="text/javascript")


def report(candidate: Digest, against: Against) -> Response:
    """Show the report on a candidate against a champion (its version, or `none`)."""
    return _report(candidate, None if against == "none" else int(against))


def run_report(dag_id: Name, run_id: Name, session: SessionDep) -> Response:
    """Show the report of a DAG run, or say why it has none."""
    said = returned(session, dag_id, run_id, "decide", "prepare", "conclude", "compare")
    about = said.get("compare") or said.get("decide") or said.get("prepare") or {}
    if links.DIGEST.fullmatch(str(about.get("candidate", ""))):
        return _report(about["candidate"], about["champion"], about.get("snapshot"))
    state = session.scalar(select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if state in (DagRunState.RUNNING, DagRunState.QUEUED):
        why = "It is written once the candidate has been scored; this page is made anew each time you open it."
        return drawing.page("notice.html.j2", 200, title="No report yet: the run goes on", text=why)
    why = (said.get("conclude") or {}).get("message") or "The run ended before a candidate was scored."
    return drawing.page("notice.html.j2", 200, title="This run has no report", text=why)


def _report(candidate: str, against: int | None, snapshot: str | None = None) -> Response:
    """Give the report on a pair as it was decided, or the one on the held-out radiographs of a snapshot."""
    from xray_pipeline.registry import tidied
    from xray_pipeline.report.places import comparison_key, report_key

    settings = Settings()
    store = open_store(settings.store, settings)
    key = report_key(candidate, against)
    if against is not None and snapshot is not None and links.DIGEST.fullmatch(snapshot):
        key = comparison_key(candidate, against, snapshot)
    try:
        content = store.read(key)
    except ObjectNotFound as error:
        if removals := tidied.of_candidate(store, candidate):
            return drawing.page("notice.html.j2", 410, title="This report was removed", text=removals[-1].sentence())
        raise HTTPException(404, "there is no such report") from error
    except StorageUnavailable as error:
        raise HTTPException(503, "the store did not answer") from error
    return drawing.kept(content)
