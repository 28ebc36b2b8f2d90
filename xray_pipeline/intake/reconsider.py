"""Judging anew what was quarantined, after a rule changed or a wrong copy was deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from xray_pipeline.base.errors import DatasetError, DeliveryError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.erasing import hidden
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.parquet import accounting
from xray_pipeline.dataset.revisions import CONFLICT, File, files_of, in_force, part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import Row, by_file, of_rows
from xray_pipeline.intake import alarms, deliveries, verdicts
from xray_pipeline.intake.alarms import Terms
from xray_pipeline.intake.check import check
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.deliveries import Delivery, Inventory, Reading, listing
from xray_pipeline.intake.drift import MOST_KNOWN
from xray_pipeline.intake.layout import escape, is_litter
from xray_pipeline.intake.rules import judging_digest

log = logging.getLogger(__name__)


def rejudge(settings: Settings, name: str, progress: Progress | None = None, holds_up: bool = False) -> dict[str, Any]:
    """Judge the quarantined files of a committed delivery anew, under the rules and the dataset of now.

    What is accepted now becomes an addition to the delivery with a manifest of its own, and so does what ends a
    label conflict: a file of it that is out for another reason now, or gone from the delivery. The manifests there are
    stay as they are, and what else is quarantined stays there. New files of the delivery are left to the next night and
    decide nothing here. `holds_up` is as in `alarms.Terms`.
    Returns key ("" when nothing changed), judged, accepted, gone, quarantined (counts by reason), fit and why: a
    delivery whose folder is gone changes nothing. Raises DeliveryError when the delivery was never committed or can't
    be judged as a whole, DatasetError, StorageError.
    """
    dataset = Dataset(settings)
    dataset.finish()
    tables = {key: dataset.manifest(key) for key in dataset.manifests() if part_of(key)[0] == name}
    if not tables:
        raise DeliveryError(f"no delivery {name} is committed; `xray check` judges one that waits")
    outcome = {"key": "", "judged": 0, "accepted": 0, "gone": 0, "quarantined": {}, "fit": True, "why": ""}
    nothing = f"nothing in delivery {name} is quarantined and still there"
    delivery = _find(settings, name)
    if delivery is None:
        return {**outcome, "why": nothing}
    listed = {(escape(e.key), e.size, e.version) for e in listing(open_store(delivery.uri, settings))}
    waiting = _waiting(tables)
    delivery, judged, amended = _judged(settings, dataset, delivery, waiting, listed, progress)
    taken = judged[judged["verdict"] == "accepted"].reset_index(drop=True)
    ended, gone = _out_of_conflict(judged, waiting), _gone(waiting, listed)
    still = accounting(judged[judged["verdict"] != "accepted"])
    outcome |= {"judged": len(judged), "gone": len(gone), "quarantined": still}
    if not (len(taken) or len(ended) or len(gone)):
        return {**outcome, "why": "every one of them is quarantined again" if len(judged) else nothing}
    table = by_file(taken, ended, gone)
    addition = replace(delivery, part=len(tables) + 1, files=len(table), bytes=int(table["size"].sum()))
    return {**outcome, **_commit(settings, dataset, addition, table, amended, progress, holds_up)}


def _waiting(tables: Mapping[str, Any]) -> dict[File, str]:
    """Return the files of one delivery whose quarantine stands, litter and what was erased aside, with its reason."""
    stands, waiting = in_force(tables), dict[File, str]()
    for key, table in tables.items():
        out = table[stands[key] & (table["verdict"] != "accepted") & ~hidden(table["file"])]
        waiting |= {file: why for file, why in zip(files_of(out), out["reason"], strict=True) if not is_litter(file[0])}
    return waiting


def _judged(
    settings: Settings,
    dataset: Dataset,
    delivery: Delivery,
    waiting: Mapping[File, str],
    listed: Set[File],
    progress: Progress | None,
) -> tuple[Delivery, Any, str]:
    """Judge what waits and is still there; return it as a delivery, the given one when there is nothing, its table, and
    the digest of what amendments said.

    To what is not in the dataset yet nothing is compared: a verdict that follows from it could never be undone.
    """
    if not listed & waiting.keys():
        return delivery, of_rows(()), ""
    history = dataset.history().without(delivery.name, {file[0] for file in waiting}, listed - waiting.keys())
    delivery = deliveries.at(delivery.uri, settings, history, time.time())
    table = check(delivery, settings, history, dataset.patient_key(), progress).table
    return delivery, table[[file in waiting for file in files_of(table)]], history.amended.digest()


def _out_of_conflict(judged: Any, waiting: Mapping[File, str]) -> Any:
    """Return the rows that are still out, but no longer for the label conflict that their path is in."""
    disputed = {file[0] for file, reason in waiting.items() if reason == CONFLICT}
    # Only what was read, or that labels.csv no longer names, can end a conflict: not a file that can't be opened.
    known = (judged["digest"] != "") | judged["reason"].isin(["not-listed", "unlabelled"])
    out = (judged["verdict"] != "accepted") & (judged["reason"] != CONFLICT)
    return judged[judged["file"].isin(disputed) & known & out]


def _gone(waiting: Mapping[File, str], listed: Set[File]) -> Any:
    """Return one row for each path in a label conflict at which nothing is any more."""
    there = {file[0] for file in listed}
    gone = {file[0]: file for file, reason in waiting.items() if reason == CONFLICT and file[0] not in there}
    detail = "gone from the delivery; it was in a label conflict"
    return of_rows(Row(*file, reason="vanished", detail=detail) for file in gone.values())


def _commit(
    settings: Settings,
    dataset: Dataset,
    addition: Delivery,
    table: Any,
    amended: str,
    progress: Progress | None,
    holds_up: bool,
) -> dict[str, Any]:
    """Commit an addition unless what is accepted in it is unfit; return what changes in the outcome of `rejudge`."""
    store, key = open_store(settings.store, settings), addition.key
    taken = table[table["verdict"] == "accepted"].reset_index(drop=True)
    intake = verdicts.Intake(addition, table, True, (), {}, "", amended=amended)
    if len(taken):
        terms = Terms(alarms.acknowledged(store, key, addition.fingerprint), holds_up)
        inventory = Inventory(addition, taken, dataset.history().reference(MOST_KNOWN))
        intake = replace(verdicts.judge(inventory, settings, terms), table=table, amended=amended)
        alarms.keep(store, key, addition.fingerprint, intake.drift)
        if not intake.fit:
            return {"fit": False, "why": " ".join(intake.failures)}
    verdicts.keep(store, intake, verdicts.MadeBy(judging_digest(settings, dataset.patient_key()), "", ""))
    manifest = commit(dataset, intake, progress)
    if set(files_of(dataset.manifest(key))) != set(files_of(table)):
        raise DatasetError(f"part {key} of delivery {addition.name} was committed by another run; run it again")
    log.info(
        "delivery %s: %d files accepted, %d no longer in a label conflict", key, len(taken), len(table) - len(taken)
    )
    gone = int((table["reason"] == "vanished").sum())
    why = f"{gone} in a label conflict are gone from the delivery and no longer count" if gone else ""
    return {"key": key, "accepted": manifest.accepted, "why": why}


def _find(settings: Settings, name: str) -> Any:
    incoming = open_store(settings.incoming, settings)
    reading = Reading(settings.classes, bool(settings.labels))
    waiting = deliveries.find(incoming, EMPTY, settings.settle_seconds, time.time(), reading, [])
    return next((delivery for delivery in waiting if delivery.name == name), None)
