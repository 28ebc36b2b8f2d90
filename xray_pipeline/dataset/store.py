"""Everything accepted so far: radiographs by content digest, one immutable manifest per delivery, and amendments.

    radiographs/<2>/<digest>.jpg|.png    the stored bytes, named by their SHA-256
    commits/<n>.json                     the n-th commit: a manifest's key and SHA-256, or an amendment; writing it is
                                         the commit point
    drafts/<delivery>.<digest>.parquet   the manifest until then
    manifests/<delivery>.parquet         every file of the delivery with its verdict
    snapshots/<digest>.json              the manifests a training run reads, and what amendments say of their rows
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
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pandas as pd

from xray_pipeline.base.errors import (
    AccessDenied,
    Damaged,
    DatasetError,
    ObjectNotFound,
    RadiographDamaged,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.records import canonical, digest_of, exactly, parsed
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, check_writes_once, open_store
from xray_pipeline.dataset.amendments import Amended, Amendment, together
from xray_pipeline.dataset.commits import IDENTITY, IDENTITY_FORMAT, Commit, Commits, Identity
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.parquet import FORMAT, fact, from_parquet
from xray_pipeline.dataset.revisions import contested, decisive
from xray_pipeline.dataset.snapshots import Named, said_of
from xray_pipeline.dataset.split import key_of

log = logging.getLogger(__name__)

DRAFT_SECONDS = 86_400.0
"""Age from which a manifest that was never committed is deleted."""


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
        key = key_of(self.settings)
        self._check_identity(key)
        return key

    def manifests(self) -> list[str]:
        """Return the keys of all committed deliveries, sorted. Raises DatasetError for a broken chain of commits."""
        return sorted(commit.manifest for commit in self.commits.manifests())

    def manifest(self, key: str) -> pd.DataFrame:
        """Return a committed delivery's table, one row per file.

        Raises DatasetError when it is missing, not what was committed, or of an unknown format.
        """
        return self._manifest(key)[1]

    def history(self) -> History:
        """Return what all committed deliveries brought, as amendments correct it. Raises DatasetError."""
        tables, amended = self._now()
        return History(tables, amended=amended)

    def amended(self) -> Amended:
        """Return what all amendments say together. Raises DatasetError for a broken chain of commits."""
        return together(self.commits.amendments())

    def _now(self) -> tuple[dict[str, pd.DataFrame], Amended]:
        """Return all manifests and what all amendments say together, both of one moment."""
        commits = self.commits.read()
        tables = {key: self.manifest(key) for key in sorted(commit.manifest for commit in commits if commit.manifest)}
        return tables, together({commit.number: commit.amendment for commit in commits if commit.amendment})

    def begin(self) -> None:
        """Fix what the first commit fixes, or compare it with the settings.

        Raises StorageError for a store that does not keep what is written once, DatasetError for other settings.
        """
        check_writes_once(self.store)
        key = self.patient_key()
        if not self.store.write_if_absent(IDENTITY, canonical(msgspec.to_builtins(self._identity(key)))):
            self._check_identity(key)

    def append(self, key: str, data: bytes, after: int) -> bool:
        """Commit a manifest right after commit number `after`; False when another has that place."""
        draft = f"drafts/{key}.{digest_of(data)}.parquet"
        self.store.write(draft, data)  # not deleted when the place is taken: an equal attempt may count on it
        commit = self.commits.add(key, digest_of(data), after)
        if commit is not None:
            self._make_manifest(commit)
        return commit is not None

    def amend(self, describe: Callable[[History], Amendment]) -> Commit:
        """Commit an amendment, which `describe` makes of the dataset of that moment: anew when another was faster.

        Raises DatasetError, and what `describe` raises: nothing is amended then.
        """
        while True:
            commits = self.finish()
            if commit := self.commits.amend(describe(self.history()), len(commits)):
                return commit

    def described(self, key: str) -> Manifest:
        """Return how many files of a committed delivery went which way. Raises DatasetError."""
        digest, table = self._manifest(key)
        accepted = int((table["verdict"] == "accepted").sum())
        return Manifest(key, digest, accepted, len(table) - accepted)

    def begun(self) -> bool:
        """Say whether anything was ever committed here. Raises StorageUnavailable."""
        return self.store.exists(IDENTITY) or any(self.store.list("commits"))

    def mend(self) -> None:
        """Put a damaged dataset.json back when it follows from the settings. Raises as `finish` does."""
        self.commits.read(self._derived)

    def _derived(self) -> bytes:
        return canonical(msgspec.to_builtins(self._identity(key_of(self.settings))))

    def finish(self) -> list[Commit]:
        """Finish what a process that was killed had committed, before anything else is judged; return all commits.

        A damaged dataset.json is put back when it follows from the settings. Raises DatasetError for a broken chain of
        commits, a manifest that is missing and one that no commit names.
        """
        commits, there = self.commits.listed(self._derived)
        for commit in commits:
            if commit.manifest and commit.file not in there:
                self._make_manifest(commit)
        for entry in self.store.list("drafts"):
            if entry.modified < time.time() - DRAFT_SECONDS:  # of a process that was killed before its commit
                self.store.delete(entry.key)
        return commits

    def _make_manifest(self, commit: Commit) -> None:
        """Make the manifest of a commit from its draft."""
        self.store.write_if_absent(commit.file, self._committed(commit))
        self.store.delete(commit.draft)

    def altered(self) -> list[str]:
        """Return the keys of manifests that are missing or are not what was committed, in the order of the commits.

        Raises DatasetError when the commits themselves are not whole.
        """
        damaged = []
        self.commits.listed()
        for commit in self.commits.manifests():
            try:
                self._manifest(commit.manifest)
            except Damaged:
                damaged.append(commit.manifest)
        return damaged

    def fingerprint(self, key: str) -> str:
        """Return the SHA-256 of the listing that a committed delivery was judged with. Raises DatasetError."""
        return fact(self._committed(self.commits.of(key)), "fingerprint", "")

    def snapshot(self) -> Snapshot | None:
        """Name the present state of the dataset and keep that name; None while nothing is committed.

        The name follows from what the dataset holds: an amendment that is undone gives back the name from before it.
        """
        tables, amended = self._now()
        keys = decisive(tables)
        if not keys:
            return None
        identity = msgspec.to_builtins(self.commits.identity())
        manifests = {key: self._manifest(key)[0] for key in keys}
        data = canonical(msgspec.to_builtins(Named(FORMAT, identity, manifests, *said_of(tables, amended))))
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
        scanner. `source` is the family a file name belongs to (`source_pattern`), never the name itself. Radiographs
        that some delivery brought under another label, themselves or a near copy, are left out: `contested`. Amendments
        count as far as they were made before the snapshot. Raises DatasetError when a manifest is missing or has
        changed.
        """
        named = self._snapshot(snapshot.digest)
        tables, amended = {}, named.amended()
        for key, expected in named.manifests.items():
            actual, table = self._manifest(key)
            if actual != expected:
                raise DatasetError(
                    f"manifest {key} has digest {actual[:12]}, snapshot {snapshot.digest[:12]} was made with "
                    f"{expected[:12]}; restore {self.store.uri}/manifests/{key}.parquet from a backup"
                )
            tables[key] = table
        out = contested(tables, amended) | amended.withdrawn.keys()
        accepted = [
            table[(table["verdict"] == "accepted") & ~table["digest"].isin(out)].assign(delivery=key)
            for key, table in tables.items()
        ]
        rows = pd.concat(accepted, ignore_index=True)
        rows["label"] = amended.labelled(rows)
        rows["source"] = rows["file"].map(self._source)
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

    def _source(self, file: str) -> str:
        match = re.search(self.settings.source_pattern, file.rpartition("/")[2])
        return match[match.lastindex or 0] if match else ""

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

    def _identity(self, key: bytes) -> Identity:
        s = self.settings
        fingerprint = hmac.new(key, b"fingerprint of the patient key", hashlib.sha256).hexdigest()[:16]
        split = (s.split_mode, s.split_validation, s.split_held_out)
        return Identity(IDENTITY_FORMAT, list(s.classes), *split, fingerprint)

    def _check_identity(self, key: bytes) -> None:
        """Compare dataset.json with the settings."""
        if (fixed := self.commits.identity()) is None:
            return
        for name, value in msgspec.structs.asdict(self._identity(key)).items():
            if (was := getattr(fixed, name)) != value:
                shown = "is another one" if name == "patient_key" else f"{was!r}, now {value!r}"
                raise DatasetError(
                    f"the dataset in {self.store.uri} was made with another setting: {name} {shown}; "
                    f"put the setting back, or start a new store"
                )


_ROW_COLUMNS = (
    *("digest", "suffix", "label", "patient", "side", "delivery", "source"),
    *("width", "height", "mode", "view", "sex", "age_years", "scanner"),
)


def _radiograph_key(digest: str, suffix: str) -> str:
    return f"radiographs/{digest[:2]}/{digest}{suffix}"
