"""Manifests: each committed delivery's table, as its commit, or the last erasure that rewrote it, names it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

import msgspec
import pandas as pd
import pyarrow as pa

from xray_pipeline.base.errors import Damaged, ObjectNotFound
from xray_pipeline.base.records import digest_of, exactly
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset import thumbnails
from xray_pipeline.dataset.amendments import Amendment
from xray_pipeline.dataset.commits import Commit, Commits, Version, draft_of
from xray_pipeline.dataset.erasing import Erased, Trace, hidden
from xray_pipeline.dataset.extracts import Extracts
from xray_pipeline.dataset.parquet import arrow_of, facts_of, from_parquet, to_parquet
from xray_pipeline.dataset.pixels import Read
from xray_pipeline.dataset.revisions import WITHDRAWN
from xray_pipeline.dataset.rows import Rows
from xray_pipeline.dataset.thumbnails import Shelf

DRAFT_SECONDS = 86_400.0
"""Age from which a manifest that was never committed is deleted."""
FACTS = ("delivery", "fingerprint", "labels")
"""What a manifest says beside its rows: the delivery's name, the SHA-256 of the listing it was judged with, and that of
the label tables, "" for none."""


class Manifests:
    """The manifests in the dataset's store. Those once read are kept, until an erasure rewrites them."""

    def __init__(self, store: Store, commits: Commits, cache: Path, read: Read) -> None:
        """Take the dataset's store and commits, a folder of caches, and what gives a stored radiograph."""
        self.store, self.commits, self.extracts = store, commits, Extracts(cache)
        self.thumbnails = Shelf(store, self.extracts.folder, read, self._carried)
        self._tables: dict[str, tuple[str, pd.DataFrame]] = {}
        self._rows = Rows({})

    def rows(self, keys: Iterable[str]) -> Rows:
        """Return the rows of some manifests, by key. Raises as `read` does, and StorageUnavailable."""
        listed = {entry.key: f"{entry.size} {entry.version}" for entry in self.store.list("manifests")}
        parts = {}
        for key in keys:
            *replaced, version = self.commits.versions(key)
            for old in replaced:
                self.extracts.drop(old.digest)
            parts[key] = self.extracts.of(version.digest, listed.get(version.file, ""), partial(self.read, key))
        if self._rows.parts != parts:
            self._rows = Rows(parts, self.thumbnails)
        return self._rows

    def _carried(self, key: str, row: int) -> str:
        return str(self.table(key).at[row, "thumbnail"])

    def table(self, key: str) -> pd.DataFrame:
        """Return a committed delivery's table. Raises DatasetError when it is missing, or not what was committed."""
        digest = self.commits.versions(key)[-1].digest
        if self._tables.get(key, ("",))[0] != digest:
            data = self.read(key)  # an erasure may rewrite it meanwhile
            self._tables[key] = (digest_of(data), from_parquet(data, f"manifest {key}"))
        return self._tables[key][1]

    def stale_extracts(self) -> list[Path]:
        """Return the files in the cache of manifests that no commit names, or not any more. Raises DatasetError."""
        return self.extracts.stale({self.commits.versions(one.manifest)[-1].digest for one in self.commits.manifests()})

    def columns(self, key: str, names: Sequence[str]) -> pa.Table:
        """Return some columns of a committed delivery's table, which are not kept. Raises as `table` does."""
        return arrow_of(self.read(key), f"manifest {key}", names)

    def read(self, key: str) -> bytes:
        """Return a manifest's bytes. Raises Damaged when they are missing or are not what was committed."""
        version = self.commits.versions(key)[-1]
        try:
            return self._bytes(version)
        except Damaged:
            self.commits.read()
            if (now := self.commits.versions(key)[-1]) == version:
                raise
        return self._bytes(now)

    def _bytes(self, version: Version) -> bytes:
        for place in (version.file, version.draft, version.file):  # it may be finished between two looks
            with contextlib.suppress(ObjectNotFound):
                return exactly(self.store, place, version.digest, version.place)
        raise Damaged(
            f"{version.file}, committed as {version.place}, is missing from {self.store.uri}; restore it from a backup"
        )

    def fact(self, key: str, name: str) -> str:
        """Return one of the FACTS of a manifest. Raises as `read` does."""
        return facts_of(self.read(key)).get(name, "")

    def add(self, key: str, data: bytes, after: int) -> bool:
        """Commit a manifest right after commit number `after`; False when another has that place."""
        draft = draft_of(key, digest_of(data))
        self.store.write(draft, data)  # not deleted when the place is taken: an equal attempt may count on it
        commit = self.commits.add(key, digest_of(data), after)
        if commit is not None:
            self._make(Version(key, commit.digest, commit.place))
        return commit is not None

    def rewritten(self, amendment: Amendment, tables: Mapping[str, pd.DataFrame], erased: Erased) -> Amendment:
        """Return an amendment that names what manifests are without what is erased; leaves these as drafts."""
        digests = {}
        for key, table in erased.of_tables(tables):
            facts = facts_of(self.read(key))
            data = to_parquet(table, {name: facts.get(name, "") for name in FACTS})
            digests[key] = digest_of(data)
            self.store.write(draft_of(key, digests[key]), data)
        return msgspec.structs.replace(amendment, manifests=digests)

    def finish(self, commits: list[Commit], there: set[str]) -> None:
        """Make the manifests that commits name and that are not `there`; delete those that erasures replaced, and
        drafts that are done with."""
        made = set()
        for commit in commits:
            if commit.manifest:
                *replaced, version = self.commits.versions(commit.manifest)
                made |= {version.draft, *(old.draft for old in replaced)}
                if version.file not in there:
                    self._make(version)
                for old in replaced:
                    if old.file in there:
                        self.store.delete(old.file)
        for entry in self.store.list("drafts"):
            # The second is of a process that was killed before its commit.
            if entry.key in made or entry.modified < time.time() - DRAFT_SECONDS:
                self.store.delete(entry.key)

    def _make(self, version: Version) -> None:
        """Make a committed manifest from its draft, unless an erasure beside us replaces it. It is a draft again where
        an older store, which does not have the commit, was put back beside us."""
        made = b""
        try:
            data = self._bytes(version)
            made = data if self.store.write_if_absent(version.file, data) else b""
        except Damaged:
            if not self._replaced(version):
                raise
        try:
            replaced = self._replaced(version)
        except Damaged:
            if made:
                self._undo(version.file, version.draft, made)
            raise
        self.store.delete(version.draft)
        if replaced:
            self.store.delete(version.file)

    def _undo(self, file: str, draft: str, data: bytes) -> None:
        self.store.write(draft, data)
        self.store.delete(file)

    def put_away(self, keys: Iterable[str]) -> None:
        """Make drafts again of manifests that no commit names: they go once they are a day old. Raises StorageError."""
        for key in keys:
            with contextlib.suppress(ObjectNotFound):  # put away beside us
                data = self.store.read(key)
                digest = digest_of(data)
                name = key.removeprefix("manifests/").removesuffix(".parquet").removesuffix(f".{digest}")
                self._undo(key, draft_of(name, digest), data)

    def _replaced(self, version: Version) -> bool:
        """Whether an erasure has rewritten a manifest since this version of it."""
        self.commits.read()
        return self.commits.versions(version.manifest)[-1].digest != version.digest

    def traces(self, erased: Erased, named: Set[str] = frozenset()) -> Iterator[Trace]:
        """Yield the files in the dataset's store that tell of what was erased: radiographs, thumbnails, drafts of who
        was slower than the erasure, and manifests that were replaced.

        A commit stores radiographs before its manifest: those that it then kept out, as erased or withdrawn, or that
        are `named` elsewhere (digests), go unless an accepted row holds them.
        """
        gone = erased.digests | (named | self._kept_out()) - self._held() - {""}
        for folder in sorted({digest[:2] for digest in gone}):
            for kind in ("radiographs", thumbnails.FOLDER):
                for entry in self.store.list(f"{kind}/{folder}"):
                    if entry.key.rpartition("/")[2].partition(".")[0] in gone:
                        yield Trace(entry.key)
        for entry in self.store.list("drafts"):
            with contextlib.suppress(ObjectNotFound):  # finished since it was listed
                data = self.store.read(entry.key)
                delivery = facts_of(data).get("delivery", "")
                if erased.rows(from_parquet(data, entry.key), delivery).any():
                    yield Trace(entry.key)
        replaced = {
            old.file for commit in self.commits.manifests() for old in self.commits.versions(commit.manifest)[:-1]
        }
        for entry in self.store.list("manifests"):
            if entry.key in replaced:
                yield Trace(entry.key)

    def _kept_out(self) -> set[str]:
        """Return the digests of rows that are hidden, or were out as withdrawn before the last erasure: that may have
        been of near copies of them, and nothing tells of these any more."""
        newest = max(number for number, one in self.commits.amendments().items() if one.erases)
        found = set[str]()
        for commit in self.commits.manifests():
            table = self.table(commit.manifest)
            out = hidden(table["file"]) | ((table["reason"] == WITHDRAWN) & (commit.number < newest))
            found.update(table.loc[out, "digest"])
        return found

    def _held(self) -> set[str]:
        """Return the digests of accepted rows."""
        tables = [self.table(commit.manifest) for commit in self.commits.manifests()]
        return {digest for table in tables for digest in table.loc[table["verdict"] == "accepted", "digest"]}
