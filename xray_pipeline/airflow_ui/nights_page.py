"""The page *Nights*: what each night did, in one line, and a year of them as charts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Query
from fastapi.responses import HTMLResponse

from xray_pipeline.airflow_ui import charts, drawing, links
from xray_pipeline.base.errors import StorageUnavailable, XrayError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.night import nights
from xray_pipeline.night.nights import Night

if TYPE_CHECKING:
    from xray_pipeline.night.watching import Watched

log = logging.getLogger(__name__)

SPANS = (30, 90, 365)


def show(
    span: Annotated[Literal["30", "90", "365"], Query()] = "30",
    before: Annotated[str | None, Query(pattern=r"^[0-9T:.+-]{19,32}$")] = None,
) -> HTMLResponse:
    """Show `span` nights that began before a moment (default: the newest), with charts of them."""
    settings = Settings()
    try:
        past = nights.read(open_store(settings.store, settings))
    except StorageUnavailable as error:
        return drawing.page("notice.html.j2", 503, title="The nights can't be read", text=str(error))
    wanted = [night for night in past.nights if not before or night.started < before]
    shown = wanted[: int(span)]
    watched = _watched(settings) if shown else None
    record = [charts.of_record(watched, int(span))] if watched and watched.champion else []
    return drawing.page(
        "nights.html.j2",
        name=settings.model_name,
        alarm=watched.alarm if watched else "",
        champion=links.HISTORY,
        damaged=past.damaged,
        spans=SPANS,
        span=int(span),
        before=before,
        older=shown[-1].started if len(wanted) > len(shown) else "",
        charts=[*record, *charts.of_nights(shown)] if shown else [],
        rows=[_row(night) for night in shown],
    )


def _watched(settings: Settings) -> Watched | None:
    """Return the champion's record, None where it can't be read: `xray watch` says why."""
    from xray_pipeline.night import watching
    from xray_pipeline.night.run import Run

    try:
        return watching.watched(Run(settings))
    except XrayError as error:
        log.warning("the champion's record is not drawn: %s", error)
        return None


def _row(night: Night) -> dict[str, Any]:
    run = f"{links.BASE}/dags/xray_retrain/runs/{quote(night.run)}" if night.run else ""
    report = f"{links.PAGES}/runs/xray_retrain/{quote(night.run)}" if night.run and night.verdict else ""
    kind = nights.outcome(night)
    words, minutes = nights.in_words(night).removeprefix(f"{kind} "), sum(night.minutes.values())
    shown = {"kind": kind, "words": words, "minutes": minutes}
    return {"night": night, **shown, "page": run, "report": report}
