"""What this machine keeps in its cache of radiographs that were erased: dropped before the cache is used again."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from typing import Final

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, ObjectNotFound
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset import pixels
from xray_pipeline.dataset.erasing import digests_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import journal

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 2 * 86_400.0
"""How long after an erasure it is looked for again: a process that was running then may leave what it had read."""
NOTE = "erased.json"
"""Names in the cache the newest erasure whose rows were dropped."""


def newest_erasure(dataset: Dataset) -> tuple[int, float]:
    """Return the number of the newest amendment that erases, 0 without one, and its age by the store's clock (seconds).

    Raises DatasetError, StorageUnavailable.
    """
    made = {number: one.at for number, one in dataset.commits.amendments().items() if one.erases}
    if not made:
        return 0, 0.0
    newest = max(made)
    return newest, dataset.store.clock() - datetime.fromisoformat(made[newest]).timestamp()


def drop_erased(dataset: Dataset, again: bool = False) -> int:
    """Drop from this machine's cache what was erased since it was last looked at; return how many files were changed.

    With `again`, and until AGAIN_SECONDS after the erasure, it is looked at in any case: a process that began before
    that may have kept rows meanwhile. Raises DatasetError, StorageUnavailable.
    """
    newest, age = newest_erasure(dataset)
    if not newest:
        return 0
    cache = dataset.settings.cache
    place = open_store(cache)
    try:
        before = records.read(place, NOTE, int)
    except (ObjectNotFound, Damaged):
        before = 0
    if before >= newest and age > AGAIN_SECONDS and not again:
        return 0
    changed = pixels.forget(cache, digests_of(dataset.commits.amendments()))
    for path in (*journal.journals(journal.journals_in(cache)), *dataset.stale_extracts()):
        path.unlink(missing_ok=True)
        changed += 1
    records.write(place, NOTE, newest)
    if changed:
        log.info("dropped from the cache what was erased: %d files", changed)
    return changed


def left(dataset: Dataset) -> list[str]:
    """Return the files of this machine's cache that hold what was erased."""
    erased, cache = dataset.erased(), dataset.settings.cache
    if erased is None:
        return []
    names = [name.encode() for name in erased.digests | erased.patients]
    found = [*pixels.holding(cache, erased.digests), *dataset.stale_extracts()]
    for path in journal.journals(journal.journals_in(cache)):
        with contextlib.suppress(FileNotFoundError):  # its scan has ended well
            told = path.read_bytes()
            found += [path] * any(name in told for name in names)
    return [str(path) for path in found]
