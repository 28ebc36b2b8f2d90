"""Labels that come after their files: what waited for one is judged once its table has it, also nights later.

A file whose delivery is committed and of which its table said no class, or one that is left out, waits. When the table
changes it is read again, and what it now gives a class is judged as if it were new: an addition to its delivery. What
has a label already is never changed so: a table that says another class of it than the dataset proposes a relabelling.

    intake/label-tables/looked.json     by delivery: its tables as they were when they were last read, what they propose

It follows from dataset and tables, and may be deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Final

import pandas as pd

from xray_pipeline.base import records
from xray_pipeline.base.errors import ConfigError, Damaged, DeliveryError, ObjectNotFound, StorageError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, Store, open_store
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.revisions import File, files_of, in_force, part_of
from xray_pipeline.intake.label_mapping import named
from xray_pipeline.intake.label_table import LEFT_OUT
from xray_pipeline.intake.layout import SUCCESS, Place, bookkeeping, escape, unescape
from xray_pipeline.intake.places import intake_key
from xray_pipeline.intake.placing import NO_LABEL, Said, Source, places, version_outside

log = logging.getLogger(__name__)

WAITING: Final = ("not-listed", NO_LABEL, LEFT_OUT)
"""Reasons of files that wait for their table."""
_LOOKED: Final = intake_key("label-tables", "looked.json")


@dataclass(frozen=True)
class Proposal:
    """A relabelling that a table proposes: of a radiograph (its digest, and its row in a manifest), from the label that
    stands to the one that the table says."""

    radiograph: str
    manifest: str
    row: int
    label: str
    says: str


@dataclass(frozen=True)
class _Looked:
    """What was found when the tables of deliveries were last read: their versions, and what they propose."""

    tables: dict[str, str] = field(default_factory=dict)
    proposed: dict[str, list[Proposal]] = field(default_factory=dict)


def proposals(store: Store, history: History) -> list[Proposal]:
    """Return the relabellings that tables propose and nobody has made, by manifest and row. Raises DatasetError,
    StorageUnavailable."""
    found = [one for some in _looked(store).proposed.values() for one in some]
    open_ones = [one for one in found if history.labels(one.radiograph) == one.label]
    return sorted(open_ones, key=lambda one: (one.manifest, one.row))


def _looked(store: Store) -> _Looked:
    try:
        return records.read(store, _LOOKED, _Looked)
    except (ObjectNotFound, Damaged):
        return _Looked()


class Late:
    """Looks for late labels while deliveries are found; `reopen` is for `deliveries.Reading`."""

    def __init__(
        self, settings: Settings, history: History, patient_key: bytes, read: Callable[[str], pd.DataFrame]
    ) -> None:
        """`read` gives a manifest's table by its key."""
        self._settings, self._key = settings, patient_key
        self._store = open_store(settings.store, settings)
        self._before = _looked(self._store)
        self._now = _Looked(dict(self._before.tables), dict(self._before.proposed))
        self._read, self._keys = read, dict[str, list[str]]()
        for key in history.rows.parts:
            self._keys.setdefault(part_of(key)[0], []).append(key)
        self._outside = version_outside(settings)
        mapping = named(settings.labels, settings.classes) if settings.labels else None
        self._mapping = mapping.digest() if mapping else ""

    def reopen(self, history: History, name: str, store: Store, entries: Sequence[Entry]) -> History:
        """Return the history in which what waited for a label, and has one now, was never judged.

        A table that can't be read is for the check to tell of. Raises StorageUnavailable.
        """
        if name not in self._keys:
            return history
        kept = bookkeeping(entries, bool(self._settings.labels)) - {SUCCESS}
        if not (kept or self._outside):
            return history
        versions = sorted((entry.key, entry.size, entry.version) for entry in entries if entry.key in kept)
        version = records.digest_of(records.canonical([versions, self._outside, self._mapping, len(self._keys[name])]))
        if self._before.tables.get(name) == version:
            return history
        source = Source(store, self._settings, self._key, f"delivery {name}")
        try:
            found = places(source, entries)
        except (DeliveryError, ConfigError, StorageError) as error:
            log.warning("late labels of delivery %s are not looked for: %s", name, error)
            return history
        given = _Given(found, {(escape(entry.key), entry.size, entry.version) for entry in entries})
        tables = {key: self._read(key) for key in self._keys[name]} if found.table else {}
        self._now.proposed[name] = given.other_classes(tables, history)
        files = given.of_waiting(tables)
        if not files:
            self._now.tables[name] = version
        return history.without(name, files)

    def keep(self) -> None:
        """Keep what was found, when all deliveries were looked at. Raises StorageUnavailable."""
        if self._now != self._before:
            records.write(self._store, _LOOKED, asdict(self._now))
        for name, found in self._now.proposed.items():
            if found:
                log.warning(
                    "the label table of delivery %s says another class of %d radiographs than the dataset; nothing is "
                    "changed: `xray amend proposed` lists them",
                    name,
                    len(found),
                )


class _Given:
    """What a table gives to rows of manifests; `listed` is what lies in the delivery."""

    def __init__(self, said: Said, listed: Set[File]) -> None:
        self._said, self._listed = said, listed

    def _place(self, file: str, named_by: str) -> Place | None:
        if self._said.by_content:
            return self._said.by_content.places.get(named_by)
        return self._said.places.get(unescape(file))

    def of_waiting(self, tables: Mapping[str, pd.DataFrame]) -> set[str]:
        """Return the paths of files that waited, are still there as they were, and have a class now."""
        stands, found = in_force(tables), set()
        for key, table in tables.items():
            rows = table[stands[key] & table["reason"].isin(WAITING)]
            for file, named_by in zip(files_of(rows), rows["named_by"], strict=True):
                if file in self._listed and (place := self._place(file[0], named_by)) and place.label:
                    found.add(file[0])
        return found

    def other_classes(self, tables: Mapping[str, pd.DataFrame], history: History) -> list[Proposal]:
        """Return what the table says otherwise than the dataset."""
        found = []
        for key, table in tables.items():
            rows = table[table["verdict"] == "accepted"]
            for row, file, named_by, digest in rows[["file", "named_by", "digest"]].itertuples(name=None):
                place, label = self._place(file, named_by), history.labels(digest)
                if place and not place.reason and label and place.label != label:
                    found.append(Proposal(digest, key, int(row), label, place.label))
        return found
