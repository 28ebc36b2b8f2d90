"""The page *Deliveries*: all that were judged, and one of them with what a person can do about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import HTTPException, Path, Query, Response
from fastapi.responses import HTMLResponse

from xray_pipeline.airflow_ui import access, drawing, links, memory
from xray_pipeline.base import records
from xray_pipeline.base.errors import DatasetError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.intake import alarms
from xray_pipeline.intake.places import PAGE, VERDICT, intake_key, judged

ROWS = 50

Key = Annotated[str, Path(max_length=250)]


def show(first: Annotated[int, Query(ge=0, le=99_999_999)] = 0) -> HTMLResponse:
    """Show deliveries from place `first` on: those that wait, then the committed ones, the newest first."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        committed = _committed(settings)
        keys = [*sorted(judged(store) - set(committed)), *reversed(committed)]
        rows = _rows(store, keys[first : first + ROWS], set(committed))
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
        if key not in judged(store) and key not in committed:
            raise HTTPException(404, "there is no such delivery")
        [row] = _rows(store, [key], committed)
        return drawing.page(
            "delivery.html.j2",
            row=row,
            settled=alarms.acknowledgements(store, [key]),
            intake=f"{links.PAGES}/deliveries/{quote(key, safe='')}/intake",
            airflow=links.delivery_page(key),
            may=access.may_start(user, access.DELIVERY),
        )
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title=f"Delivery {key} can't be read", text=str(error))


def show_intake(key: Key) -> Response:
    """Show the page that the intake made of a delivery."""
    settings = Settings()
    store = open_store(settings.store, settings)
    try:
        if key in judged(store):  # what a user names is no path
            return drawing.kept(store.read(intake_key(key, PAGE)))
    except ObjectNotFound:
        pass
    except StorageUnavailable as error:
        raise HTTPException(503, "the store did not answer") from error
    raise HTTPException(404, "there is no such page")


def _committed(settings: Settings) -> list[str]:
    """Return the keys of the committed deliveries, oldest first."""
    from xray_pipeline.dataset.store import Dataset

    return [commit.manifest for commit in Dataset(settings).commits.manifests()]


def _rows(store: Store, keys: Sequence[str], committed: Collection[str]) -> list[dict[str, Any]]:
    """Return what is shown of some deliveries, in their order."""
    alarmed = set(memory.alarmed(store))
    return [
        {
            "key": key,
            "place": quote(key, safe=""),
            "alarms": alarms.of_delivery(store, key) if key in alarmed else (),
            **_told(verdict, key in committed),
        }
        for key, verdict in zip(keys, _verdicts(store, keys), strict=True)
    ]


def _verdicts(store: Store, keys: Sequence[str]) -> list[dict[str, Any] | str]:
    """Return the verdict on each delivery, or why there is none."""
    names = [intake_key(key, VERDICT) for key in keys]
    try:
        contents: list[bytes | None] = list(records.read_all(store, names))
    except ObjectNotFound:  # one of them is being judged
        contents = [_read(store, name) for name in names]
    return [_opened(data, name) for data, name in zip(contents, names, strict=True)]


def _read(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name)
    except ObjectNotFound:
        return None


def _opened(data: bytes | None, name: str) -> dict[str, Any] | str:
    if data is None:
        return ""
    try:
        return records.opened(data, dict[str, Any], name)
    except DatasetError as error:
        return str(error)


def _told(verdict: dict[str, Any] | str, committed: bool) -> dict[str, Any]:
    """Return state, counts and reasons of a delivery."""
    if isinstance(verdict, str):
        state = "committed" if committed else "damaged" if verdict else "being judged"
        why = verdict or ("" if committed else "The page of an earlier check is shown until this one has ended.")
        return {"state": state, "accepted": 0, "quarantined": {}, "why": why, "warnings": []}
    state = "committed" if committed else "fit, waits for the next night" if verdict["fit"] else "rejected"
    accepted = verdict["accepted"] if verdict["fit"] else 0
    said = {name: verdict[name] for name in ("quarantined", "why", "warnings")}
    return {"state": state, "accepted": accepted, **said}
