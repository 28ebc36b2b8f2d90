"""The page *Review*: radiographs to look at, one by one, with what the models say of them and what a person can do.

It names no file and no patient. Whoever Airflow lets read xray_amend sees radiographs; whoever it lets start that DAG
finds the forms, which start it as that person.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dagrun import DagRun
from fastapi import HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from xray_pipeline.airflow_ui import access, drawing, links, review_pictures
from xray_pipeline.airflow_ui.shelf import Digest, Key, Row, Shelf, Tab
from xray_pipeline.base.errors import DatasetError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings

if TYPE_CHECKING:
    from xray_pipeline.night.review import Explained, Material, Overview

TABS: dict[Tab, str] = {
    "suspects": "Suspects",
    "disagreements": "Disagreements",
    "to-label": "Next to label",
    "quarantine": "Quarantine",
    "amendments": "Amendments",
}
CARDS, RUNS = 48, 300
"""Radiographs on a page; runs of xray_amend, the newest, that are looked at for what was asked."""

First = Annotated[int, Query(ge=0, le=99_999_999)]


def show(
    session: SessionDep,
    user: GetUserDep,
    tab: Tab = "suspects",
    first: First = 0,
    delivery: Annotated[str, Query(max_length=250)] = "",
    reason: Annotated[str, Query(max_length=60)] = "",
) -> HTMLResponse:
    """Show one tab from place `first` on; of the quarantine one delivery and reason when they are named."""
    try:
        about = Shelf(Settings())
        shown: dict[str, Any] = {"tab": tab, "tabs": TABS, "first": first, "at": links.PLACE, "cards": CARDS}
        if tab == "quarantine":
            shown |= _quarantine(about, delivery, reason, first)
        elif tab == "to-label":
            shown |= _to_label(about, first)
        elif tab == "amendments":
            shown |= {"amendments": _amendments(about), "asked": _asked(session, about)}
        else:
            shown |= _cards(about, tab, first, _asked(session, about))
        shown |= {"material": about.material, "may": access.may_start(user, access.AMEND)}
        return drawing.page("review.html.j2", **shown)
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="There is nothing to review that can be read", text=str(error))


def show_one(digest: Digest, session: SessionDep, user: GetUserDep, tab: Tab = "suspects") -> HTMLResponse:
    """Show one radiograph in full, as a part of a tab's list."""
    settings = Settings()
    try:
        about = Shelf(settings)
        radiographs = about.overview.radiographs
        held = radiographs.loc[digest] if digest in radiographs.index else None
        amended = [one for one in _amendments(about) if digest in one["radiographs"]]
        if held is None and not amended:
            raise HTTPException(404, "there is no such radiograph")
        order = about.order(tab)
        explained = about.explained(digest)
        return drawing.page(
            "review_one.html.j2",
            digest=digest,
            tab=tab,
            of=TABS[tab],
            at=links.PLACE,
            label=held["label"] if held is not None else "",
            side=held["side"] if held is not None else "",
            suspicions=about.suspicions(digest),
            opinions=_opinions(about.material, explained),
            alike=_alike(about.overview, explained),
            amended=amended,
            reading=about.readings([digest]).get(digest),
            asked=[one for one in _asked(session, about) if one["subject"] == digest],
            classes=[name for name in settings.classes if held is not None and name != held["label"]],
            around=_around(order, digest),
            may=access.may_start(user, access.AMEND),
            airflow=f"{links.BASE}/dags/{access.AMEND}",
        )
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="This radiograph can't be shown", text=str(error))


def show_file(key: Key, row: Row) -> HTMLResponse:
    """Show one quarantined file: in full where it was read before and its delivery can be read from here."""
    from xray_pipeline.dataset.fingerprints import picture_of
    from xray_pipeline.intake.rules import QUARANTINED
    from xray_pipeline.night import review

    try:
        about = Shelf(Settings())
        if key not in about.kept_out:  # what a user names is no path
            raise HTTPException(404, "there is no such delivery")
        out = review.kept_out(about.dataset, key)
        if row not in out.index:
            raise HTTPException(404, "there is no such file")
        reason = out.at[row, "reason"]
        rows = out[out["reason"] == reason]
        places = [f"files/{quote(key, safe='')}/{other}" for other in rows.index]
        around = _around(places, f"files/{quote(key, safe='')}/{row}")
        ranked = about.to_label().get((key, row))
        return drawing.page(
            "review_file.html.j2",
            key=key,
            row=row,
            reason=reason,
            detail=rows.at[row, "detail"],
            rule=QUARANTINED[reason],
            thumbnail=review.picture(about.dataset, rows.loc[row]) or picture_of(ranked.thumbnail if ranked else ""),
            around=around,
            place=quote(key, safe=""),
            at=links.PLACE,
        )
    except ObjectNotFound as error:
        raise HTTPException(404, "there is no such file") from error
    except (DatasetError, StorageUnavailable) as error:
        return drawing.page("notice.html.j2", 503, title="This file can't be shown", text=str(error))


ADDRESSES: dict[str, Callable[..., Response]] = {
    "/review": show,
    "/review/{digest}": show_one,
    "/review/pictures/{digest}": review_pictures.of_radiograph,
    "/review/files/{key}/{row}": show_file,
    "/review/files/{key}/{row}/picture": review_pictures.of_file,
}


