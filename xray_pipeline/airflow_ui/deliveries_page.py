"""The page *Deliveries*: all that were judged, and one of them with what a person can do about it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import HTTPException, Path, Query, Response
from fastapi.responses import HTMLResponse

from xray_pipeline.airflow_ui import access, drawing, links
from xray_pipeline.base import records
from xray_pipeline.base.errors import DatasetError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.intake import alarms

ROWS = 50
VERDICT, PAGE = "checked.json", "page.html"

Key = Annotated[str, Path(max_length=250)]


def show(first: Annotated[int, Query(ge=0, le=99_999_999)] = 0) -> HTMLResponse:
    """Show deliveries from place `first` on: those that wait, then the committed ones, the newest first."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        committed, judged = _committed(settings), _judged(store)
        keys = [*sorted(judged - set(committed)), *reversed(committed)]
        rows = [_row(store, key, key in committed) for key in keys[first : first + ROWS]]
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="The deliveries can't be read", text=str(error))
    return drawing.page(
        "deliveries.html.j2",
        rows=rows,
        count=len(keys),
        first=first,
        next=first + ROWS if first + ROWS < len(keys) else None,
    )


def show_one(key: Key, user: GetUserDep) -> HTMLResponse:
    """Show one delivery: its state, its alarms, the forms of who may do something about it, and the intake's page."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        committed = _committed(settings)
        if key not in _judged(store) and key not in committed:
            raise HTTPException(404, "there is no such delivery")
        return drawing.page(
            "delivery.html.j2",
            row=_row(store, key, key in committed),
            settled=alarms.acknowledgements(store, [key]),
            intake=f"{links.BASE}{links.PREFIX}/deliveries/{quote(key, safe='')}/intake",
            airflow=f"{links.DELIVERIES}#{quote(key, safe='')}",
            may=access.may_start(user, access.DELIVERY),
        )
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title=f"Delivery {key} can't be read", text=str(error))


def show_intake(key: Key) -> Response:
    """Show the page that the intake made of a delivery."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        if key in _judged(store):
            return drawing.kept(store.read(f"intake/{key}/{PAGE}"))
    except ObjectNotFound:
        pass
    except StorageUnavailable as error:
        raise HTTPException(503, "the store did not answer") from error
    raise HTTPException(404, "there is no such page")


def _judged(store: Store) -> set[str]:
    """Return the keys of the deliveries that have a verdict; what a user names is looked up among them."""
    return {entry.key.split("/")[1] for entry in store.list("intake") if entry.key.endswith(f"/{VERDICT}")}


def _committed(settings: Settings) -> list[str]:
    """Return the keys of the committed deliveries, oldest first."""
    from xray_pipeline.dataset.store import Dataset

    return [commit.manifest for commit in Dataset(settings).commits.read()]


def _row(store: Store, key: str, committed: bool) -> dict[str, Any]:
    try:
        verdict = records.read(store, f"intake/{key}/{VERDICT}", dict[str, Any])
    except (ObjectNotFound, DatasetError) as error:
        verdict = {"fit": committed, "accepted": 0, "quarantined": {}, "why": str(error), "warnings": []}
    state = "committed" if committed else "fit, waits for the next night" if verdict["fit"] else "rejected"
    return {
        "key": key,
        "place": quote(key, safe=""),
        "state": state,
        "accepted": verdict["accepted"] if verdict["fit"] else 0,
        "quarantined": verdict["quarantined"],
        "why": verdict["why"],
        "warnings": verdict["warnings"],
        "alarms": alarms.of_delivery(store, key),
    }
