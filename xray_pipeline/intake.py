"""One delivery to an intake table: a row per file, each accepted or quarantined with a reason.

A delivery is only listed and read, never changed, and nothing in it is believed: links are not followed, content and
not the name decides a file's format, and what a folder or labels.csv says of a file is checked against what the dataset
knows. Files are read and decoded by a pool of threads; only a row of each is kept, so memory follows the number of
threads and the largest file, plus about 4 KB per file. The trade-off: a file that is accepted is read a second
time when it is committed, which also proves that it did not change in between.

Rows are named by their number in the table, from 0, in order of the file's path: in messages and on the page a path is
never shown, because it may name a patient.
"""

from __future__ import annotations

import collections
import errno
import hashlib
import hmac
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

import pandas as pd

from xray_pipeline import radiograph
from xray_pipeline.data_quality import appearance, drift, near_duplicates
from xray_pipeline.data_quality.drift import Drift
from xray_pipeline.data_quality.near_duplicates import Prints
from xray_pipeline.dataset import side_of
from xray_pipeline.deliveries.journal import Journal
from xray_pipeline.deliveries.layout import BOOKKEEPING, LABELS, SUCCESS, Place, escape, places, side_named, unescape
from xray_pipeline.errors import (
    ConfigError,
    DeliveryError,
    ObjectNotFound,
    RadiographError,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.radiograph import Limits, Normalised, Rule
from xray_pipeline.settings import IntakeRules, Settings
from xray_pipeline.storage import Entry, Store, open_store

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

RULES: Final[tuple[Rule, ...]] = (
    *radiograph.RULES,
    Rule("symlink", "quarantined", "symbolic links are never followed"),
    Rule("special-file", "quarantined", "FIFOs, sockets and devices are never opened"),
    Rule("system-file", "quarantined", "litter of operating systems (.DS_Store, Thumbs.db, ._*); counts as no file"),
    Rule("unreadable", "quarantined", "no permission to read the file, or its name is no safe path"),
    Rule("vanished", "quarantined", "the file went away during the check"),
    Rule("changed", "quarantined", "the file changed during the check"),
    Rule("no-class", "quarantined", "the file lies outside every class folder"),
    Rule("not-listed", "quarantined", "labels.csv does not name the file"),
    Rule("missing", "quarantined", "labels.csv names a file that is not in the delivery"),
    Rule("label-conflict", "quarantined", "the same image has two labels, here or against the dataset; both are out"),
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
_JOURNAL_FROM = 1000  # files of a delivery; fewer are read again in seconds
NOT_COUNTED: Final = ("duplicate", "system-file")  # in the share of quarantined files


class Row(NamedTuple):
    """One file of a delivery: the columns of the intake table, in order.

    `file` is the path inside the delivery with undecodable bytes, control characters and backslashes as \\xNN;
    `source_digest` and `digest` are SHA-256 of the file and of what is stored; `patient` is a keyed hash; ages are
    years; `statistics` says how the pixels look (`appearance.to_text`); `phash` and `thumbnail` are of
    `near_duplicates`; `near_copy` is the digest of a near copy, accepted here or in the dataset. Text is "" and numbers
    are 0 (age NaN) where unknown.
    """

    file: str
    size: int
    version: str
    source_digest: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    bits: int = 0
    view: str = ""
    sex: str = ""
    age_years: float = float("nan")
    scanner: str = ""
    patient: str = ""
    label: str = ""
    given_split: str = ""
    side: str = ""
    verdict: str = "quarantined"
    reason: str = ""
    detail: str = ""
    digest: str = ""
    suffix: str = ""
    statistics: str = ""
    phash: str = ""
    thumbnail: str = ""
    near_copy: str = ""


COLUMNS: Final = Row._fields
_NUMBERS = {"size": "int64", "width": "int64", "height": "int64", "bits": "int64", "age_years": "float64"}
_DTYPES = {column: _NUMBERS.get(column, "str") for column in COLUMNS}


class History(Protocol):
    """What the dataset already holds: the context in which a delivery is judged."""

    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        """Return how many parts of delivery `name` are committed, and their files as (file, size, version)."""

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph, None when there is none."""

    def side(self, patient: str) -> str | None:
        """Return the side of the split that a committed patient is on, None for a new one."""

    def reference(self) -> pd.DataFrame:
        """Return the committed radiographs that a delivery is compared with: digest, patient, label, statistics."""

    @property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs."""


class _NoHistory:
    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        return 0, frozenset()

    def labels(self, digest: str) -> str | None:
        return None

    def side(self, patient: str) -> str | None:
        return None

    def reference(self) -> pd.DataFrame:
        return pd.DataFrame(columns=["digest", "patient", "label", "statistics"])

    @property
    def prints(self) -> Prints:
        return near_duplicates.no_prints()


EMPTY: Final[History] = _NoHistory()


@dataclass(frozen=True)
class Delivery:
    """One incoming folder, or what was added to it since an earlier part of it was committed.

    `part` is 1 for the first and counts additions up; `files` and `bytes` count what is new; `fingerprint` is the
    SHA-256 of the sorted listing of this part; `settled` says that it is complete.
    """

    name: str
    uri: str
    part: int
    files: int
    bytes: int
    fingerprint: str
    settled: bool

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


def limits(rules: IntakeRules) -> Limits:
    """Return the part of the rules that one file's header must keep."""
    return Limits(rules.max_file_bytes, rules.max_pixels, rules.min_side, rules.max_aspect)


def find(
    incoming: Store, history: History, settle_seconds: float, now: float, classes: Sequence[str] = ()
) -> list[Delivery]:
    """Return the deliveries under `incoming` that hold files the dataset has not seen, sorted by name.

    A delivery is settled when it carries `_SUCCESS` or nothing in it was modified for `settle_seconds` before `now`
    (Unix seconds). A delivery with a folder that can't be listed is left out, with a warning; it is found once it can.
    Raises DeliveryError when `incoming` itself looks like a delivery; `classes` helps to tell.
    """
    listings: dict[str, list[Entry]] = {}
    for entry in _entries(incoming):
        folder, slash, key = entry.key.partition("/")
        if not slash:
            _check_stray(entry, incoming)
        elif folder and not folder.startswith("."):
            listings.setdefault(folder, []).append(replace(entry, key=key))
    wrong = sorted(f for f in listings if side_named(f) is not None or f in classes)
    if wrong:
        raise DeliveryError(
            f"{incoming.uri} holds the folder {wrong[0]!r} and so looks like a delivery itself; point at its parent"
        )
    found = (
        _describe(folder, incoming.child(folder).uri, entries, history, settle_seconds, now)
        for folder, entries in listings.items()
    )
    return sorted((delivery for delivery in found if delivery is not None), key=lambda delivery: delivery.name)


def _entries(incoming: Store) -> list[Entry]:
    """List everything in one go; where that fails at a folder, list folder by folder and leave out what can't be."""
    found: list[Entry] = []
    try:
        found.extend(incoming.list())
        return found
    except StorageUnavailable as error:
        if not _is_of_one_folder(error):
            raise
    found = [entry for entry in found if "/" not in entry.key]  # all of them: a store lists its root first
    for folder in incoming.folders():
        try:
            found += [replace(entry, key=f"{folder}/{entry.key}") for entry in incoming.child(folder).list()]
        except StorageUnavailable as error:
            if not _is_of_one_folder(error):
                raise
            why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "no permission"
            log.warning("delivery %s is left out: a folder in it can't be listed (%s)", _safe_name(folder), why)
    return found


def _is_of_one_folder(error: StorageUnavailable) -> bool:
    """Whether a listing failed for what one folder is, and not because the store did not answer."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def at(uri: str, settings: Settings, history: History, now: float) -> Delivery:
    """Return the delivery in one folder or s3:// prefix, wherever it lies. Raises DeliveryError without new files."""
    store = open_store(uri, settings)
    folder = store.uri.rstrip("/").rpartition("/")[2]
    entries = list(store.list())
    found = _describe(folder, store.uri, entries, history, settings.settle_seconds, now)
    if found is None:
        known = "; every file in it is in the dataset already" if entries else "; does it exist?"
        raise DeliveryError(f"{store.uri} holds nothing to check{known}")
    return found


def _check_stray(entry: Entry, incoming: Store) -> None:
    if entry.key in BOOKKEEPING or entry.key.lower().endswith((".jpg", ".jpeg", ".png", ".dcm", ".dicom")):
        raise DeliveryError(f"{incoming.uri} holds files and so looks like a delivery itself; point at its parent")
    if entry.kind == "symlink":
        log.warning("%s holds a symbolic link; links are never followed, deliver a real folder", incoming.uri)


def _describe(
    folder: str, uri: str, entries: list[Entry], history: History, settle_seconds: float, now: float
) -> Delivery | None:
    name = _safe_name(folder)
    parts, seen = history.seen(name)
    new = _unseen(entries, seen)
    if not new:
        return None
    size = sum(entry.size for entry in new)
    settled = _is_settled(entries, parts, settle_seconds, now)
    return Delivery(name, uri, parts + 1, len(new), size, _fingerprint(new, entries), settled)


def _unseen(entries: list[Entry], seen: frozenset[tuple[str, int, str]]) -> list[Entry]:
    files = (entry for entry in entries if entry.key not in BOOKKEEPING)
    return [entry for entry in files if (escape(entry.key), entry.size, entry.version) not in seen]


def _fingerprint(new: list[Entry], entries: list[Entry]) -> str:
    counted = [*new, *(entry for entry in entries if entry.key == LABELS)]
    lines = sorted(json.dumps([escape(entry.key), entry.size, entry.version, entry.kind]) for entry in counted)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_settled(entries: list[Entry], parts: int, settle_seconds: float, now: float) -> bool:
    # A clock that is days ahead must not keep a delivery out forever.
    newest = max(entry.modified for entry in entries if entry.key != SUCCESS)
    newest = newest if newest < now + 86_400 else 0.0
    marks = [entry.modified for entry in entries if entry.key == SUCCESS]
    if marks and (parts == 0 or marks[0] >= newest):  # the first part's marker says nothing of an addition
        return True
    return now - newest >= settle_seconds


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
) -> Intake:
    """Read and judge every new file of a delivery. `acknowledged` names the drift alarms that a person has settled.

    Writes nothing, except that the scan of a large delivery keeps a journal in `settings.cache` until it is through.
    Raises DeliveryError when the delivery can't be judged as a whole (unknown class, unreadable labels.csv, changed
    since it was found), StorageError when its store does not answer, ConfigError.
    """
    from xray_pipeline import expectations

    store = open_store(delivery.uri, settings)
    entries = list(store.list())
    new = _unseen(entries, history.seen(delivery.name)[1])
    if _fingerprint(new, entries) != delivery.fingerprint:
        raise DeliveryError(f"delivery {delivery.key} changed since it was found; it is judged once it has settled")
    said, missing = places(store, entries, settings.classes, f"delivery {delivery.key}")
    reader = _Reader(store, settings, patient_key, said)
    with _journal(delivery, settings, patient_key) as journal:
        read = _table(_scan(reader, new, journal, settings.workers, delivery.key, progress))
    named = (Row(escape(file), 0, "", reason="missing", detail="named in labels.csv only") for file in missing)
    table = rejudge(_by_file(_still_there(read, store), _table(named)), history, settings)
    bookkeeping = sorted(entry.key for entry in entries if entry.key in BOOKKEEPING)
    found = drift.of_table(table, history.reference(), settings.rules)
    outcome = expectations.judge(delivery, table, settings, bookkeeping, found, acknowledged)
    accepted = int((table["verdict"] == "accepted").sum())
    log.info("delivery %s: %d of %d files accepted", delivery.key, accepted, len(table))
    return Intake(delivery, table, outcome.fit, outcome.failures, outcome.result, outcome.page, outcome.warnings, found)


def _scan(
    reader: _Reader, new: list[Entry], journal: Journal, workers: int, key: str, progress: Progress | None
) -> Iterator[Row]:
    """Yield a row for each file, by its name; what an earlier scan of the same delivery read is not read again."""

    def row(entry: Entry) -> Row:
        known = journal.get(_seen_as(entry))
        return Row(*known) if known else reader.row(entry)

    ordered = sorted(new, key=lambda entry: escape(entry.key))
    for number, (entry, found) in enumerate(zip(ordered, _in_order(row, ordered, workers), strict=True), 1):
        if found.source_digest:
            journal.add(_seen_as(entry), ("", *found[1:]))  # without the file's name
        yield found._replace(file=escape(entry.key))
        if progress:
            progress(number, len(new), f"checking {key}")


def _seen_as(entry: Entry) -> str:
    return f"{entry.key}\0{entry.size}\0{entry.version}"


def _journal(delivery: Delivery, settings: Settings, patient_key: bytes) -> Journal:
    s, code = settings, hashlib.sha256()
    for module in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(module.read_bytes())
    split = (s.split_mode, s.split_validation, s.split_held_out)
    of_key = hmac.new(patient_key, b"journal", hashlib.sha256).hexdigest()
    depends = (delivery.uri, delivery.fingerprint, s.rules.digest(), s.classes, split, of_key, code.hexdigest())
    return Journal(s.cache / "intake", depends, enabled=delivery.files >= _JOURNAL_FROM)


def reread(store: Store, file: str, limits: Limits) -> Normalised:
    """Return the radiograph of one row (`file` as in the table) of the delivery in `store`.

    Raises RadiographError, StorageError.
    """
    return radiograph.normalise(store.read(unescape(file)), limits)


def rejudge(table: pd.DataFrame, history: History, settings: Settings) -> pd.DataFrame:
    """Judge the accepted rows of an intake table once more against each other and the dataset.

    Quarantines label conflicts, duplicates, patients on two sides and copies across the split, and notes near copies on
    the same side; rows that are quarantined already stay so. Raises DatasetError.
    """
    table = table.copy()
    accepted = table.loc[table["verdict"] == "accepted", ["digest", "label", "patient", "side", "given_split"]]
    found = _same_images(accepted, history)
    found |= _two_sides(accepted.drop(index=list(found)), history)
    rest = accepted.drop(index=list(found))
    copies, kept = _near_copies(table, rest.index, history, settings.workers)
    found |= {row: ("copy-across-split", detail) for row, (_, detail) in copies.items()}
    table.loc[rest.index, "near_copy"] = [kept.get(row) or copies.get(row, ("", ""))[0] for row in rest.index]
    if found:
        out = list(found)
        table.loc[out, ["verdict", "side"]] = ["quarantined", ""]
        table.loc[out, "reason"] = [found[row][0] for row in out]
        table.loc[out, "detail"] = [found[row][1] for row in out]
    return table


_Findings = dict[int, tuple[str, str]]
_KEPT_FIRST: Final = ("held-out", "validation", "train")


def _same_images(accepted: pd.DataFrame, history: History) -> _Findings:
    by_digest: dict[str, list[tuple[int, str, str, str]]] = {}
    for row, digest, *said in accepted[["digest", "label", "side", "given_split"]].itertuples(name=None):
        by_digest.setdefault(digest, []).append((row, *said))
    found: _Findings = {}
    for digest, same in by_digest.items():
        known = history.labels(digest)
        labels = sorted({label for _, label, *_ in same} | ({known} if known else set()))
        if len(labels) > 1:
            where = "in the dataset and here" if known else "in this delivery"
            found |= {row: ("label-conflict", f"labelled {' and '.join(labels)} {where}") for row, *_ in same}
        elif known:
            found |= _copies(same, history.prints.side.get(digest, ""), "the dataset holds this image")
        else:
            row, _, side, _ = min(same, key=_stays_before)
            found |= _copies([one for one in same if one[0] != row], side, f"the same image as row {row}")
    return found


def _stays_before(copy: tuple[int, str, str, str]) -> tuple[int, int]:
    """Order exact copies: a side that the delivery gave counts, one that was drawn does not; then the first path."""
    row, _, side, given = copy
    return (_KEPT_FIRST.index(side) if given == side else len(_KEPT_FIRST), row)


def _copies(copies: Iterable[tuple[int, str, str, str]], kept: str, detail: str) -> _Findings:
    """Return the findings for exact copies (row, label, side, given side) of an image that stays on side `kept`.

    It is a leak when the delivery itself puts the copy on another side. A side drawn for a patient of whom nothing is
    known but this file says nothing: that is an image delivered again.
    """
    return {
        row: ("copy-across-split", f"{detail}, in {kept}") if kept and kept != given == side else ("duplicate", detail)
        for row, _, side, given in copies
    }


def _near_copies(
    table: pd.DataFrame, accepted: pd.Index, history: History, workers: int
) -> tuple[_Findings, dict[int, str]]:
    """Return the rows that a near copy on another side puts out, as (digest of that copy, detail), and for the other
    accepted ones the digest of a near copy on their own side. The dataset's stay, then held-out before the rest."""
    out: _Findings = {}
    kept: dict[int, str] = {}
    known, staying = history.prints.by_side, dict[str, Prints]()
    for side in _KEPT_FIRST:
        rows = accepted[table.loc[accepted, "side"] == side].tolist()
        mine = Prints.of(table.loc[rows, ["digest", "side", "phash", "thumbnail"]])
        for other in _KEPT_FIRST:
            if other != side:
                for where, prints in (("the dataset", known), ("this delivery", staying)):
                    for row, digest in _copied(rows, mine, prints.get(other), workers):
                        out.setdefault(row, (digest, f"near copy of an image in {other}, in {where}"))
        left = [at for at, row in enumerate(rows) if row not in out]
        rows, mine = [rows[at] for at in left], mine.take(left)
        for same in (known.get(side), mine):
            for row, digest in _copied(rows, mine, same, workers):
                kept.setdefault(row, digest)
        staying[side] = mine
    return out, kept


def _copied(rows: Sequence[int], mine: Prints, others: Prints | None, workers: int) -> Iterator[tuple[int, str]]:
    """Yield the rows that have a near copy among the others, with its digest."""
    if others is not None:
        for row, place in zip(rows, near_duplicates.nearest(mine, others, workers, itself=mine is others), strict=True):
            if place >= 0:
                yield row, others.digests[place]


def _two_sides(accepted: pd.DataFrame, history: History) -> _Findings:
    by_patient: dict[str, list[tuple[int, str]]] = {}
    for row, patient, side in zip(accepted.index, accepted["patient"], accepted["side"], strict=True):
        by_patient.setdefault(patient, []).append((row, side))
    found: _Findings = {}
    for patient, images in by_patient.items():
        known = history.side(patient)
        sides = sorted({side for _, side in images})
        if known:
            detail = f"the dataset has this patient in {known}"
            found |= {row: ("patient-on-two-sides", detail) for row, side in images if side != known}
        elif len(sides) > 1:
            found |= {row: ("patient-on-two-sides", f"given as {' and '.join(sides)}") for row, _ in images}
    return found


_BATCH = 4096  # rows that are held as Python objects, of four times the memory


def _table(rows: Iterable[Row]) -> pd.DataFrame:
    left, parts = iter(rows), []
    while batch := list(itertools.islice(left, _BATCH)):
        parts.append(pd.DataFrame(batch, columns=list(COLUMNS)).astype(_DTYPES))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS)).astype(_DTYPES)


