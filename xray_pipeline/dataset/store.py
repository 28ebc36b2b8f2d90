"""Everything accepted so far: radiographs by content digest, one immutable manifest per delivery, and amendments.

    radiographs/<2>/<digest>.jpg|.png    the stored bytes, named by their SHA-256
    pictures/<2>/<digest>.png            thumbnails of what is kept out (thumbnails.py)
    commits/<n>.json                     the n-th commit: a manifest's key and SHA-256, or an amendment; writing it is
                                         the commit point
    drafts/<delivery>.<digest>.parquet   the manifest until then
    manifests/<delivery>.parquet         every file of the delivery with its verdict; <delivery>.<digest>.parquet once
                                         an erasure rewrote it
    snapshots/<digest>.json              the manifests a training run reads, and what amendments say of their rows
    dataset.json                         what the first commit fixed: classes, split, fingerprint of the patient key

Nothing is believed unread: a manifest is what its commit names, a commit what the next one does, dataset.json what the
first does, a snapshot and a radiograph what their names say (commits.py).

A manifest is the intake table made permanent, so accounting for every file and listing the quarantine need nothing
else. What a check needs of each is read once on each machine and kept in its cache (extracts.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pandas as pd

from xray_pipeline.base.errors import (
    AccessDenied,
    Damaged,
    DatasetError,
    ObjectNotFound,
    RadiographDamaged,
    RadiographErased,
    StorageError,
    StorageUnavailable,
)
from xray_pipeline.base.records import canonical, digest_of, exactly, parsed
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, check_writes_once, open_store
from xray_pipeline.dataset.amendments import Amended, Amendment, together
from xray_pipeline.dataset.commits import IDENTITY, Commit, Commits
from xray_pipeline.dataset.erasing import Erased, Trace, digests_of, erased_by
from xray_pipeline.dataset.history import History
from xray_pipeline.dataset.identity import check_identity, identity_of
from xray_pipeline.dataset.manifests import Manifests
from xray_pipeline.dataset.parquet import FORMAT
from xray_pipeline.dataset.rows import Rows
from xray_pipeline.dataset.snapshots import Named, counts, decisive, held, radiographs, said_of
from xray_pipeline.dataset.split import key_of
from xray_pipeline.dataset.thumbnails import radiograph_key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """One committed delivery: its key, the SHA-256 of the manifest, and how many files went which way."""

    delivery: str
    digest: str
    accepted: int
    quarantined: int


@dataclass(frozen=True)
class Snapshot:
    """A named state of the dataset. `manifests` are their keys; `images` and `patients` count what is accepted, and
    those `held_out` what of that is held out."""

    digest: str
    manifests: tuple[str, ...]
    images: int
    patients: int
    held_out_images: int = 0
    held_out_patients: int = 0


class Dataset:
    """The dataset in `<store>/dataset`. Nothing in it is ever changed, only added; drafts and erasures aside."""

    def __init__(self, settings: Settings, store: Store | None = None, commits: Commits | None = None) -> None:
        self.settings = settings
        self.store = (store or open_store(settings.store, settings)).child("dataset")
        self.commits = commits or Commits(self.store)
        self._manifests = Manifests(self.store, self.commits, settings.cache, self.read)
        self.thumbnails: Final = self._manifests.thumbnails

    def patient_key(self) -> bytes:
        """Return the key of the patient hash.

        From the settings, else from `<home>/patient.key`, which is made once with mode 0600, but never for a store on
        S3: several machines may share it, and each would make its own. Losing the key orphans every patient's split, so
        a key that does not fit the dataset is refused, and so is a file that is cut short or that others may read.
        Raises DatasetError.
        """
        key = key_of(self.settings)
        check_identity(self.commits, self.settings, key)
        return key

    def manifests(self) -> list[str]:
        """Return the keys of all committed deliveries, sorted. Raises DatasetError for a broken chain of commits."""
        return sorted(commit.manifest for commit in self.commits.manifests())

    def manifest(self, key: str) -> pd.DataFrame:
        """Return a committed delivery's table, one row per file.

        Raises DatasetError when it is missing, not what was committed, or of an unknown format.
        """
        return self._manifests.table(key)

    def history(self) -> History:
        """Return what all committed deliveries brought, as amendments correct it. Raises DatasetError."""
        rows, amendments = self._now()
        return History(rows, together(amendments), self._erased(amendments))

    def amended(self) -> Amended:
        """Return what all amendments say together. Raises DatasetError for a broken chain of commits."""
        return together(self.commits.amendments())

    def erased(self) -> Erased | None:
        """Return all that was erased, None for nothing. Raises DatasetError."""
        return self._erased(self.commits.amendments())

    def _erased(self, amendments: Mapping[int, Amendment]) -> Erased | None:
        if not any(amendment.erases for amendment in amendments.values()):
            return None
        return erased_by(amendments, self.patient_key(), self.settings.rules.patient_pattern)

    def traces(self, named: Set[str] = frozenset()) -> Iterator[Trace]:
        """Yield what still tells of what was erased, as `Manifests.traces`. Raises DatasetError, StorageError."""
        if erased := self.erased():
            yield from self._manifests.traces(erased, named)

    def unnamed(self) -> list[str]:
        """Return the files of manifests whose commits are lost. Raises as `Commits.read`."""
        return self.commits.unnamed(entry.key for entry in self.store.list("manifests"))

    def put_away(self, unnamed: list[str]) -> None:
        """Make drafts of such manifests again. Raises StorageError."""
        self._manifests.put_away(unnamed)

    def stale_extracts(self) -> list[Path]:
        """Return what the cache of this machine holds of manifests as they no longer are. Raises DatasetError."""
        return self._manifests.stale_extracts()

    def _now(self) -> tuple[Rows, dict[int, Amendment]]:
        """Return the rows of all manifests and all amendments, both of one moment."""
        commits = self.commits.read()
        rows = self._manifests.rows(commit.manifest for commit in commits if commit.manifest)
        return rows, {commit.number: commit.amendment for commit in commits if commit.amendment}

    def begin(self) -> None:
        """Fix what the first commit fixes, or compare it with the settings.

        Raises StorageError for a store that does not keep what is written once, DatasetError for other settings.
        """
        check_writes_once(self.store)
        key = self.patient_key()
        if not self.store.write_if_absent(IDENTITY, canonical(msgspec.to_builtins(identity_of(self.settings, key)))):
            check_identity(self.commits, self.settings, key)

    def append(self, key: str, data: bytes, after: int) -> bool:
        """Commit a manifest right after commit number `after`; False when another has that place."""
        return self._manifests.add(key, data, after)

    def amend(self, describe: Callable[[History], Amendment]) -> Commit:
        """Commit an amendment, which `describe` makes of the dataset of that moment: anew when another was faster.

        An erasure rewrites the manifests that tell of what it erases, and names what they are from then on. Raises
        DatasetError, and what `describe` raises: nothing is amended then.
        """
        while True:
            commits = self.finish()
            history = self.history()
            amendment = describe(history)
            if erased := self._erased({len(commits) + 1: amendment}) if amendment.erases else None:
                tables = {commit.manifest: self.manifest(commit.manifest) for commit in commits if commit.manifest}
                amendment = self._manifests.rewritten(amendment, tables, erased)
            if commit := self.commits.amend(amendment, len(commits)):
                self.finish()
                return commit

    def described(self, key: str) -> Manifest:
        """Return how many files of a committed delivery went which way. Raises DatasetError."""
        table = self.manifest(key)
        accepted = int((table["verdict"] == "accepted").sum())
        return Manifest(key, self._committed_as(key), accepted, len(table) - accepted)

    def begun(self) -> bool:
        """Say whether anything was ever committed here. Raises StorageUnavailable."""
        return self.store.exists(IDENTITY) or any(self.store.list("commits"))

    def mend(self) -> None:
        """Put a damaged dataset.json back when it follows from the settings. Raises as `finish` does."""
        self.commits.read(self._derived)

    def _derived(self) -> bytes:
        return canonical(msgspec.to_builtins(identity_of(self.settings, key_of(self.settings))))

    def finish(self) -> list[Commit]:
        """Finish what a process that was killed had committed, before anything else is judged; return all commits.

        A damaged dataset.json is put back when it follows from the settings. Raises DatasetError for a broken chain of
        commits, a manifest that is missing and one that no commit names.
        """
        commits, there = self.commits.listed(self._derived)
        self._manifests.finish(commits, there)
        return commits

    def altered(self) -> list[str]:
        """Return the keys of manifests that are missing or are not what was committed, in the order of the commits.

        Raises DatasetError when the commits themselves are not whole.
        """
        damaged = []
        self.commits.listed()
        for commit in self.commits.manifests():
            try:
                self.manifest(commit.manifest)
            except Damaged:
                damaged.append(commit.manifest)
        return damaged

    def fingerprint(self, key: str) -> str:
        """Return the SHA-256 of the listing that a committed delivery was judged with. Raises DatasetError."""
        return self._manifests.fact(key, "fingerprint")

    def snapshot(self) -> Snapshot | None:
        """Name the present state of the dataset and keep that name; None while nothing is committed.

        The name follows from what the dataset holds: an amendment that is undone gives back the name from before it.
        """
        rows, amendments = self._now()
        keys = decisive(rows)
        if not keys:
            return None
        identity = msgspec.to_builtins(self.commits.identity())
        manifests = {key: self._committed_as(key) for key in keys}
        named = Named(FORMAT, identity, manifests, *said_of(rows, together(amendments)))
        data = canonical(msgspec.to_builtins(named))
        digest = digest_of(data)
        if not self.store.write_if_absent(f"snapshots/{digest}.json", data):
            self.store.write(f"snapshots/{digest}.json", data)  # what is there is not what its name says
        return self._describe(digest, named)

    def open_snapshot(self, digest: str) -> Snapshot:
        """Return a snapshot made earlier. Raises DatasetError when it is unknown or its bytes changed."""
        return self._describe(digest, self._snapshot(digest))

    def rows(self, snapshot: Snapshot, erased: bool = False) -> pd.DataFrame:
        """Return the snapshot's radiographs, one row each, sorted by digest.

        Columns: digest, suffix, label, patient, side, delivery, source, width, height, mode, view, sex, age_years,
        scanner. `source` is the family a file name belongs to (`source_pattern`), never the name itself. Radiographs
        that some delivery brought under another label, themselves or a near copy, are left out: `contested`. Amendments
        count as far as they were made before the snapshot. What was erased since is left out as well, or with `erased`
        told by what stays of it. Raises DatasetError when a manifest is missing or has changed.
        """
        return self._rows(named := self._snapshot(snapshot.digest), named.amended(), erased)

    def _rows(self, named: Named, amended: Amended, erased: bool = False) -> pd.DataFrame:
        """Return the radiographs in a snapshot's manifests, as amendments that are not its own may correct them."""
        rows = self._named_rows(named)
        kept = held(rows, amended, digests_of(self.commits.amendments()), erased)
        return radiographs(rows, kept, self._manifests.columns, amended, self.settings.source_pattern)

    def _named_rows(self, named: Named) -> Rows:
        """Return the rows of a snapshot's manifests. Raises DatasetError when one is not what was committed then."""
        rows = self._manifests.rows(named.manifests)  # first: it tells of a manifest or a commit that is damaged
        for key, expected in named.manifests.items():
            if (actual := self._committed_as(key)) != expected:
                raise DatasetError(
                    f"manifest {key} has digest {actual[:12]}, a snapshot was made with {expected[:12]}; restore "
                    f"{self.store.uri}/manifests/{key}.parquet from a backup"
                )
        return rows

    def since(self, snapshot: Snapshot) -> tuple[int, int, int]:
        """Return how many of the radiographs in a snapshot's manifests amendments relabelled, left out and brought back
        since it was made: it does not apply them. Raises DatasetError."""
        named = self._snapshot(snapshot.digest)
        then, now = (
            self._rows(named, amended, erased=True).set_index("digest")["label"]
            for amended in (named.amended(), self.amended())
        )
        both = then.index.intersection(now.index)
        return int((then[both] != now[both]).sum()), len(then) - len(both), len(now) - len(both)

    def holds_erased(self, snapshot: Snapshot) -> bool:
        """Whether something of a snapshot was erased since. Raises DatasetError."""
        gone = digests_of(self.commits.amendments())
        return bool(gone) and bool(self.rows(snapshot, erased=True)["digest"].isin(gone).any())

    def require_whole(self, snapshot: Snapshot) -> None:
        """Raise RadiographErased for a snapshot of which something was erased since; DatasetError."""
        if self.holds_erased(snapshot):
            raise RadiographErased(
                f"radiographs of snapshot {snapshot.digest[:12]} were erased since, see `xray amend list`: nothing can "
                f"be trained on it again; the next night trains on what is left"
            )

    def read(self, digest: str, suffix: str) -> bytes:
        """Return a stored radiograph. Raises RadiographDamaged, RadiographErased, StorageUnavailable."""
        key, cure = radiograph_key(digest, suffix), "run `xray repair`"
        try:
            data = self.store.read(key)
        except ObjectNotFound as error:
            if digest in digests_of(self.commits.amendments()):
                raise RadiographErased(f"radiograph {digest[:12]} was erased, see `xray amend list`") from error
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
        key = radiograph_key(digest, suffix)
        with contextlib.suppress(StorageError):  # what is there can't even be read; or the next line says it, too
            if self.store.write_if_absent(key, data):
                return
        self.store.write(key, data)

    def _describe(self, digest: str, named: Named) -> Snapshot:
        gone = digests_of(self.commits.amendments())
        counted = counts(digest, self._named_rows(named), named.amended(), gone, self.settings.cache)
        return Snapshot(digest, tuple(sorted(named.manifests)), *counted)

    def _snapshot(self, digest: str) -> Named:
        key = f"snapshots/{digest}.json"
        try:
            data = exactly(self.store, key, digest, "its name")
        except ObjectNotFound as error:
            raise DatasetError(f"no snapshot {digest} in {self.store.uri}") from error
        return parsed(data, Named, FORMAT, f"{key} in {self.store.uri}")

    def _committed_as(self, key: str) -> str:
        """Return the SHA-256 that a manifest was committed with, whatever was erased of it since."""
        return self.commits.versions(key)[0].digest
