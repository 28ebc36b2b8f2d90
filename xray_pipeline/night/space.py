"""How much the store, MLflow's artifacts and the cache hold, by kind.

Counted anew each time, for a few seconds at most, the small kinds first: of what is larger than can be listed in that
time it says so, and gives what it saw.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from xray_pipeline.base.errors import RegistryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, open_store
from xray_pipeline.training.mlflow_files import place_of

SECONDS = 3.0
KINDS = {
    "candidates": ("candidates",),
    "reports": ("reports",),
    "predictions": ("predictions", "stress"),
    "records": ("ledger", "evidence", "nights", "scores", "suspects", "tidied", "asked-again", "erased"),
    "deliveries' results": ("intake",),
    "dataset": ("dataset",),
}
"""The store's prefixes by what they are in a sentence; the one without an end is last."""


def used(settings: Settings) -> str:
    """Return files and megabytes by kind, in a sentence. Raises StorageUnavailable."""
    store, until = open_store(settings.store, settings), time.monotonic() + SECONDS
    parts = [
        _counted(kind, (entry for prefix in prefixes for entry in store.list(prefix)), until)
        for kind, prefixes in KINDS.items()
    ]
    try:
        place = place_of(settings)
    except RegistryError:  # the part `registry` tells of that
        place = ""
    if place:
        parts.append(_counted("MLflow's artifacts", open_store(place, settings).list(), until + SECONDS))
    else:
        parts.append("MLflow's artifacts: its server alone can count them")
    parts.append(_counted("cache", open_store(settings.cache).list(), until + 2 * SECONDS))
    return "; ".join(parts)


def _counted(kind: str, entries: Iterable[Entry], until: float) -> str:
    count = size = 0
    for entry in entries:
        count, size = count + 1, size + entry.size
        if not count % 1000 and time.monotonic() > until:
            return f"{kind}: more than {size / 1e6:,.1f} MB in {count:,} files"
    return f"{kind}: {size / 1e6:,.1f} MB in {count:,} files"
