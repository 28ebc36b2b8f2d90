"""One delivery to an intake table: a row per file, each accepted or quarantined with a reason.

A delivery is only listed and read, never changed, and nothing in it is believed: links are not followed, content and
not the name decides a file's format, and what a folder or labels.csv says of a file is checked against what the dataset
knows. Files are read and decoded by a pool of threads; only a row of each is kept, so memory follows the number of
threads and the largest file, plus about 4 kB per file. The trade-off: a file that is accepted is read a second
time when it is committed, which also proves that it did not change in between.

Rows are named by their number in the table, from 0, in order of the file's path: in messages and on the page a path is
never shown, because it may name a patient.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pandas as pd

from xray_pipeline.base.errors import DeliveryError, ObjectNotFound
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, Store, open_store
from xray_pipeline.dataset.table import Row, by_file, of_rows
from xray_pipeline.images import radiograph
from xray_pipeline.images.radiograph import Rule
from xray_pipeline.intake import drift
from xray_pipeline.intake.compare_rows import History, rejudge
from xray_pipeline.intake.drift import Drift
from xray_pipeline.intake.layout import (
    BOOKKEEPING,
    LABELS,
    LITTER,
    SUCCESS,
    class_named,
    escape,
    is_litter,
    places,
    side_named,
)
from xray_pipeline.intake.scan import Progress, Reader, journal_of, listing, scan, still_there

log = logging.getLogger(__name__)

RULES: Final[tuple[Rule, ...]] = (
    *radiograph.RULES,
    Rule("symlink", "quarantined", "symbolic links are never followed"),
    Rule("special-file", "quarantined", "FIFOs, sockets and devices are never opened"),
    Rule(
        LITTER,
        "quarantined",
        "litter, which counts as no file: of operating systems and programs (.DS_Store, Thumbs.db, ._*, hidden "
        "folders, lock and backup files), and README, LICENSE, DICOMDIR and the like beside the classes",
    ),
    Rule(
        "unreadable",
        "quarantined",
        "no permission to read the file or to list the folder, or its name is no safe path or is too long",
    ),
    Rule("vanished", "quarantined", "the file went away during the check, or later, which settled a label conflict"),
    Rule("changed", "quarantined", "the file changed during the check"),
    Rule("no-class", "quarantined", "the file lies outside every class folder"),
    Rule("not-listed", "quarantined", "labels.csv does not name the file"),
    Rule("listed-twice", "quarantined", "labels.csv names the file more than once, with different patients or splits"),
    Rule("missing", "quarantined", "labels.csv names a file that is not in the delivery"),
    Rule(
        "label-conflict",
        "quarantined",
        "the same image, or a near copy of it, has two labels, here or against the dataset: all its copies are out; "
        "or labels.csv gives the file two labels, or another one than the class folder it lies in",
    ),
    Rule("duplicate", "quarantined", "the same image is in the delivery already (first path wins) or in the dataset"),
    Rule("patient-on-two-sides", "quarantined", "the patient is on another side of the split, here or in the dataset"),
    Rule(
        "copy-across-split",
        "quarantined",
        "an exact or near copy (re-encoded, resized, cropped by a few pixels, brighter, darker) is on another side of "
        "the split: the dataset's stays, and in a delivery held-out before validation before train",
    ),
    Rule("no-given-split", "quarantined", "split mode is `given` and nothing says which side the file is on"),
)
_UNREAD: Final = ("unreadable", "vanished", "changed")
_MOST_ABSENT: Final = 10_000  # files that labels.csv names in vain and that get a row, where they reject the delivery
NOT_COUNTED: Final = ("duplicate", LITTER)  # in the share of quarantined files


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


@dataclass(frozen=True)
class Intake:
    """The verdict on one delivery.

    `table` has one `Row` per file, sorted by file; `failures` are the sentences of failed expectations, `warnings` of
    those that don't reject a delivery; `result` is the Great Expectations outcome as JSON-able values; `page` is one
    self-contained HTML page; `drift` is None where it was not measured.
    """

    delivery: Delivery
    table: pd.DataFrame
    fit: bool
    failures: tuple[str, ...]
    result: dict[str, Any]
    page: str
    warnings: tuple[str, ...] = ()
    drift: Drift | None = None


def find(
    incoming: Store,
    history: History,
    settle_seconds: float,
    now: float,
    classes: Sequence[str] = (),
    left_out: list[str] | None = None,
) -> list[Delivery]:
    """Return the deliveries under `incoming` that hold files the dataset has not seen, sorted by name.

    A delivery is settled when it carries `_SUCCESS` or nothing in it was modified for `settle_seconds` before `now`
    (Unix seconds). What lies beside deliveries and is none is left out, with a warning, or with a sentence in
    `left_out`. Raises DeliveryError when `incoming` itself looks like a delivery and nothing in it does; `classes`
    helps to tell.
    """
    listings, loose, unsafe = _by_folder(listing(incoming, itself=False))
    parts = sorted(folder for folder in listings if _is_part(folder, classes))
    whole = {folder: entries for folder, entries in listings.items() if folder not in parts}
    if not any(_is_laid_out(entries, classes) for entries in whole.values()):
        _check_not_a_delivery(incoming.uri, loose, parts)
    beside = [f"{incoming.uri}: {text}" for text in _left_out(loose, parts, unsafe)]
    found = []
    for folder, entries in whole.items():
        delivery = _describe(folder, incoming.child(folder).uri, entries, history, settle_seconds, now)
        if delivery is not None:
            found.append(delivery)
        elif not any(map(_is_content, entries)) and not history.seen(_safe_name(folder))[0]:
            beside.append(f"delivery {_safe_name(folder)} holds no file to check, only bookkeeping or litter")
    if left_out is None:
        for text in beside:
            log.warning("%s", text)
    else:
        left_out += beside
    return sorted(found, key=lambda delivery: delivery.name)


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
    return any(e.key == LABELS or ("/" in e.key and _is_part(e.key.partition("/")[0], classes)) for e in entries)


def _is_content(entry: Entry) -> bool:
    return entry.key not in BOOKKEEPING and not is_litter(entry.key)


_IMAGES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _is_of_a_delivery(loose: Entry) -> bool:
    return loose.key in BOOKKEEPING or loose.key.lower().endswith(_IMAGES)


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
    found = _describe(folder, store.uri, entries, history, settings.settle_seconds, now)
    if found is None:
        known = "it is empty; does it exist?"
        if entries:
            known = "it has only bookkeeping or litter, no file to judge"
        if any(map(_is_content, entries)):
            known = "every file in it is in the dataset already"
        raise DeliveryError(f"{store.uri} holds nothing to check: {known}")
    return found


def _describe(
    folder: str, uri: str, entries: list[Entry], history: History, settle_seconds: float, now: float
) -> Delivery | None:
    name = _safe_name(folder)
    parts, seen = history.seen(name)
    new = _unseen(entries, seen)
    if all(is_litter(entry.key) for entry in new):
        return None
    size = sum(entry.size for entry in new)
    changed = _last_change(entries, now)
    settled = now - changed >= settle_seconds or _is_marked(entries, parts, changed)
    return Delivery(name, uri, parts + 1, len(new), size, _fingerprint(new, entries), settled, changed)


def _unseen(entries: list[Entry], seen: frozenset[tuple[str, int, str]]) -> list[Entry]:
    files = (entry for entry in entries if entry.key not in BOOKKEEPING)
    return [entry for entry in files if (escape(entry.key), entry.size, entry.version) not in seen]


def _fingerprint(new: list[Entry], entries: list[Entry]) -> str:
    counted = [*new, *(entry for entry in entries if entry.key == LABELS)]
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
        name = _UNSAFE.sub(lambda found: quote(found[0], safe=""), raw.decode())
    except UnicodeDecodeError:
        name = quote(raw)
    if len(name.encode()) <= 160:
        return name
    return f"{name.encode()[:140].decode(errors='ignore')}~{hashlib.sha256(raw).hexdigest()[:16]}"


def check(
    delivery: Delivery,
    settings: Settings,
    history: History,
    patient_key: bytes,
    progress: Progress | None = None,
    acknowledged: Collection[str] = (),
    data_docs: Path | None = None,
) -> Intake:
    """Read and judge every new file of a delivery. `acknowledged` names the drift alarms that a person has settled.

    Writes nothing but the journal that the scan of a large delivery keeps in `settings.cache` until it is through, and
    Great Expectations' Data Docs into the folder `data_docs` when that is given.
    Raises DeliveryError when the delivery can't be judged as a whole (unknown class, unreadable labels.csv, changed
    since it was found), StorageError when its store does not answer, ConfigError.
    """
    from xray_pipeline.intake import expectations

    store = open_store(delivery.uri, settings)
    entries = listing(store)
    seen = history.seen(delivery.name)[1]
    new = _unseen(entries, seen)
    if _fingerprint(new, entries) != delivery.fingerprint:
        raise DeliveryError(f"delivery {delivery.key} changed since it was found; it is judged once it has settled")
    said, missing, odd = places(store, entries, settings.classes, f"delivery {delivery.key}")
    # Once, by the first part that missed it.
    absent = [name for name in map(escape, missing) if (name, 0, "") not in seen]
    if len(absent) > max(_MOST_ABSENT, settings.rules.max_quarantined_share * (len(absent) + len(new))):
        raise DeliveryError(
            f"{LABELS} of delivery {delivery.key} names {len(absent):,} files that are not in it, beside {len(new):,} "
            f"that are; deliver them with it, or leave their lines out"
        )
    reader = Reader(store, settings, patient_key, said)
    with journal_of(delivery.uri, delivery.fingerprint, delivery.files, settings, patient_key) as journal:
        read = of_rows(scan(reader, new, journal, settings.workers, delivery.key, progress))
    named = of_rows(Row(name, 0, "", reason="missing", detail="named in labels.csv only") for name in absent)
    table = rejudge(by_file(still_there(read, store), named), history, settings)
    if closed := sum(entry.kind == "closed" and not is_litter(entry.key) for entry in new):
        odd.append(f"{closed:,} folders or files can't be looked at; what is in them is taken once it can be.")
    bookkeeping = sorted(entry.key for entry in entries if entry.key in BOOKKEEPING)
    found = drift.of_table(table, history.reference(), settings.rules)
    nothing_new = delivery.part > 1 and _nothing_new(table, seen)
    asked = _undemanding(settings) if nothing_new else settings
    notes = [*odd, _said(table)] if nothing_new else odd
    outcome = expectations.judge(delivery, table, asked, bookkeeping, found, acknowledged, data_docs, notes)
    accepted = int((table["verdict"] == "accepted").sum())
    log.info("delivery %s: %d of %d files accepted", delivery.key, accepted, len(table))
    return Intake(delivery, table, outcome.fit, outcome.failures, outcome.result, outcome.page, outcome.warnings, found)


def _nothing_new(table: pd.DataFrame, seen: frozenset[tuple[str, int, str]]) -> bool:
    """Whether an addition brings only copies, litter, and quarantined files of a name and size seen before.

    Such files (a delivery copied anew, a late duplicate) are settled by a manifest that lists them; rejected, they
    would be so every night. What could not be read is not settled: it may be new.
    """
    before = {(file, size) for file, size, _ in seen}
    rows = table[["file", "size", "reason"]].itertuples(index=False, name=None)
    return all(
        reason in NOT_COUNTED or (reason not in ("", *_UNREAD) and (file, size) in before)
        for file, size, reason in rows
    )


def _undemanding(settings: Settings) -> Settings:
    rules = settings.rules.model_copy(update={"min_files": 0, "max_quarantined_share": 1.0, "max_leak_share": 1.0})
    return settings.model_copy(update={"rules": rules})


def _said(table: pd.DataFrame) -> str:
    return (
        f"Nothing is new in {len(table):,} added files: they are copies of radiographs there already, "
        f"litter, or quarantined and of a name and size seen before; they are listed and not looked at again."
    )
