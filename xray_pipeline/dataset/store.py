"""Everything accepted so far: radiographs by content digest and one immutable manifest per delivery.

    radiographs/<2>/<digest>.jpg|.png    the stored bytes, named by their SHA-256
    commits/<n>.json                     the n-th commit: a manifest's key and SHA-256; writing it is the commit point
    drafts/<delivery>.<digest>.parquet   the manifest until then
    manifests/<delivery>.parquet         every file of the delivery with its verdict
    snapshots/<digest>.json              the manifests a training run reads
    dataset.json                         what the first commit fixed: classes, split, fingerprint of the patient key

Nothing is believed unread: a manifest is what its commit names, a commit what the next one does, dataset.json what the
first does, a snapshot and a radiograph what their names say (commits.py).

A manifest is the intake table made permanent, so accounting for every file and listing the quarantine need nothing
else. The trade-off: finding a digest or patient reads every manifest once; no index can go stale.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import io
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xray_pipeline.base.errors import (
    AccessDenied,
    Damaged,
    DatasetError,
    DeliveryError,
    ObjectNotFound,
    RadiographDamaged,
    RadiographError,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.records import canonical, digest_of, exactly, parsed
from xray_pipeline.base.settings import Settings, SplitMode
from xray_pipeline.base.storage import Store, check_writes_once, open_store
from xray_pipeline.dataset.commits import IDENTITY, IDENTITY_FORMAT, Commit, Commits, Identity
from xray_pipeline.dataset.near_copies import Prints
from xray_pipeline.dataset.revisions import File, contested, counted, decisive, files_of, part_of, standing

if TYPE_CHECKING:
    from xray_pipeline.intake.check import Intake

log = logging.getLogger(__name__)

FORMAT = 2  # 2: rows carry a perceptual hash and a thumbnail, without which copies go unnoticed
SIDES = ("train", "validation", "held-out")
DRAFT_SECONDS = 86_400.0
"""Age from which a manifest that was never committed is deleted."""

Progress = Callable[[int, int, str], None]


def side_of(patient: str, given: str, mode: SplitMode, validation: float, held_out: float) -> str:
    """Return the side of the split a patient's radiographs are on: "train", "validation" or "held-out".

    `patient` is the keyed hash (hexadecimal), whose first 52 bits are the uniform draw; so the side depends on nothing
    but the patient and never changes as data grows. In mode "patient" only a given "held-out" overrides it; in mode
    "given" the delivery decides and a row without a given side has none ("").
    """
    if mode == "given":
        return given
    if given == "held-out":
        return given
    draw = int(patient[:13], 16) / 16**13
    if draw < held_out:
        return "held-out"
    return "validation" if draw < held_out + validation else "train"


@dataclass(frozen=True)
class Manifest:
    """One committed delivery: its key, the SHA-256 of the manifest, and how many files went which way."""

    delivery: str
    digest: str
    accepted: int
    quarantined: int


@dataclass(frozen=True)
class Snapshot:
    """A named state of the dataset. `manifests` are their keys; `images` and `patients` count what is accepted."""

    digest: str
    manifests: tuple[str, ...]
    images: int
    patients: int


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot's file holds: `dataset` is that of dataset.json, `manifests` are keys to SHA-256."""

    format: int
    dataset: dict[str, Any]
    manifests: dict[str, str]


