"""The files of a delivery, read one by one by a pool of threads: each a row, judged by itself.

Only the rows are kept, so memory follows the number of threads and the largest file.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pandas as pd

from xray_pipeline.base.errors import (
    AccessDenied,
    ObjectNotFound,
    RadiographError,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, Store
from xray_pipeline.dataset.fingerprints import fingerprint
from xray_pipeline.dataset.split import id_in_name, patient_hash, side_of
from xray_pipeline.dataset.table import Row, quarantined
from xray_pipeline.images import appearance, dicom, radiograph
from xray_pipeline.images.radiograph import Normalised
from xray_pipeline.images.raster import VIEWS, Limits
from xray_pipeline.intake.deliveries import Delivery, listing
from xray_pipeline.intake.journal import Journal, journals_in
from xray_pipeline.intake.label_mapping import LabelMapping
from xray_pipeline.intake.labelled import UNLABELLED, Labels
from xray_pipeline.intake.layout import LITTER, Place, against_folder, escape, unescape
from xray_pipeline.intake.placing import NO_LABEL, Said, Source
from xray_pipeline.intake.rules import judging_digest

_JOURNAL_FROM = 1000  # files of a delivery; fewer are read again in seconds


def scan(
    reader: Reader, new: list[Entry], journal: Journal, workers: int, key: str, progress: Progress | None
) -> Iterator[Row]:
    """Yield a row for each file, by its name; what an earlier scan of the same delivery read is not read again."""

    def row(entry: Entry) -> Row:
        known = journal.get(_seen_as(entry))
        return Row(*known) if known else reader.row(entry)

    ordered = sorted(new, key=lambda entry: escape(entry.key))
    for number, (entry, read) in enumerate(zip(ordered, _in_order(row, ordered, workers), strict=True), 1):
        if read.source_digest:
            journal.add(_seen_as(entry), ("", *read[1:]))  # without the file's name
        yield read._replace(file=escape(entry.key))
        if progress:
            progress(number, len(new), f"checking {key}")


def _seen_as(entry: Entry) -> str:
    return f"{entry.key}\0{entry.size}\0{entry.version}"


def journal_of(delivery: Delivery, said: Said, settings: Settings, patient_key: bytes) -> Journal:
    """Return the journal of a scan of a delivery of which its folders or a table say this."""
    table = said.table.digest if said.table else ""
    depends = (delivery.uri, delivery.fingerprint, table, judging_digest(settings, patient_key))
    return Journal(journals_in(settings.cache), depends, enabled=delivery.files >= _JOURNAL_FROM)


def reread(store: Store, file: str, limits: Limits, bits: int = 0) -> Normalised:
    """Return the radiograph of one row (`file` and `bits` as in the table) of the delivery in `store`.

    Raises RadiographError, StorageError.
    """
    return radiograph.normalise(store.read(unescape(file)), replace(limits, png_bits=bits or limits.png_bits))


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


def still_there(table: pd.DataFrame, store: Store) -> pd.DataFrame:
    """List once more: a file that went away or changed under our eyes is quarantined."""
    now = {escape(entry.key): (entry.size, entry.version) for entry in listing(store)}
    seen = table[["file", "size", "version"]].itertuples(name=None)
    off = {row: now.get(file) for row, file, *was in seen if now.get(file) != tuple(was)}
    if off:
        reasons = ["changed" if there else "vanished" for there in off.values()]
        table.loc[list(off), ["verdict", "side"]] = ["quarantined", ""]
        table.loc[list(off), "reason"] = reasons
        table.loc[list(off), "detail"] = [_GONE[reason] for reason in reasons]
    return table


_GONE = {"vanished": "the file went away during the check", "changed": "the file changed during the check"}


# Written where a modality or a de-identifier had no number: not a patient.
_NO_PATIENT = re.compile(r"(anon(ymous|ymi[sz]ed)?|de-?identified|removed|unknown|none|n/?a|null|0*|-*|x*)", re.I)


def patient_told(key: bytes, dicom_id: str, listed_id: str = "", named: str = "") -> str:
    """Return the keyed hash of the first id that names a patient: DICOM's, the listed one, the file name's; else ""."""
    for known in (dicom_id.strip(), listed_id.strip()):
        if not _NO_PATIENT.fullmatch(known):
            return patient_hash(key, f"patient:{known}")
    return patient_hash(key, f"patient:{named}") if named else ""


_TAGS = {
    "sop-uid": (0x00080018,),
    "series-uid": (0x0020000E,),
    "study-uid": (0x0020000D,),
    "accession": (0x00080050,),
    "patient-and-date": (0x00100020, 0x00080020),
}
"""The DICOM elements that a table may name a file by."""


class Reader:
    """Reads one file after another into rows; used by many threads at once."""

    def __init__(self, source: Source, patient_key: bytes, said: Said, labels: Labels) -> None:
        self._source, self._store, self._settings = source, source.store, source.settings
        self._key, self._said, self._labels = patient_key, said, labels
        self._limits = Limits.of(self._settings.rules)

    def row(self, entry: Entry) -> Row:
        """Judge one file by itself."""
        place, data = self._place(entry)
        row = Row(escape(entry.key), entry.size, entry.version, label=place.label, given_split=place.given)
        row = row._replace(named_by=place.named_by)
        # Also of what is not read: without it nobody can tell what is to be erased.
        row = row._replace(patient=self._patient("", place.patient_id, row.file))
        if entry.kind == "symlink" and place.reason != LITTER:
            return quarantined(row, "symlink", "a symbolic link")
        if entry.kind == "special" and place.reason != LITTER:
            return quarantined(row, "special-file", "a FIFO, socket or device")
        waits = place.reason == NO_LABEL and self._said.by_content is not None  # only what is sound waits for a label
        if place.reason and not waits:
            return quarantined(row, place.reason, place.detail)
        if entry.size > self._limits.max_file_bytes:
            return quarantined(row, "too-large", f"{entry.size:,} bytes, {self._limits.max_file_bytes:,} allowed")
        try:
            data = self._store.read(entry.key) if data is None else data
        except ObjectNotFound:
            return quarantined(row, "vanished", "the file went away during the check")
        except AccessDenied:
            return quarantined(row, "unreadable", "no permission to read the file")
        except StorageUnavailable:
            raise
        except StorageError:
            return quarantined(row, "unreadable", "no regular file any more, or its name is no safe path")
        row = self._judged(row, place, data)
        return quarantined(row, place.reason, place.detail) if waits and row.verdict == "accepted" else row

    def _place(self, entry: Entry) -> tuple[Place, bytes | None]:
        """Return what the delivery says of a file or, where it says no class, what people said; and the file, if that
        took reading it."""
        place = self._said.places[entry.key]
        table = self._said.by_content if place.reason == NO_LABEL else None
        readable = entry.kind == "file" and entry.size <= self._limits.max_file_bytes
        if not (place.reason in UNLABELLED and readable and (table or self._labels.any)):
            return place, None
        try:
            data = self._store.read(entry.key)
        except (ObjectNotFound, AccessDenied):  # said of the file later, if it has a label
            return place, None
        if table:
            place = self._by_content(entry.key, data, table.mapping)
        if place.reason in UNLABELLED and (label := self._labels.of(hashlib.sha256(data).hexdigest())):
            place = place._replace(label=label, reason="", detail="")
        return place, data

    def _by_content(self, file: str, data: bytes, mapping: LabelMapping) -> Place:
        """Return what the table says of what DICOM calls a file."""
        tags, values = _TAGS[mapping.key.by], [""]
        if radiograph.sniff(data) == "dicom":
            with contextlib.suppress(RadiographError):  # said of the file later
                values = dicom.texts(data, self._limits, tags)
        place = self._said.of_content(file, values, self._source.hashed)
        return against_folder(file, place, self._settings.classes, mapping.table[0].rpartition("/")[2])

    def _judged(self, row: Row, place: Place, data: bytes) -> Row:
        row = row._replace(source_digest=hashlib.sha256(data).hexdigest())
        if len(data) != row.size:
            return quarantined(row, "changed", f"listed with {row.size:,} bytes, read {len(data):,}")
        try:
            said = replace(self._limits, png_bits=place.bits) if place.bits else self._limits
            normalised = radiograph.normalise(data, said)
        except RadiographError as error:
            return quarantined(row._replace(format=radiograph.sniff(data) or ""), error.reason, error.detail)
        facts = normalised.facts
        patient = self._patient(facts.patient_id, place.patient_id, row.file)
        patient = patient or patient_hash(self._key, f"file:{row.source_digest}")
        row = row._replace(
            format=facts.format,
            width=facts.width,
            height=facts.height,
            mode=facts.mode,
            bits=facts.bits,
            view=facts.view or (place.view.upper() if place.view.upper() in VIEWS else ""),
            sex=facts.sex,
            age_years=float("nan") if facts.age_years is None else facts.age_years,
            scanner=facts.scanner,
            patient=patient,
            digest=normalised.digest,
            suffix=normalised.suffix,
            statistics=appearance.to_text(appearance.measure(normalised.pixels)),
            **fingerprint(normalised.pixels)._asdict(),
        )
        s = self._settings
        side = side_of(patient, place.given, s.split_mode, s.split_validation, s.split_held_out)
        if not side:
            return quarantined(row, "no-given-split", "neither folder nor label table says train, val or test")
        return row._replace(verdict="accepted", side=side)

    def _patient(self, dicom_id: str, listed_id: str, file: str) -> str:
        """Return the keyed hash of the first known of: DICOM's id, the listed one, the file name's; "" for none."""
        named = id_in_name(self._settings.rules.patient_pattern, file)
        return patient_told(self._key, dicom_id, listed_id, named)
