"""What a process of Airflow remembers of the store between two looks at it: the API server for its pages, the triggerer
for the requests that wait."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.intake import alarms
from xray_pipeline.registry.ledger import Ledger

if TYPE_CHECKING:
    from xray_pipeline.dataset.commits import Commits
    from xray_pipeline.dataset.store import Dataset
    from xray_pipeline.night.review import Overview

_one_at_a_time = threading.Lock()
"""Commits are read on where the last look ended, and a cold look reads every manifest: by one thread of the server."""
_seen: dict[tuple[str, str], bool] = {}


@functools.lru_cache(maxsize=1)
def ledger(store: str) -> Ledger:
    """Open one ledger a process: it keeps the entries that it has read."""
    return Ledger(open_store(store, Settings()))


def alarmed(store: Store) -> list[str]:
    """Return the keys of all deliveries that ever raised a drift alarm, as `alarms.raised` does."""
    return alarms.raised(store, _seen)


def dataset(settings: Settings) -> Dataset:
    """Open the dataset with the commits that this process has read: only newer ones are still to be read."""
    from xray_pipeline.dataset.store import Dataset

    return Dataset(settings, commits=_commits(settings.store))


def overview(settings: Settings) -> Overview:
    """Return what the dataset holds now. Raises DatasetError."""
    with _one_at_a_time:
        return _overview(settings.store, _commits(settings.store).head())


@functools.lru_cache(maxsize=1)
def _commits(store: str) -> Commits:
    """Open the commits of one dataset a process: it keeps those that it has read."""
    from xray_pipeline.dataset.store import Dataset

    return Dataset(Settings(store=store)).commits


@functools.lru_cache(maxsize=1)
def _overview(store: str, head: str) -> Overview:
    """Look once for each state of the dataset (its newest commit): it reads every manifest."""
    from xray_pipeline.night import review

    return review.overview(dataset(Settings(store=store)))