class History:
    """What earlier deliveries brought: the context in which a new one is judged."""

    def __init__(self, tables: dict[str, pd.DataFrame], others: Set[File] = frozenset()) -> None:
        self._tables, self._others = tables, others

    def seen(self, name: str) -> tuple[int, frozenset[tuple[str, int, str]]]:
        """Return how many parts of delivery `name` are committed, and their files as (file, size, version)."""
        parts = [table for key, table in self._tables.items() if part_of(key)[0] == name]
        return len(parts), frozenset(file for part in parts for file in files_of(part)) | self._others

    def without(self, name: str, paths: Set[str], others: Set[File] = frozenset()) -> History:
        """Return the history in which what is quarantined at these paths of delivery `name` was never judged.

        `others` count as seen, so that a check leaves them out.
        """

        def less(table: pd.DataFrame) -> pd.DataFrame:
            kept = (table["verdict"] == "accepted") | ~table["file"].isin(paths)
            return table if kept.all() else table[kept].reset_index(drop=True)

        return History({key: less(t) if part_of(key)[0] == name else t for key, t in self._tables.items()}, others)

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph; None when the dataset doesn't hold it."""
        return self._labels.get(digest)

    def side(self, patient: str) -> str | None:
        """Return the side a committed patient is on; None for a new patient."""
        return self._sides.get(patient)

    def reference(self) -> pd.DataFrame:
        """Return what a delivery is compared with: digest, patient, label, statistics, age_years of each radiograph."""
        columns = ["digest", "patient", "label", "statistics", "age_years"]
        # Manifests of earlier versions have no statistics.
        tables = [t.loc[t["verdict"] == "accepted"].reindex(columns=columns) for t in self._tables.values()]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)

    @cached_property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs, in the order of the manifests' keys. Raises DatasetError."""
        return Prints.joined([Prints.of(t, np.flatnonzero(t["verdict"] == "accepted")) for t in self._tables.values()])

    @cached_property
    def contested(self) -> Prints:
        """The fingerprints of radiographs, accepted or not, that label conflicts keep out. Raises DatasetError."""
        out, stands = contested(self._tables), standing(self._tables)
        rows = {key: counted(t, stands[key]) & t["digest"].isin(out) for key, t in self._tables.items() if out}
        return Prints.joined([Prints.of(self._tables[key], np.flatnonzero(which)) for key, which in rows.items()])

    @cached_property
    def _accepted(self) -> pd.DataFrame:
        columns = ["digest", "label", "patient", "side"]
        tables = [t.loc[t["verdict"] == "accepted", columns] for t in self._tables.values()]
        return pd.concat(tables) if tables else pd.DataFrame(columns=columns)

    @cached_property
    def _labels(self) -> dict[str, str]:
        return dict(zip(self._accepted["digest"], self._accepted["label"], strict=True))

    @cached_property
    def _sides(self) -> dict[str, str]:
        return dict(zip(self._accepted["patient"], self._accepted["side"], strict=True))