def _cards(about: Shelf, tab: Tab, first: int, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the radiographs of a tab, each with its label, why it is there, and what was asked for of it."""
    order, labels = about.order(tab), about.overview.radiographs["label"]
    why = {one.digest: one for one in reversed(about.suspects())} if tab == "suspects" else {}
    newest = {one["subject"]: one for one in reversed(asked)}
    page = order[first : first + CARDS]
    said = about.readings(page)
    shown = [
        {
            "digest": digest,
            "label": labels[digest],
            "suspect": why.get(digest),
            "explained": about.explained(digest),
            "asked": newest.get(digest),
            "differ": digest in said and not said[digest].label,
        }
        for digest in page
    ]
    return {"radiographs": shown, "count": len(order)}


def _quarantine(about: Shelf, delivery: str, reason: str, first: int) -> dict[str, Any]:
    """Return how many files are out by delivery and reason, and those of one of each with their thumbnails."""
    from xray_pipeline.intake.rules import QUARANTINED
    from xray_pipeline.night import review

    counts = about.kept_out
    if reason not in counts.get(delivery, {}):
        return {"deliveries": counts, "rules": QUARANTINED, "files": None}
    out = review.kept_out(about.dataset, delivery)
    rows = out[out["reason"] == reason]
    files = [
        {"row": int(row), "detail": rows.at[row, "detail"], "picture": review.picture(about.dataset, rows.loc[row])}
        for row in rows.index[first : first + CARDS]
    ]
    of = {"delivery": delivery, "place": quote(delivery, safe=""), "reason": reason, "rule": QUARANTINED[reason]}
    return {"files": files, "count": len(rows), **of}


def _to_label(about: Shelf, first: int) -> dict[str, Any]:
    """Return unlabelled files with their thumbnails, and the labels that people gave them meanwhile."""
    from xray_pipeline.dataset.fingerprints import picture_of
    from xray_pipeline.intake.labelled import Labels

    ranked, labels = list(about.to_label().values()), Labels(about.store)
    files = [
        {
            **{"file": one, "place": quote(one.delivery, safe=""), "picture": picture_of(one.thumbnail)},
            "label": labels.of(one.source_digest),
        }
        for one in ranked[first : first + CARDS]
    ]
    return {"files": files, "count": len(ranked)}


def _amendments(about: Shelf) -> list[dict[str, Any]]:
    """Return all amendments, newest first, without what names a patient, each with the radiographs it holds for."""
    from xray_pipeline.dataset.amendments import standing

    amendments = about.dataset.commits.amendments()
    stand = standing(amendments)
    return [
        {
            **{"number": number, "who": one.who, "at": one.at, "why": one.why},
            "stands": number in stand,
            "changes": [
                {
                    **{"action": change.action, "subject": change.subject, "label": change.label},
                    "name": "" if change.subject == "patient" else change.name,
                    "count": len(change.radiographs),
                }
                for change in one.changes
            ],
            "radiographs": {digest for change in one.changes for digest in change.radiographs},
        }
        for number, one in sorted(amendments.items(), reverse=True)
    ]


def told(action: str, subject: str, deliveries: Collection[str]) -> str:
    """Return what a form named where that is a radiograph's digest, a row of a delivery or one of `deliveries` (keys),
    or the number of an amendment to be undone; else "": it may be a patient's id, typed by mistake."""
    key, _, row = subject.rpartition("/")
    of_delivery = subject in deliveries or (key in deliveries and row.isdecimal())
    number = action == "undo" and subject.isdecimal()
    return subject if of_delivery or number or re.fullmatch("[0-9a-f]{64}", subject) else ""


def _asked(session: Session, about: Shelf) -> list[dict[str, Any]]:
    """Return what the newest runs of xray_amend were asked for, the newest first."""
    columns = (DagRun.run_id, DagRun.state, DagRun.conf, DagRun.triggering_user_name, DagRun.run_after)
    query = select(*columns).where(DagRun.dag_id == access.AMEND).order_by(DagRun.run_after.desc()).limit(RUNS)
    found = []
    for run_id, state, conf, who, at in session.execute(query):
        conf = conf or {}
        found.append(
            {
                **{name: str(conf.get(name, "")) for name in ("action", "label", "reason")},
                "subject": told(str(conf.get("action")), str(conf.get("subject")), about.overview.quarantined),
                "state": {"success": "done", "failed": "failed"}.get(str(state), "asked for"),
                "who": who or "unknown",
                "at": at.isoformat(),
                "page": f"{links.BASE}/dags/{access.AMEND}/runs/{quote(run_id)}",
            }
        )
    return found


def _opinions(drawn: Material | None, explained: Explained | None) -> list[dict[str, Any]]:
    if drawn is None or explained is None:
        return []
    names = {"candidate": "Candidate", "champion": f"Champion, version {drawn.champion}"}
    said = {"candidate": explained.candidate, "champion": explained.champion}
    return [
        {
            **{"of": who, "name": names[who], "label": one.label, "map": bool(one.map)},
            "probabilities": list(zip(drawn.classes, one.probabilities, strict=True)),
        }
        for who, one in said.items()
        if one is not None
    ]


def _alike(now: Overview, explained: Explained | None) -> list[dict[str, str]]:
    """Return the radiographs most alike with the labels they have now; what is withdrawn by now is left out."""
    there = [digest for digest in explained.alike if digest in now.radiographs.index] if explained else []
    return [{"digest": digest, "label": now.radiographs.at[digest, "label"]} for digest in there]


def _around(order: Sequence[str], one: str) -> dict[str, Any]:
    """Return what comes before and after one of a list; the first for one that is no longer on it."""
    if one not in order:
        return {"before": "", "after": order[0] if order else "", "place": 0, "count": len(order)}
    at = order.index(one)
    after = order[at + 1] if at + 1 < len(order) else ""
    return {"before": order[at - 1] if at else "", "after": after, "place": at + 1, "count": len(order)}
