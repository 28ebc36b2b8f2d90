"""Incoming folders: which are deliveries, which have settled, and what is new in them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd

from xray_pipeline.base.errors import DeliveryError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import CLOSED, Entry, Store, open_store
from xray_pipeline.dataset.history import History, Reference, Seen
from xray_pipeline.images.radiograph import ENDINGS
from xray_pipeline.intake.label_mapping import LABELS, LABELS_TOML, TABLES
from xray_pipeline.intake.layout import BOOKKEEPING, SUCCESS, bookkeeping, class_named, escape, is_litter, side_named

log = logging.getLogger(__name__)


def listing(store: Store, *, itself: bool = True) -> list[Entry]:
    """Return all that a delivery holds; what can't be looked at is an entry of its own ("closed"), whose name ends with
    a slash when it is a folder. `itself` says that this may be the delivery's own folder, then `./`.

    Raises StorageError.
    """
    try:
        return list(store.list())
    except StorageUnavailable as error:
        if not _of_one_folder(error):
            raise
    try:
        return list(store.list(closed=True))
    except StorageUnavailable as error:
        if not (itself and _of_one_folder(error)):
            raise
        return [Entry("./", 0, "", 0.0, "closed")]


def _of_one_folder(error: StorageUnavailable) -> bool:
    """Whether a listing failed for what one folder is, and not because the store did not answer."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in CLOSED


@dataclass(frozen=True)
class Delivery:
    """One incoming folder, or what was added to it since an earlier part of it was committed.

    `part` is 1 for the first and counts additions up; `files` and `bytes` count what is new; `fingerprint` is the
    SHA-256 of the sorted listing of this part; `settled` says that it is complete; `changed` is when it last changed,
    in Unix seconds, 0 when that is not known.
    """

    name: str
    uri: str
    part: int
    files: int
    bytes: int
    fingerprint: str
    settled: bool
    changed: float = 0.0

    @property
    def key(self) -> str:
        """The name of this part's manifest."""
        return self.name if self.part == 1 else f"{self.name}+{self.part}"


def _as_it_is(history: History, name: str, store: Store, entries: Sequence[Entry]) -> History:
    return history


@dataclass(frozen=True)
class Reading:
    """How folders are told to be deliveries, and what of them is new.

    `classes` help to tell; `mapped` says that XRAY_LABELS is set, so that tables are no files; `reopen` returns the
    history of a delivery without what is to be judged anew of it.
    """

    classes: Sequence[str] = ()
    mapped: bool = False
    reopen: Callable[[History, str, Store, Sequence[Entry]], History] = _as_it_is


@dataclass(frozen=True)
class Inventory:
    """What a delivery was found to hold: `table` has a `Row` for each file, `bookkeeping` names the files that need
    none (labels.csv, _SUCCESS), and `notes` say in sentences what is odd about it. `reference` is of the dataset
    (`History.reference`), and `labels` is how a mapped table fits (`Said.summary`)."""

    delivery: Delivery
    table: pd.DataFrame
    reference: Reference
    bookkeeping: Sequence[str] = ()
    notes: Sequence[str] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)