class Dataset:
    """The dataset in `<store>/dataset`. Nothing in it is ever changed, only added, drafts aside."""

    def __init__(self, settings: Settings, store: Store | None = None) -> None:
        self.settings = settings
        self.store = (store or open_store(settings.store, settings)).child("dataset")
        self.commits = Commits(self.store)
        self._cache: dict[str, tuple[str, pd.DataFrame]] = {}

    def patient_key(self) -> bytes:
        """Return the key of the patient hash.

        From the settings, else from `<home>/patient.key`, which is made once with mode 0600, but never for a store on
        S3: several machines may share it, and each would make its own. Losing the key orphans every patient's split, so
        a key that does not fit the dataset is refused, and so is a file that is cut short or that others may read.
        Raises DatasetError.
        """
        key = self._key()
        self._check_identity(key)
        return key

    def _key(self) -> bytes:
        key = self.settings.patient_key.get_secret_value().encode()
        if not key:
            path = self.settings.home / "patient.key"
            if self.settings.store.startswith("s3://") and not path.exists():
                raise DatasetError(
                    f"the store is {self.settings.store} and there is no patient key; set XRAY_PATIENT_KEY to the same "
                    f"random value on every machine that works with it, for example from `openssl rand -hex 32`"
                )
            try:
                if not path.exists():
                    _make_key(path)
                key = _read_key(path)
            except OSError as error:
                raise DatasetError(
                    f"the patient key {path} can't be used: {error.strerror or error}; make {path.parent} a folder "
                    f"that can be written to, or set XRAY_PATIENT_KEY"
                ) from error
        return key

    def manifests(self) -> list[str]:
        """Return the keys of all committed deliveries, sorted. Raises DatasetError for a broken chain of commits."""
        return sorted(commit.manifest for commit in self.commits.read())

    def manifest(self, key: str) -> pd.DataFrame:
        """Return a committed delivery's table, one row per file.

        Raises DatasetError when it is missing, not what was committed, or of an unknown format.
        """
        return self._manifest(key)[1]

    def history(self) -> History:
        """Return what all committed deliveries brought. Raises DatasetError."""
        return History({key: self.manifest(key) for key in self.manifests()})

    def commit(self, intake: Intake, progress: Progress | None = None) -> Manifest:
        """Store a fit delivery's radiographs and its manifest. Repeating it changes nothing.

        The table is judged once more against the dataset of this moment, because deliveries are checked side by side,
        and again whenever another delivery took the place in the order that this one was judged for. Raises
        DeliveryError when a file changed or went away since the check, DatasetError when the dataset was made with
        other settings.
        """
        from xray_pipeline.intake.compare_rows import rejudge

        key = intake.delivery.key
        if not intake.fit:
            raise DatasetError(f"delivery {key} was rejected; it can't be committed")
        check_writes_once(self.store)
        self._write_identity(self.patient_key())
        while True:
            commits = self.settle()
            if any(commit.manifest == key for commit in commits):
                log.info("delivery %s is committed", key)
                break
            history = self.history().without(intake.delivery.name, set(intake.table["file"]))
            table = rejudge(intake.table, history, self.settings)
            self._store_radiographs(intake, table, progress)
            data = to_parquet(table, {"delivery": intake.delivery.name, "fingerprint": intake.delivery.fingerprint})
            if self._add(key, data, len(commits)):
                break
            log.info("another delivery was committed meanwhile; judging %s against it", key)
        digest, table = self._manifest(key)
        accepted = int((table["verdict"] == "accepted").sum())
        return Manifest(key, digest, accepted, len(table) - accepted)

    def settle(self) -> list[Commit]:
        """Finish what a process that was killed had committed, before anything else is judged; return all commits.

        A damaged dataset.json is put back when it follows from the settings. Raises DatasetError for a broken chain of
        commits, a manifest that is missing and one that no commit names.
        """
        commits, there = self.commits.listed(lambda: canonical(msgspec.to_builtins(self._identity(self._key()))))
        for commit in commits:
            if commit.file not in there:
                self._finish(commit)
        for entry in self.store.list("drafts"):
            if entry.modified < time.time() - DRAFT_SECONDS:  # of a process that was killed before its commit
                self.store.delete(entry.key)
        return commits

    def _add(self, key: str, data: bytes, after: int) -> bool:
        """Commit a manifest right after commit number `after`; False when another has that place."""
        draft = f"drafts/{key}.{digest_of(data)}.parquet"
        self.store.write(draft, data)  # not deleted when the place is taken: an equal attempt may count on it
        commit = self.commits.add(key, digest_of(data), after)
        if commit is not None:
            self._finish(commit)
        return commit is not None

    def _finish(self, commit: Commit) -> None:
        """Make the manifest of a commit from its draft."""
        self.store.write_if_absent(commit.file, self._committed(commit))
        self.store.delete(commit.draft)

    def altered(self) -> list[str]:
        """Return the keys of manifests that are missing or are not what was committed, in the order of the commits.

        Raises DatasetError when the commits themselves are not whole.
        """
        found = []
        for commit in self.commits.listed()[0]:
            try:
                self._manifest(commit.manifest)
            except Damaged:
                found.append(commit.manifest)
        return found

    def fingerprint(self, key: str) -> str:
        """Return the SHA-256 of the listing that a committed delivery was judged with. Raises DatasetError."""
        return _fact(self._committed(self.commits.of(key)), "fingerprint", "")

    def snapshot(self) -> Snapshot | None:
        """Name the present state of the dataset and keep that name; None while nothing is committed."""
        keys = decisive({key: self.manifest(key) for key in self.manifests()})
        if not keys:
            return None
        content = {
            "format": FORMAT,
            "dataset": msgspec.to_builtins(self.commits.identity()),
            "manifests": {key: self._manifest(key)[0] for key in keys},
        }
        data = canonical(content)
        digest = digest_of(data)
        if not self.store.write_if_absent(f"snapshots/{digest}.json", data):
            self.store.write(f"snapshots/{digest}.json", data)  # what is there is not what its name says
        return self._describe(digest, keys)

    def open_snapshot(self, digest: str) -> Snapshot:
        """Return a snapshot made earlier. Raises DatasetError when it is unknown or its bytes changed."""
        return self._describe(digest, sorted(self._snapshot(digest).manifests))

    def rows(self, snapshot: Snapshot) -> pd.DataFrame:
        """Return the snapshot's radiographs, one row each, sorted by digest.

        Columns: digest, suffix, label, patient, side, delivery, source, width, height, mode, view, sex, age_years,
        scanner. `source` is the family a file name belongs to, never the name itself. Radiographs that some delivery
        brought under another label, themselves or a near copy, are left out until that is settled: `contested`. Raises
        DatasetError when a manifest is missing or has changed.
        """
        kept, tables = self._snapshot(snapshot.digest), {}
        for key, expected in kept.manifests.items():
            actual, table = self._manifest(key)
            if actual != expected:
                raise DatasetError(
                    f"manifest {key} has digest {actual[:12]}, snapshot {snapshot.digest[:12]} was made with "
                    f"{expected[:12]}; restore {self.store.uri}/manifests/{key}.parquet from a backup"
                )
            tables[key] = table
        out = contested(tables)
        accepted = [
            table[(table["verdict"] == "accepted") & ~table["digest"].isin(out)].assign(delivery=key)
            for key, table in tables.items()
        ]
        rows = pd.concat(accepted, ignore_index=True)
        rows["source"] = rows["file"].map(_source)
        return rows[list(_ROW_COLUMNS)].sort_values("digest", ignore_index=True)

    def read(self, digest: str, suffix: str) -> bytes:
        """Return a stored radiograph. Raises RadiographDamaged, StorageUnavailable."""
        key, cure = _radiograph_key(digest, suffix), "run `xray repair`"
        try:
            data = self.store.read(key)
        except ObjectNotFound as error:
            raise RadiographDamaged(f"{key} is missing from {self.store.uri}; {cure}") from error
        except StorageError as error:
            # A bad sector or a wrong mode is this file's matter; a server that does not answer is none.
            of_all = isinstance(error, StorageUnavailable) and not isinstance(error, AccessDenied)
            if of_all and getattr(error.__cause__, "errno", None) != errno.EIO:
                raise
            raise RadiographDamaged(f"{error}; {cure}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise RadiographDamaged(f"{key} in {self.store.uri} does not match its digest; {cure}")
        return data

    def put(self, digest: str, suffix: str, data: bytes) -> None:
        """Store the bytes that have this digest, in place of damaged ones. Raises StorageError."""
        key = _radiograph_key(digest, suffix)
        with contextlib.suppress(StorageError):  # what is there can't even be read; or the next line says it, too
            if self.store.write_if_absent(key, data):
                return
        self.store.write(key, data)

    def _describe(self, digest: str, keys: list[str]) -> Snapshot:
        empty = Snapshot(digest, tuple(keys), 0, 0)
        rows = self.rows(empty)
        return Snapshot(digest, tuple(keys), len(rows), rows["patient"].nunique())

    def _snapshot(self, digest: str) -> Named:
        key = f"snapshots/{digest}.json"
        try:
            data = exactly(self.store, key, digest, "its name")
        except ObjectNotFound as error:
            raise DatasetError(f"no snapshot {digest} in {self.store.uri}") from error
        return parsed(data, Named, FORMAT, f"{key} in {self.store.uri}")

    def _manifest(self, key: str) -> tuple[str, pd.DataFrame]:
        if key not in self._cache:
            commit = self.commits.of(key)
            self._cache[key] = (commit.digest, from_parquet(self._committed(commit), f"manifest {key}"))
        return self._cache[key]

    def _committed(self, commit: Commit) -> bytes:
        for place in (commit.file, commit.draft, commit.file):  # it may be finished between two looks
            with contextlib.suppress(ObjectNotFound):
                return exactly(self.store, place, commit.digest, commit.place)
        raise Damaged(
            f"{commit.file}, committed as {commit.place}, is missing from {self.store.uri}; restore it from a backup"
        )

    def _store_radiographs(self, intake: Intake, table: pd.DataFrame, progress: Progress | None) -> None:
        from xray_pipeline.intake import scan as reading

        delivery = open_store(intake.delivery.uri, self.settings)
        accepted = table[table["verdict"] == "accepted"]
        limits = reading.limits(self.settings.rules)

        def changed(row: Any, how: str) -> DeliveryError:
            where = f"row {row.Index} of delivery {intake.delivery.key}"
            return DeliveryError(f"{where} {how} between check and commit; run it again: it is judged anew")

        def store(row: Any) -> None:
            try:
                self.read(row.digest, row.suffix)
            except RadiographDamaged as error:
                log.debug("to be stored: %s", error)
            else:
                return
            try:
                normalised = reading.reread(delivery, row.file, limits, row.bits)
            except (StorageError, RadiographError) as error:
                if isinstance(error, StorageUnavailable) and not isinstance(error, AccessDenied):
                    raise  # the store's fault, not this file's
                raise changed(row, f"became unreadable ({type(error).__name__})") from None
            if normalised.digest != row.digest:
                raise changed(row, "changed")
            self.put(row.digest, row.suffix, normalised.data)

        with ThreadPoolExecutor(self.settings.workers or os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(store, accepted.itertuples()), 1):
                if progress:
                    progress(done, len(accepted), f"storing {intake.delivery.key}")

    def _identity(self, key: bytes) -> Identity:
        s = self.settings
        fingerprint = hmac.new(key, b"fingerprint of the patient key", hashlib.sha256).hexdigest()[:16]
        split = (s.split_mode, s.split_validation, s.split_held_out)
        return Identity(IDENTITY_FORMAT, list(s.classes), *split, fingerprint)

    def _write_identity(self, key: bytes) -> None:
        if not self.store.write_if_absent(IDENTITY, canonical(msgspec.to_builtins(self._identity(key)))):
            self._check_identity(key)

    def _check_identity(self, key: bytes) -> None:
        """Compare dataset.json with the settings."""
        if (kept := self.commits.identity()) is None:
            return
        for name, value in msgspec.structs.asdict(self._identity(key)).items():
            if (was := getattr(kept, name)) != value:
                shown = "is another one" if name == "patient_key" else f"{was!r}, now {value!r}"
                raise DatasetError(
                    f"the dataset in {self.store.uri} was made with another setting: {name} {shown}; "
                    f"put the setting back, or start a new store"
                )


_SHORTEST_KEY = 32  # characters, of the 64 that are made


def _make_key(path: Path) -> None:
    """Make the key file whole or not at all; of processes that do so at once one wins, and none replaces another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".patient.key-", dir=path.parent)  # mode 0600
    try:
        with open(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(handle)
        os.link(temporary, path)
    except FileExistsError:
        log.debug("another process made the patient key %s", path)
    else:
        log.info("made a new key for patient hashes: %s (keep a copy: the split depends on it)", path)
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power cut before a dataset depends on it
    finally:
        os.close(folder)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise DatasetError(f"others may read the patient key; run: chmod 600 {path}")
        key = file.read().strip(b"\0 \t\r\n")  # some file systems fill with zeros what a power cut took
    if len(key) < _SHORTEST_KEY:
        raise DatasetError(
            f"the patient key {path} has {len(key)} characters, {_SHORTEST_KEY} or more are needed; put your copy of "
            f"it back, or delete it if nothing was ever ingested with it: a new one is made then"
        )
    return key


_ROW_COLUMNS = (
    *("digest", "suffix", "label", "patient", "side", "delivery", "source"),
    *("width", "height", "mode", "view", "sex", "age_years", "scanner"),
)
_SOURCES = re.compile(r"^(?:person\d+_(bacteria|virus)|(NORMAL2)-IM-|(IM)-)")


def _source(file: str) -> str:
    match = _SOURCES.match(file.rpartition("/")[2])
    return match[match.lastindex or 0] if match else ""


def _radiograph_key(digest: str, suffix: str) -> str:
    return f"radiographs/{digest[:2]}/{digest}{suffix}"


def to_parquet(table: pd.DataFrame, facts: dict[str, str]) -> bytes:
    """Return an intake table as Parquet, format version and `facts` in its metadata; equal tables give equal bytes."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(
        {"xray.format": str(FORMAT), **{f"xray.{name}": value for name, value in facts.items()}}
    )
    out = io.BytesIO()
    pq.write_table(arrow, out, compression="zstd")
    return out.getvalue()


