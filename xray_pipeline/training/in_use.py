"""Who works on a candidate, and who takes it away: each says so first and looks then, so one always sees the other.

candidates/<digest>/used       written by whoever begins to work on it; another content each time
candidates/<digest>/leaving    written by `xray tidy` before it removes anything, deleted when all is removed
"""

from __future__ import annotations

import uuid

from xray_pipeline.base.storage import Store

USED, LEAVING = "used", "leaving"


def take_up(store: Store, candidate: str) -> bool:
    """Say that a candidate is worked on; return whether it stays: False for one that is being taken away.

    Raises StorageUnavailable.
    """
    _folder(store, candidate).write(USED, uuid.uuid4().hex.encode())
    return not leaves(store, candidate)


def take_away(store: Store, candidate: str, seen: str) -> bool:
    """Say that a candidate is taken away; return whether nobody has taken it up since a listing that had `seen`.

    `seen` is the version of its `used`, "" without one. Where somebody has, it stays. Raises StorageUnavailable.
    """
    _folder(store, candidate).write(LEAVING, b"see xray tidy")
    if next((entry.version for entry in _folder(store, candidate).list() if entry.key == USED), "") == seen:
        return True
    stays(store, candidate)
    return False


def leaves(store: Store, candidate: str) -> bool:
    """Return whether somebody said that a candidate is taken away. Raises StorageUnavailable."""
    return _folder(store, candidate).exists(LEAVING)


def stays(store: Store, candidate: str) -> None:
    """Say that a candidate is not taken away after all. Raises StorageUnavailable."""
    _folder(store, candidate).delete(LEAVING)


def gone(store: Store, candidate: str) -> None:
    """Say that all that was to go of a candidate is gone. Raises StorageUnavailable."""
    for name in (USED, LEAVING):
        _folder(store, candidate).delete(name)


def _folder(store: Store, candidate: str) -> Store:
    return store.child(f"candidates/{candidate}")
