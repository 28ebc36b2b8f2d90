"""The dataset's commits: a chain of small files, each naming the commit before it, and the manifest that it commits or
holding an amendment (amendments.py).

    dataset.json  <──names──  commits/1  <──names──  commits/2  <──names──  commits/3  <──remembers──  the registry
    (what the first               │                     │                      │
     commit fixed)            manifests/mon         manifests/tue         manifests/wed

So no commit can be changed, dropped, moved or slipped in without breaking every later one, and no manifest without its
commit. Two nights that commit at once want the same place; who is second judges again, for its rows may be duplicates
now:

    night A: judges mon against 1..41             night B: judges tue against 1..41
      writes drafts/mon                             writes drafts/tue
      writes commits/42 if absent: done             writes commits/42 if absent: taken
      makes manifests/mon of the draft              judges tue against 1..42, writes its draft anew
                                                    writes commits/43 if absent: done

Writing commits/<n> is the commit point. Who is killed before it leaves a draft that nobody reads; who is killed after
it leaves a draft of which the next process makes the manifest (`Manifests.finish`). An erasure does the same with the
manifests that it rewrites: its commit names what each is from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from xray_pipeline.base.errors import Damaged, DatasetError, ObjectNotFound
from xray_pipeline.base.records import canonical, digest_of, parsed, read_all
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.amendments import Amendment

FORMAT = 1
IDENTITY_FORMAT = 1
IDENTITY = "dataset.json"


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first commit fixes: `patient_key` is the key's fingerprint."""

    format: int
    classes: list[str]
    split_mode: str
    split_validation: float
    split_held_out: float
    patient_key: str


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The `number`-th commit: a manifest's key and SHA-256, or an amendment; and the SHA-256 of the file before (of
    dataset.json)."""

    format: int
    number: int
    previous: str
    manifest: str = ""
    digest: str = ""
    amendment: Amendment | None = None

    @property
    def place(self) -> str:
        """The key of this commit."""
        return _place(self.number)


@dataclass(frozen=True)
class Version:
    """A manifest as a commit made it, or as an erasure rewrote it: the key of the manifest, the SHA-256 of its bytes,
    and the commit that names this (`place`)."""

    manifest: str
    digest: str
    place: str
    rewritten: bool = False

    @property
    def file(self) -> str:
        """Where it lies. What an erasure rewrote lies beside the old one, which then goes: nothing is overwritten."""
        return f"manifests/{self.manifest}{f'.{self.digest}' if self.rewritten else ''}.parquet"

    @property
    def draft(self) -> str:
        """Where it lies until the commit is made."""
        return draft_of(self.manifest, self.digest)


def state_of(commits: Sequence[Commit]) -> str:
    """Return the name of the dataset's state after these commits, the SHA-256 of the last one's file; "" for none."""
    return digest_of(canonical(msgspec.to_builtins(commits[-1]))) if commits else ""


def draft_of(manifest: str, digest: str) -> str:
    """Return where a manifest of this SHA-256 lies until it is committed."""
    return f"drafts/{manifest}.{digest}.parquet"


class Commits:
    """The commits in the dataset's store. Those once read are kept: they can't change without breaking the chain."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._commits: list[Commit] = []
        self._digests: list[str] = []
        self._versions: dict[str, list[Version]] = {}
        self._begun = False
        self._reading = threading.Lock()  # several threads look up what was erased

    def read(self, derive: Callable[[], bytes] | None = None) -> list[Commit]:
        """Return all commits, oldest first.

        With `derive`, which gives the dataset.json of these settings, a damaged one is put back when the first commit
        names exactly that. Raises Damaged, naming the file, for a gap or a broken chain, DatasetError for an unknown
        format.
        """
        with self._reading:
            return self._read(derive)

    def _read(self, derive: Callable[[], bytes] | None) -> list[Commit]:
        numbers = {self._number(entry.key) for entry in self.store.list("commits")}
        for number in range(1, max(len(numbers), len(self._commits)) + 1):
            if number not in numbers:
                raise Damaged(f"{_place(number)} is missing from {self.store.uri}; restore it from a backup")
        places = [_place(number) for number in range(len(self._commits) + 1, len(numbers) + 1)]
        for place, data in zip(places, read_all(self.store, places), strict=True):
            self._append(data, place)
        if not self._begun:
            self._begin(derive)
        return list(self._commits)

    def listed(self, derive: Callable[[], bytes] | None = None) -> tuple[list[Commit], set[str]]:
        """Return all commits, and the keys of the manifests that are there.

        Raises as `read` does, and Damaged for a manifest that no commit names.
        """
        there = {entry.key for entry in self.store.list("manifests")}  # first: each has its commit already
        commits = self.read(derive)
        if strays := self.unnamed(there):
            raise Damaged(
                f"no commit in {self.store.uri} names {', '.join(strays[:5])}: the last commits are missing; restore "
                f"them from a backup, or give them up with `xray adopt --lost`"
            )
        return commits, there

    def unnamed(self, there: Iterable[str]) -> list[str]:
        """Return those of some keys of manifests that no commit names. Raises as `read` does."""
        self.read()
        return sorted(set(there) - {version.file for of_one in self._versions.values() for version in of_one})

    def manifests(self) -> list[Commit]:
        """Return the commits of manifests, oldest first. Raises as `read` does."""
        return [commit for commit in self.read() if commit.manifest]

    def versions(self, manifest: str) -> list[Version]:
        """Return a manifest as it was committed and as erasures rewrote it, the one that counts last.

        Raises DatasetError when there is none, and as `read` does.
        """
        if manifest not in self._versions:
            self.read()
        if manifest not in self._versions:
            raise DatasetError(
                f"no commit in {self.store.uri} names manifest {manifest}: the newest one here, "
                f"{_place(len(self._commits))}, was changed, or later ones are missing; restore the newest copy of them"
            )
        return self._versions[manifest]

    def amendments(self) -> dict[int, Amendment]:
        """Return all amendments by their numbers, oldest first. Raises as `read` does."""
        return {commit.number: commit.amendment for commit in self.read() if commit.amendment}

    def digest(self, number: int) -> str:
        """Return the SHA-256 of the `number`-th commit's file, "" when there is none. Raises as `read` does."""
        return self._digests[number - 1] if 0 < number <= len(self.read()) else ""

    def head(self) -> str:
        """Return the SHA-256 of the newest commit's file, "" before the first. Raises as `read` does."""
        return self._digests[-1] if self.read() else ""

    def add(self, manifest: str, digest: str, after: int) -> Commit | None:
        """Commit a manifest as the one after number `after`; None when another has that place. Raises DatasetError."""
        return self._take(Commit(FORMAT, after + 1, self._before(after), manifest, digest))

    def amend(self, amendment: Amendment, after: int) -> Commit | None:
        """Commit an amendment as `add` does a manifest, and with what it raises."""
        return self._take(Commit(FORMAT, after + 1, self._before(after), amendment=amendment))

    def _before(self, after: int) -> str:
        self.read()
        return self._digests[after - 1] if after else digest_of(self.store.read(IDENTITY))

    def _take(self, commit: Commit) -> Commit | None:
        return commit if self.store.write_if_absent(commit.place, canonical(msgspec.to_builtins(commit))) else None

    def identity(self) -> Identity | None:
        """Return what dataset.json says, None without one. Raises DatasetError for a damaged one, or another format."""
        try:
            return self._opened()[1]
        except ObjectNotFound:
            return None

    def _opened(self) -> tuple[bytes, Identity]:
        data = self.store.read(IDENTITY)
        return data, parsed(data, Identity, IDENTITY_FORMAT, f"{IDENTITY} in {self.store.uri}")

    def _append(self, data: bytes, place: str) -> None:
        commit = parsed(data, Commit, FORMAT, f"{place} in {self.store.uri}")
        if wrong := self._wrong(commit):
            raise Damaged(f"{place} in {self.store.uri} is damaged: {wrong}; restore it from a backup")
        before = self._digests[-1] if self._digests else commit.previous
        if commit.place != place or commit.previous != before:
            raise Damaged(
                f"the chain of commits in {self.store.uri} breaks at {place}: it follows {commit.previous[:12]}, the "
                f"commit before it is {before[:12]}; one of the two was changed: restore them from a backup"
            )
        self._commits.append(commit)
        if commit.manifest:
            self._versions[commit.manifest] = [Version(commit.manifest, commit.digest, commit.place)]
        for manifest, digest in commit.amendment.manifests.items() if commit.amendment else ():
            self._versions[manifest].append(Version(manifest, digest, commit.place, rewritten=True))
        self._digests.append(digest_of(data))

    def _wrong(self, commit: Commit) -> str:
        """Say what a commit can't mean, "" for one that fits those before it."""
        if bool(commit.manifest and commit.digest) is bool(commit.amendment):
            return "it is neither a manifest's commit nor an amendment"
        if commit.manifest in self._versions:
            return f"{self._versions[commit.manifest][0].place} committed manifest {commit.manifest} already"
        if commit.amendment:
            if strange := sorted(commit.amendment.manifests.keys() - self._versions.keys()):
                return f"it rewrites manifest {strange[0]}, which no commit before it names"
            for number in commit.amendment.undoes():
                if not (0 < number <= len(self._commits) and self._commits[number - 1].amendment):
                    return f"it undoes {number}, which is no amendment before it"
        return ""

    def _begin(self, derive: Callable[[], bytes] | None) -> None:
        """Check that dataset.json is what the first commit names; without commits it may be anything, or missing."""
        named = self._commits[0].previous if self._commits else ""
        try:
            data, _ = self._opened()
        except ObjectNotFound:
            sound = not named
        except Damaged:
            if derive is None:
                raise
            sound = False
        else:
            sound = named in ("", digest_of(data))
        if not sound:
            ours = derive() if derive else b""
            if not ours or named not in ("", digest_of(ours)):
                raise Damaged(
                    f"{IDENTITY} in {self.store.uri} is missing or not what {_place(1)} names; the next night or `xray "
                    f"ingest` puts it back if the settings are those it was made with, else restore both from a backup"
                )
            self.store.write(IDENTITY, ours)
        self._begun = bool(self._commits)

    def _number(self, key: str) -> int:
        stem = key.removeprefix("commits/").removesuffix(".json")
        if not (stem.isascii() and stem.isdigit() and key == _place(int(stem)) and int(stem)):
            raise Damaged(f"{key} in {self.store.uri} is no commit; move it away")
        return int(stem)


def _place(number: int) -> str:
    return f"commits/{number:08d}.json"