def from_parquet(data: bytes, what: str) -> pd.DataFrame:
    """Read what `to_parquet` wrote. Raises DatasetError, naming `what`, for other bytes or another format version."""
    try:
        found = _fact(data, "format", "none")
        if found == str(FORMAT):
            return read_parquet(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{what} is not readable Parquet: {error}") from error
    raise DatasetError(f"{what} has format {found}; this version reads {FORMAT}")


def _fact(data: bytes, name: str, otherwise: str) -> str:
    facts: dict[bytes, bytes] = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    return facts.get(f"xray.{name}".encode(), otherwise.encode()).decode()


def read_parquet(data: bytes) -> pd.DataFrame:
    """Read any Parquet on this thread alone. Raises pyarrow.ArrowInvalid or OSError for other bytes.

    `read_table` and `to_pandas` leave Python objects to threads that outlive the call, and a process that ends before
    they do aborts (https://github.com/apache/arrow/issues/34314).
    """
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table


def accounting(tables: Iterable[pd.DataFrame]) -> dict[str, int]:
    """Count the rows of some intake tables by outcome: "accepted" and each quarantine reason."""
    counts: dict[str, int] = {}
    for table in tables:
        for reason, count in table["reason"].value_counts().items():
            name = str(reason) or "accepted"
            counts[name] = counts.get(name, 0) + int(count)
    return dict(sorted(counts.items()))
