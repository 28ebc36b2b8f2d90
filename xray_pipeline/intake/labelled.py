"""Labels that people gave to files of which their delivery says no class.

A delivery is read-only to us, so what people say of its files is kept beside it: `labelled/<SHA-256 of the file>.json`,
found whenever the file is judged, wherever it lies. What the delivery itself says of a file comes first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

from xray_pipeline.base import records
from xray_pipeline.base.errors import ObjectNotFound
from xray_pipeline.base.storage import Store

UNLABELLED: Final = ("no-class", "not-listed", "unlabelled")
"""Reasons of files of which their delivery says no class."""
_FOLDER: Final = "labelled"


@dataclass(frozen=True)
class Given:
    """The class of one file, who brought it, when (ISO 8601) and why."""

    label: str
    who: str
    at: str
    why: str


def give(store: Store, source_digest: str, given: Given) -> None:
    """Keep the label of a file, by its SHA-256, in place of an earlier one. Raises StorageUnavailable."""
    records.write(store, f"{_FOLDER}/{source_digest}.json", asdict(given))


def take_back(store: Store, source_digest: str) -> None:
    """Drop the label of a file, by its SHA-256, where it has one. Raises StorageUnavailable."""
    store.delete(f"{_FOLDER}/{source_digest}.json")


def keys(store: Store) -> list[str]:
    """Return the keys of all labels that people gave. Raises StorageUnavailable."""
    return [entry.key for entry in store.list(_FOLDER)]


def source_of(key: str) -> str:
    """Return the SHA-256 of the file that the label at a key is of."""
    return key.rpartition("/")[2].removesuffix(".json")


class Labels:
    """The labels that people gave, looked up one by one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def any(self) -> bool:
        """Whether there is one at all: without one, no file needs to be read for it."""
        return next(iter(self._store.list(_FOLDER)), None) is not None

    def digest(self) -> str:
        """Return a digest of all of them, another one whenever somebody gave a label. Raises StorageUnavailable."""
        return records.digest_of(records.canonical([(entry.key, entry.version) for entry in self._store.list(_FOLDER)]))

    def of(self, source_digest: str) -> str:
        """Return the label of a file by its SHA-256, "" without one. Raises DatasetError for a damaged one."""
        try:
            return records.read(self._store, f"{_FOLDER}/{source_digest}.json", Given).label if self.any else ""
        except ObjectNotFound:
            return ""
