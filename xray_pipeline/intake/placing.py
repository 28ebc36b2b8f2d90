"""What a delivery says of its files: by a table of labels where there is one, else by its folders.

Whose word counts, the first that there is: the delivery's own labels.toml; XRAY_LABELS, when the table that it names
lies in the delivery; labels.csv; class folders; XRAY_LABELS with a table beside all deliveries. A table outside a
delivery is read anew for each check of one.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from xray_pipeline.base.errors import AccessDenied, DeliveryError, StorageError, StorageUnavailable
from xray_pipeline.base.records import canonical, digest_of
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, Store, open_store, reader
from xray_pipeline.dataset.split import patient_hash
from xray_pipeline.intake import label_table
from xray_pipeline.intake.label_mapping import LABELS, LABELS_CSV, LABELS_TOML, LabelMapping, named, of_delivery
from xray_pipeline.intake.label_table import BETWEEN, LEFT_OUT, LabelTable
from xray_pipeline.intake.layout import (
    LITTER,
    Place,
    against_folder,
    bookkeeping,
    by_folder,
    class_named,
    out,
    side_named,
)
from xray_pipeline.intake.matching import match, mismatches, stem

log = logging.getLogger(__name__)

_MOST_BYTES: Final = 32_000_000  # of a table that only a delivery answers for; a mapped one has up to two million rows
_MOST_MAPPED: Final = 500_000_000  # of one that XRAY_LABELS names
NO_LABEL: Final = "unlabelled"
"""The reason of a file of which its label table says nothing yet."""


@dataclass
class Said:
    """What a delivery says of each file by key, the sorted names of files that it names but does not hold, and what is
    odd about its table, in sentences; `table` is there where a table says it.

    `unmatched` are the keys, as they are written, of files that the table does not have.
    """

    places: dict[str, Place]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: LabelTable | None = None
    unmatched: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def by_content(self) -> LabelTable | None:
        """The table, where what DICOM says of a file is looked up in it."""
        return self.table if self.table and self.table.mapping.key.by not in ("path", "name") else None

    def of_content(self, file: str, values: Sequence[str], hashed: Callable[[Sequence[str]], str]) -> Place:
        """Return the place of a file that DICOM says these values of; called by many threads at once."""
        assert self.table is not None
        key = self.table.mapping.key
        if key.by == "patient-and-date":
            values = [values[0], label_table.day(values[1])]
        named_by = hashed(values) if all(values) else ""
        place = self.table.places.get(named_by)
        if place is None:
            self.unmatched.append(BETWEEN.join(values))
            place = self.places[file]
        return place._replace(named_by=named_by)

    def summary(self, reasons: Any) -> dict[str, Any]:
        """Return how a table fits the rows of an intake table, by their `reasons`; {} without one."""
        if self.table is None:
            return {}
        mapping, none, files = self.table.mapping, int((reasons == NO_LABEL).sum()), int((reasons != LITTER).sum())
        known = self.table.keys if self.by_content else self.asked
        return {
            "mapping": mapping.name,
            "outside": mapping.outside,
            "tables": [place.rpartition("/")[2] for place in self.table.tables],
            "digest": self.table.digest,
            "rows": self.table.rows,
            "key": mapping.key.by,
            "matched": files - none,
            "left_out": int((reasons == LEFT_OUT).sum()),
            "unlabelled": none,
            "mismatches": mismatches(self.unmatched, known),
        }


def briefly(summary: Mapping[str, Any]) -> str:
    """Say which tables name how many files, and by what; "" for a delivery that says its classes by itself."""
    if not summary or summary["mapping"] == LABELS:
        return ""
    tables, files = " and ".join(summary["tables"]), summary["matched"] + summary["unlabelled"]
    return f"{tables} (SHA-256 {summary['digest'][:12]}), {summary['matched']:,} of {files:,} files by {summary['key']}"


def in_words(summary: dict[str, Any]) -> str:
    """Say in a sentence or two how a mapped table fits a delivery."""
    said = (
        f"Labels by {summary['mapping']}: {summary['rows']:,} rows of {' and '.join(summary['tables'])} (SHA-256 "
        f"{summary['digest'][:12]}), {summary['matched']:,} files matched by {summary['key']}, of which "
        f"{summary['left_out']:,} are left out; {summary['unlabelled']:,} have no label yet."
    )
    if summary["mismatches"]:
        said += f" Of these a row would fit {', '.join(summary['mismatches'])}; none is taken for it: write both alike."
    return said


class Source:
    """Where a delivery and its tables lie; `where` names it in messages."""

    def __init__(self, store: Store, settings: Settings, patient_key: bytes, where: str) -> None:
        self.store, self.settings, self.where, self._patient_key = store, settings, where, patient_key

    def hashed(self, values: Sequence[str]) -> str:
        """Return the keyed hash of what DICOM and a table call a file: all that is kept of it."""
        return patient_hash(self._patient_key, f"table:{BETWEEN.join(values)}")

    def mapping(self, entries: Sequence[Entry]) -> LabelMapping | None:
        """Return the mapping whose word counts for a delivery with these entries, None for its folders.

        Raises ConfigError, DeliveryError, StorageError.
        """
        classes, keys = self.settings.classes, {entry.key for entry in entries}
        if LABELS_TOML in keys:
            return of_delivery(self._read(LABELS_TOML, entries, _MOST_BYTES), classes, self.where)
        ours = named(self.settings.labels, classes) if self.settings.labels else None
        if ours and not ours.outside and any(_find(place, entries) for place in ours.table):
            return ours
        if LABELS in keys:
            return LABELS_CSV
        return ours if ours and ours.outside and not _has_class_folders(keys, classes) else None

    def tables(self, mapping: LabelMapping, entries: Sequence[Entry]) -> dict[str, bytes]:
        """Return the tables that there are, by their places in the mapping. Raises DeliveryError, StorageError."""
        if mapping.outside:
            return {place: self.beside(place) for place in mapping.tables}
        most = _MOST_BYTES if mapping.name in (LABELS, LABELS_TOML) else _MOST_MAPPED
        there = {place: key for place in mapping.tables if (key := _find(place, entries))}
        absent = [join.table for join in mapping.join if join.table not in there]
        if absent or not any(place in there for place in mapping.table):
            lacks = absent or [" or ".join(mapping.table)]
            raise DeliveryError(f"{self.where} has no {lacks[0]}, which {mapping.name} reads labels from")
        return {place: self._read(key, entries, most) for place, key in there.items()}

    def _read(self, key: str, entries: Sequence[Entry], most: int) -> bytes:
        entry = next(entry for entry in entries if entry.key == key)
        name = key.rpartition("/")[2]
        if entry.kind != "file":
            raise DeliveryError(f"{name} of {self.where} is not a regular file; links are never followed")
        if entry.size > most:
            raise DeliveryError(
                f"{name} of {self.where} has {entry.size:,} bytes, {most:,} are allowed; split the delivery"
            )
        try:
            return self.store.read(key)
        except AccessDenied as error:
            raise DeliveryError(f"no permission to read {name} of {self.where}") from error

    def beside(self, place: str) -> bytes:
        """Return a table that lies outside the delivery. Raises DeliveryError, StorageUnavailable."""
        try:
            data = reader(self.settings)(_resolved(place, self.store.uri.rstrip("/").rpartition("/")[0]))
        except (StorageError, OSError) as error:
            raise StorageUnavailable(f"the label table that XRAY_LABELS names can't be read: {error}") from error
        if len(data) > _MOST_MAPPED:
            raise DeliveryError(f"the label table that XRAY_LABELS names has {len(data):,} bytes; split it")
        return data


def version_outside(settings: Settings) -> str:
    """Return the SHA-256 of the tables that XRAY_LABELS names outside deliveries, "" for none and while they can't be
    read. Raises ConfigError."""
    mapping = named(settings.labels, settings.classes) if settings.labels else None
    if mapping is None or not mapping.outside:
        return ""
    source = Source(open_store(settings.incoming, settings).child("any"), settings, b"", "")
    try:
        tables = [digest_of(source.beside(place)) for place in mapping.tables]
    except (StorageUnavailable, DeliveryError) as error:
        log.warning("%s", error)
        return ""
    return digest_of(canonical([mapping.digest(), tables]))


def listed_outside(settings: Settings) -> list[tuple[str, int, str]]:
    """Return place, size and version of the tables that XRAY_LABELS names outside deliveries, none of them read.

    Raises ConfigError, StorageUnavailable.
    """
    mapping = named(settings.labels, settings.classes) if settings.labels else None
    found = []
    for place in mapping.tables if mapping and mapping.outside else ():
        whole = _resolved(place, settings.incoming)
        if "://" in whole:
            folder, _, name = whole.rpartition("/")
            entries = open_store(folder, settings).list()
            found += [(place, entry.size, entry.version) for entry in entries if entry.key == name]
        else:
            with contextlib.suppress(OSError):
                info = Path(whole).expanduser().stat()
                found.append((place, info.st_size, str(info.st_mtime_ns)))
    return found


def _resolved(place: str, incoming: str) -> str:
    """Return the whole place of a table that lies outside deliveries."""
    return f"{incoming.rstrip('/')}/{place.removeprefix('../')}" if place.startswith("../") else place


def _find(place: str, entries: Sequence[Entry]) -> str:
    """Return the key of a table of a delivery: as it is named, else the only file of that name; "" for none."""
    name = place.rpartition("/")[2]
    named_so = [entry.key for entry in entries if entry.key.rpartition("/")[2] == name]
    return place if place in named_so else named_so[0] if len(named_so) == 1 else ""


def _has_class_folders(keys: Collection[str], classes: Sequence[str]) -> bool:
    for key in keys:
        folders = key.split("/")[:-1]
        if folders and side_named(folders[0]) is not None:
            folders = folders[1:]
        if folders and class_named(folders[0], classes):
            return True
    return False


def places(source: Source, entries: Sequence[Entry]) -> Said:
    """Return what a delivery says of its files; `entries` lists all of it. Raises DeliveryError, StorageError."""
    classes, where = source.settings.classes, source.where
    mapping = source.mapping(entries)
    no_files = bookkeeping(entries, bool(source.settings.labels))
    gone = {entry.key: place for entry in entries if (place := out(entry))}
    files = [entry.key for entry in entries if entry.key not in no_files and entry.key not in gone]
    if mapping is None:
        return Said((by_folder(files, entries, classes, where) if files else {}) | gone)
    known = {entry.key for entry in entries}
    table = label_table.read(mapping, source.tables(mapping, entries), classes, where, known, source.hashed)
    absent = Place(reason=NO_LABEL, detail="the label table says no class of it yet")
    if mapping.strict:
        absent = Place(reason="not-listed", detail=f"not in {LABELS}")
    said = Said(dict.fromkeys(files, absent) | gone, notes=table.notes, table=table)
    if not said.by_content:
        found = _by_pattern(table, files) if mapping.key.pattern else _by_name(table, files, known, said, where)
        name = mapping.table[0].rpartition("/")[2]
        said.places |= {file: against_folder(file, place, classes, name) for file, place in found.items()}
    return said


def _by_pattern(table: LabelTable, files: Sequence[str]) -> dict[str, Place]:
    """Return the places of files by what a regular expression finds in their paths."""
    pattern, found = re.compile(table.mapping.key.pattern), {}
    for file in files:
        if (fit := pattern.search(file)) and (place := table.places.get(BETWEEN.join(fit.groups(default="")))):
            found[file] = place
    return found


def _by_name(
    table: LabelTable, files: Sequence[str], known: Collection[str], said: Said, where: str
) -> dict[str, Place]:
    """Return the places of files by path or name, and note in `said` what is missing and what was read otherwise."""
    listed, mapping = table.places, table.mapping
    name = mapping.table[0].rpartition("/")[2]
    file_of = {file: file for file in files}
    if mapping.key.by == "name":
        bare = not any(stem(one) != one for one in listed)
        file_of = _of_names(files, bare, listed, name, where)
        known = file_of.keys()
    names = [one for one in listed if one not in known]
    left = [one for one in file_of if one not in listed]
    alone = bool(listed) and len(names) == len(listed)
    renamed, taken = match(names, left, alone, name, where)
    if mapping.strict and alone and not renamed and files:
        raise DeliveryError(
            f"none of the {len(listed):,} names in {LABELS} of {where} is one of its {len(files):,} files; write each "
            f"path as it is inside the delivery, with / and without the folders of another machine"
        )
    said.notes += taken
    if mapping.strict:
        said.missing = sorted(one for one in names if one not in renamed)
    else:
        fitted = set(renamed.values())
        said.unmatched = [one for one in left if one not in fitted]
        said.asked = [one for one in names if one not in renamed] if said.unmatched else []
    as_named = {one: listed[one] for one in file_of if one in listed}
    as_named |= {one: listed[other] for other, one in renamed.items()}
    return {file_of[one]: place for one, place in as_named.items()}


def _of_names(files: Sequence[str], bare: bool, listed: Collection[str], name: str, where: str) -> dict[str, str]:
    """Return the file of each name, without extensions when `bare`. Raises DeliveryError where several have a name that
    is listed."""
    file_of: dict[str, str] = {}
    twice = 0
    for file in files:
        one = file.rpartition("/")[2]
        one = stem(one) if bare else one
        twice += one in file_of and one in listed
        file_of.setdefault(one, file)
    if twice:
        raise DeliveryError(
            f"{twice:,} files of {where} have the name of another one, and {name} says which class a name has; leave "
            f"one of each, or map by path"
        )
    return file_of