def find(
    incoming: Store,
    history: History,
    settle_seconds: float,
    now: float,
    reading: Reading = Reading(),
    left_out: list[str] | None = None,
    entries: Iterable[Entry] | None = None,
) -> list[Delivery]:
    """Return the deliveries under `incoming` that hold files the dataset has not seen, sorted by name; `entries` are
    a listing of it, which is made where none is given.

    A delivery is settled when it carries `_SUCCESS` or nothing in it was modified for `settle_seconds` before `now`
    (Unix seconds). What lies beside deliveries and is none is left out, with a warning, or with a sentence in
    `left_out`. Raises DeliveryError when `incoming` itself looks like a delivery and nothing in it does,
    StorageUnavailable.
    """
    classes, mapped = reading.classes, reading.mapped
    listings, loose, unsafe = _by_folder(listing(incoming, itself=False) if entries is None else entries)
    loose = [entry for entry in loose if not (mapped and entry.key.lower().endswith(TABLES))]  # may be the tables
    parts = sorted(folder for folder in listings if _is_part(folder, classes))
    whole = {folder: entries for folder, entries in listings.items() if folder not in parts}
    if not any(_is_laid_out(entries, classes) for entries in whole.values()):
        _check_not_a_delivery(incoming.uri, loose, parts)
    beside = [f"{incoming.uri}: {text}" for text in _left_out(loose, parts, unsafe)]
    new = []
    for folder, entries in whole.items():
        store = incoming.child(folder)
        past = reading.reopen(history, _safe_name(folder), store, entries)
        delivery = _describe(folder, store.uri, entries, past, settle_seconds, now, mapped)
        if delivery is not None:
            new.append(delivery)
        elif not _content(entries, mapped) and not history.seen(_safe_name(folder))[0]:
            beside.append(f"delivery {_safe_name(folder)} holds no file to check, only bookkeeping or litter")
    if left_out is None:
        for text in beside:
            log.warning("%s", text)
    else:
        left_out += beside
    return sorted(new, key=lambda delivery: delivery.name)


def _by_folder(entries: Iterable[Entry]) -> tuple[dict[str, list[Entry]], list[Entry], int]:
    """Return what lies in each folder, litter aside, what lies in none, and how many objects have no safe folder."""
    listings: dict[str, list[Entry]] = {}
    loose: list[Entry] = []
    unsafe = 0
    for entry in entries:
        folder, slash, key = entry.key.partition("/")
        if not slash:
            loose.append(entry)
        elif folder in ("", ".", ".."):
            unsafe += 1
        elif not is_litter(f"{folder}/"):
            listings.setdefault(folder, []).append(replace(entry, key=key or "./"))
    return listings, loose, unsafe


def _is_part(folder: str, classes: Sequence[str]) -> bool:
    """Whether a folder is named as one inside a delivery is."""
    return side_named(folder) is not None or class_named(folder, classes) is not None


def _is_laid_out(entries: Sequence[Entry], classes: Sequence[str]) -> bool:
    """Whether a folder with these files is a delivery, by its layout."""
    return any(
        e.key in (LABELS, LABELS_TOML) or ("/" in e.key and _is_part(e.key.partition("/")[0], classes)) for e in entries
    )


def _content(entries: Sequence[Entry], mapped: bool) -> list[Entry]:
    no_files = bookkeeping(entries, mapped)
    return [entry for entry in entries if entry.key not in no_files and not is_litter(entry.key)]


_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _is_of_a_delivery(loose: Entry) -> bool:
    return loose.key in BOOKKEEPING or loose.key.lower().endswith(ENDINGS)


def _check_not_a_delivery(uri: str, loose: list[Entry], parts: list[str]) -> None:
    if parts:
        raise DeliveryError(
            f"{uri} holds the folder {parts[0]!r} and so looks like a delivery itself; point at its parent"
        )
    if any(map(_is_of_a_delivery, loose)):
        raise DeliveryError(f"{uri} holds files and so looks like a delivery itself; point at its parent")


def _left_out(loose: list[Entry], parts: list[str], unsafe: int) -> Iterator[str]:
    """Say what lies beside the deliveries and is none, without its name where that may be a patient's."""
    if unsafe:
        yield f"{unsafe} objects are left out, as the name of their folder is no path ('//', '.' or '..'); rename it"
    for folder in parts:
        yield f"the folder {folder!r} is named like a part of a delivery and is left out; if it is one, rename it"
    if count := sum(map(_is_of_a_delivery, loose)):
        yield f"{count} files lie beside the deliveries and are left out; put them into a delivery's folder"
    if count := sum(entry.key.lower().endswith(_ARCHIVES) for entry in loose):
        yield f"{count} archives are left out, as none is ever unpacked; deliver what is in them as a folder"
    if any(entry.kind == "symlink" for entry in loose):
        yield "a symbolic link is left out; links are never followed, deliver a real folder"