def _by_file(*tables: pd.DataFrame) -> pd.DataFrame:
    together = pd.concat([table for table in tables if len(table)], ignore_index=True)
    return together if together["file"].is_monotonic_increasing else together.sort_values("file", ignore_index=True)


def _in_order(function: Callable[[Entry], Row], entries: Sequence[Entry], workers: int) -> Iterator[Row]:
    """Yield function(entry) for each entry, in order, computed by threads that never run far ahead."""
    threads = workers or os.cpu_count() or 1
    pending: collections.deque[Future[Row]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for entry in entries:
                pending.append(pool.submit(function, entry))
                if len(pending) >= 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _still_there(table: pd.DataFrame, store: Store) -> pd.DataFrame:
    """List once more: a file that went away or changed under our eyes is quarantined."""
    now = {escape(entry.key): (entry.size, entry.version) for entry in store.list()}
    seen = table[["file", "size", "version"]].itertuples(name=None)
    off = {row: now.get(file) for row, file, *was in seen if now.get(file) != tuple(was)}
    if off:
        reasons = ["changed" if found else "vanished" for found in off.values()]
        table.loc[list(off), ["verdict", "side"]] = ["quarantined", ""]
        table.loc[list(off), "reason"] = reasons
        table.loc[list(off), "detail"] = [_GONE[reason] for reason in reasons]
    return table


def _quarantined(row: Row, reason: str, detail: str) -> Row:
    return row._replace(verdict="quarantined", reason=reason, detail=detail, side="")


_GONE = {"vanished": "the file went away during the check", "changed": "the file changed during the check"}


# Written where a modality or a de-identifier had no number: not a patient.
_NO_PATIENT = re.compile(r"(anon(ymous|ymi[sz]ed)?|de-?identified|removed|unknown|none|n/?a|null|0*|-*|x*)", re.I)


class _Reader:
    """Reads one file after another into rows; used by many threads at once."""

    def __init__(self, store: Store, settings: Settings, patient_key: bytes, said: Mapping[str, Place]) -> None:
        self._store, self._settings, self._key, self._said = store, settings, patient_key, said
        self._limits = limits(settings.rules)
        try:
            self._pattern = re.compile(settings.rules.patient_pattern)
        except re.error as error:
            raise ConfigError(f"rules.patient_pattern is no regular expression: {error}") from error

    def row(self, entry: Entry) -> Row:
        """Judge one file by itself."""
        place = self._said[entry.key]
        row = Row(escape(entry.key), entry.size, entry.version, label=place.label, given_split=place.given)
        if entry.kind == "symlink":
            return _quarantined(row, "symlink", "a symbolic link")
        if entry.kind == "special":
            return _quarantined(row, "special-file", "a FIFO, socket or device")
        if place.reason:
            return _quarantined(row, place.reason, place.detail)
        if entry.size > self._limits.max_file_bytes:
            return _quarantined(row, "too-large", f"{entry.size:,} bytes, {self._limits.max_file_bytes:,} allowed")
        try:
            data = self._store.read(entry.key)
        except ObjectNotFound:
            return _quarantined(row, "vanished", "the file went away during the check")
        except StorageUnavailable as error:
            if isinstance(error.__cause__, PermissionError):
                return _quarantined(row, "unreadable", "no permission to read the file")
            raise
        except StorageError:
            return _quarantined(row, "unreadable", "no regular file any more, or its name is no safe path")
        return self._judged(row, place, data)

    def _judged(self, row: Row, place: Place, data: bytes) -> Row:
        row = row._replace(source_digest=hashlib.sha256(data).hexdigest())
        if len(data) != row.size:
            return _quarantined(row, "changed", f"listed with {row.size:,} bytes, read {len(data):,}")
        try:
            found = radiograph.normalise(data, self._limits)
        except RadiographError as error:
            return _quarantined(row._replace(format=radiograph.sniff(data) or ""), error.reason, error.detail)
        facts = found.facts
        patient = self._patient(facts.patient_id, place.patient_id, row)
        row = row._replace(
            format=facts.format,
            width=facts.width,
            height=facts.height,
            mode=facts.mode,
            bits=facts.bits,
            view=facts.view,
            sex=facts.sex,
            age_years=float("nan") if facts.age_years is None else facts.age_years,
            scanner=facts.scanner,
            patient=patient,
            digest=found.digest,
            suffix=found.suffix,
            statistics=appearance.to_text(appearance.measure(found.pixels)),
            **near_duplicates.fingerprint(found.pixels)._asdict(),
        )
        s = self._settings
        side = side_of(patient, place.given, s.split_mode, s.split_validation, s.split_held_out)
        if not side:
            return _quarantined(row, "no-given-split", "neither folder nor labels.csv says train, val or test")
        return row._replace(verdict="accepted", side=side)

    def _patient(self, dicom_id: str, listed_id: str, row: Row) -> str:
        """Return the keyed hash of the first known of: DICOM's id, the listed one, the file name's, the file itself."""
        for known in (dicom_id.strip(), listed_id.strip()):
            if not _NO_PATIENT.fullmatch(known):
                return self._hash(f"patient:{known}")
        match = self._pattern.search(row.file.rpartition("/")[2])
        if match:
            return self._hash(f"patient:{match[1] if self._pattern.groups else match[0]}")
        return self._hash(f"file:{row.source_digest}")

    def _hash(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]
