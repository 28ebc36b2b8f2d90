"""The commit of a delivery: judged once more against the dataset of this moment where that is another than the check's,
stored, and given the next place."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from xray_pipeline.base.errors import (
    AccessDenied,
    DatasetError,
    DeliveryError,
    RadiographDamaged,
    RadiographError,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.records import digest_of
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.commits import state_of
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.revisions import WITHDRAWN
from xray_pipeline.dataset.store import Dataset, Manifest
from xray_pipeline.images.raster import Limits
from xray_pipeline.intake.conflicts import mark_conflicts
from xray_pipeline.intake.scan import reread
from xray_pipeline.intake.verdicts import Intake

log = logging.getLogger(__name__)


def commit(dataset: Dataset, intake: Intake, progress: Progress | None = None) -> Manifest:
    """Store a fit delivery's radiographs and its manifest. Repeating it changes nothing.

    Deliveries are checked side by side, so the table is judged again whenever another delivery took the place in the
    order that this one was judged for. Raises DeliveryError when a file changed or went away since the check, or a file
    that was withdrawn then no longer is, DatasetError when the dataset was made with other settings.
    """
    key = intake.delivery.key
    if not intake.fit:
        raise DatasetError(f"delivery {key} was rejected; it can't be committed")
    dataset.begin()
    again = False
    while True:
        commits = dataset.finish()
        if any(earlier.manifest == key for earlier in commits):
            log.info("delivery %s is committed", key)
            break
        table = intake.table
        # Of a later part the check looked at files that are judged anew here.
        if intake.judged_after != state_of(commits) or not commits or intake.delivery.part > 1:
            history = dataset.history().without(intake.delivery.name, set(intake.table["file"]))
            _check_withdrawn(intake, history)
            table = mark_conflicts(intake.table, history, dataset.settings, intake.delivery.name)
        _store_radiographs(dataset, intake, table, progress)
        facts = {"delivery": intake.delivery.name, "fingerprint": intake.delivery.fingerprint}
        dataset.thumbnails.keep(table)
        data = to_parquet(table.assign(thumbnail=""), {**facts, "labels": intake.labels})
        if dataset.append(key, data, len(commits)):
            dataset.thumbnails.see(digest_of(data), table["thumbnail"].tolist())
            break
        log.info("there is another commit meanwhile; judging %s against it", key)
        again = True
    for trace in dataset.traces() if again else ():  # of what was erased after it was stored
        trace.remove(dataset.store)
    return dataset.described(key)


def _check_withdrawn(intake: Intake, history: History) -> None:
    """Raise DeliveryError where a file was withdrawn when it was checked, and by other amendments may not be now: what
    it shows was not kept, so that it can't be judged by that."""
    out = intake.table[intake.table["reason"] == WITHDRAWN]
    if intake.amended in ("", history.amended.digest()) or history.amended.by(out, intake.delivery.name).all():
        return
    raise DeliveryError(
        f"{len(out)} files of delivery {intake.delivery.key} were withdrawn when it was checked, and amendments were "
        f"made or undone since; run it again: it is judged anew"
    )


def _store_radiographs(dataset: Dataset, intake: Intake, table: pd.DataFrame, progress: Progress | None) -> None:
    settings = dataset.settings
    delivery, rules = open_store(intake.delivery.uri, settings), Limits.of(settings.rules)
    accepted = table[table["verdict"] == "accepted"]

    def changed(row: Any, how: str) -> DeliveryError:
        where = f"row {row.Index} of delivery {intake.delivery.key}"
        return DeliveryError(f"{where} {how} between check and commit; run it again: it is judged anew")

    def store(row: Any) -> None:
        try:
            dataset.read(row.digest, row.suffix)
        except RadiographDamaged as error:
            log.debug("to be stored: %s", error)
        else:
            return
        try:
            normalised = reread(delivery, row.file, rules, row.bits)
        except (StorageError, RadiographError) as error:
            if isinstance(error, StorageUnavailable) and not isinstance(error, AccessDenied):
                raise  # the store's fault, not this file's
            raise changed(row, f"became unreadable ({type(error).__name__})") from None
        if normalised.digest != row.digest:
            raise changed(row, "changed")
        dataset.put(row.digest, row.suffix, normalised.data)

    with ThreadPoolExecutor(settings.workers or os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(store, accepted.itertuples()), 1):
            if progress:
                progress(done, len(accepted), f"storing {intake.delivery.key}")