def folder_of(incoming: Store, name: str) -> Store | None:
    """Return the folder of the delivery `name` without listing any other, None when there is none."""
    folder = unquote(name)
    if _safe_name(folder) != name:  # shortened, or no UTF-8
        folder = next((other for other in incoming.folders() if _safe_name(other) == name), "")
    return incoming.child(folder) if folder else None


def at(uri: str, settings: Settings, history: History, now: float) -> Delivery:
    """Return the delivery in one folder or s3:// prefix, wherever it lies.

    Raises DeliveryError without new files and for what is no folder, StorageUnavailable.
    """
    store = open_store(uri, settings)
    folder = store.uri.rstrip("/").rpartition("/")[2]
    try:
        entries = listing(store)
    except ObjectNotFound as error:
        raise DeliveryError(f"{store.uri} is a file; a delivery is a folder, name that") from error
    delivery = _describe(folder, store.uri, entries, history, settings.settle_seconds, now, bool(settings.labels))
    if delivery is None:
        known = "it is empty; does it exist?"
        if entries:
            known = "it has only bookkeeping or litter, no file to judge"
        if _content(entries, bool(settings.labels)):
            known = "every file in it is in the dataset already"
        raise DeliveryError(f"{store.uri} holds nothing to check: {known}")
    return delivery


def _describe(
    folder: str,
    uri: str,
    entries: list[Entry],
    history: History,
    settle_seconds: float,
    now: float,
    mapped: bool,
) -> Delivery | None:
    name = _safe_name(folder)
    parts, seen = history.seen(name)
    new = unseen(entries, seen, mapped)
    if all(is_litter(entry.key) for entry in new):
        return None
    size = sum(entry.size for entry in new)
    changed = _last_change(entries, now)
    settled = now - changed >= settle_seconds or _is_marked(entries, parts, changed)
    return Delivery(name, uri, parts + 1, len(new), size, fingerprint_of(new, entries, mapped), settled, changed)


def unseen(entries: list[Entry], seen: Seen, mapped: bool) -> list[Entry]:
    """Return the files of a delivery that are none of those `seen` before, bookkeeping left out."""
    no_files = bookkeeping(entries, mapped)
    files = (entry for entry in entries if entry.key not in no_files)
    return [entry for entry in files if (escape(entry.key), entry.size, entry.version) not in seen]


def fingerprint_of(new: list[Entry], entries: list[Entry], mapped: bool) -> str:
    """Return the SHA-256 of the listing of what is new in a delivery, and of its tables of labels."""
    tables = bookkeeping(entries, mapped) - {SUCCESS}
    counted = [*new, *(entry for entry in entries if entry.key in tables)]
    lines = sorted(json.dumps([escape(entry.key), entry.size, entry.version, entry.kind]) for entry in counted)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _last_change(entries: list[Entry], now: float) -> float:
    """Return when a delivery last changed; 0 when all its files are dated ahead, by a clock that can't be believed."""
    # What lies days ahead is left out file by file: it must not keep a delivery out forever, nor hide what is copied.
    return max((e.modified for e in entries if e.key != SUCCESS and e.modified < now + 86_400), default=0.0)


def _is_marked(entries: list[Entry], parts: int, changed: float) -> bool:
    # The first part's marker says nothing of an addition.
    return any(parts == 0 or entry.modified >= changed for entry in entries if entry.key == SUCCESS)


_UNSAFE = re.compile(r"[\x00-\x1f\x7f%+\\/]")


def _safe_name(folder: str) -> str:
    """Return a folder's name as it can stand in keys: no control characters, no `+` (it counts parts), 160 bytes."""
    raw = os.fsencode(folder)
    try:
        name = _UNSAFE.sub(lambda unsafe: quote(unsafe[0], safe=""), raw.decode())
    except UnicodeDecodeError:
        name = quote(raw)
    if len(name.encode()) <= 160:
        return name
    return f"{name.encode()[:140].decode(errors='ignore')}~{hashlib.sha256(raw).hexdigest()[:16]}"
