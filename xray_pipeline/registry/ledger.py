"""The append-only record of decisions; the registry's aliases follow it.

    ledger/00000000.json     the beginning: a random identity, by which a registry knows its ledger
    ledger/00000001.json     the first entry, and so on without a gap

An entry holds the SHA-256 of the file before it, so none can be changed, dropped or slipped in without breaking every
later one. Writing the next file, if absent, is the commit point of registering, promoting and rolling back: of two
writers one gets the place, the other is told who was first. A version's number means one candidate for good. The state
(who is champion) is never stored, only replayed. The trade-off: replaying reads every entry; benchmarks/history.py
says what that costs.

The chain shows tampering in the middle; that the last entries are the last is vouched for by the registry, which
remembers the newest entry it followed (see registered_model.py).
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

from xray_pipeline.base import records
from xray_pipeline.base.errors import LedgerError, ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.registry import chronology, entries
from xray_pipeline.registry.entries import FORMAT, KINDS, Entry, Move
from xray_pipeline.registry.state import State, replay

log = logging.getLogger(__name__)


class LostRace(LedgerError):
    """Another entry took the place this one was meant for; `winner` is that entry."""

    def __init__(self, winner: Entry) -> None:
        super().__init__(f"{winner.summary()} came first; look at the state again and decide anew")
        self.winner = winner


class Ledger:
    """The ledger in `<store>/ledger`. Entries once read are kept: they can't change without breaking the chain."""

    def __init__(self, store: Store, idle_days: int = 400) -> None:
        """Open it; between two entries `idle_days` lie at most, a clock that says more is wrong."""
        self.store, self.idle_days = store.child("ledger"), idle_days
        self._identity = ""
        self._entries: list[Entry] = []
        self._reading = threading.Lock()

    def identity(self, make: bool = True) -> str:
        """Return the ledger's identity (64 hex); without one it is made, or "" is returned.

        Raises LedgerError, StorageUnavailable.
        """
        if not self._identity and not self._read_beginning() and make:
            beginning = {"format": FORMAT, "kind": "beginning", "id": secrets.token_hex(16)}
            self.store.write_if_absent(_key(0), records.canonical(beginning))
            self._read_beginning()
        return self._identity

    def entries(self, at: datetime | None = None) -> list[Entry]:
        """Return all entries, or those surely made by `at` (an aware time), oldest first.

        Raises LedgerError, naming the entry, for a gap, a broken chain or a format this version does not know.
        """
        with self._reading:  # pages and triggers share one ledger between threads
            known = self._read_on()
        return known if at is None else known[: _made_by(known, at)[0]]

    def unsure(self, at: datetime) -> list[Entry]:
        """Return the entries that follow `entries(at)` and may have been made by then: a clock was wrong."""
        known = self.entries()
        sure, possibly = _made_by(known, at)
        return known[sure:possibly]

    def state(self, at: datetime | None = None) -> State:
        """Replay the entries, only those surely made by `at` (an aware time). Raises LedgerError."""
        return replay(self.entries(at), self._identity)

    def append(self, move: Move, expected_head: str | None = None) -> Entry:
        """Commit a move as the next entry and return that.

        With `expected_head` (the `head` of the state it was decided on) it is committed right after that entry or not
        at all: LostRace names the entry that came first. Without it, it takes the next free place. Raises LedgerError,
        also for a version or candidate that is registered already, digests that are not the version's and a clock that
        is ahead, StorageUnavailable.
        """
        if move.kind not in KINDS or not move.who.strip() or not move.why.strip():
            raise LedgerError(
                f"an entry needs a kind ({', '.join(KINDS)}), who and why; got {move.kind!r}, {move.who!r}, "
                f"{move.why!r}"
            )
        while True:
            known = self.entries()
            head = known[-1].digest if known else self.identity()
            if expected_head is not None and head != (expected_head or self.identity()):
                raise LostRace(_successor(known, expected_head or self.identity()))
            _check_meaning(known, move)
            store_time = datetime.fromtimestamp(self.store.clock(), UTC)
            at = chronology.stamp(_now(), store_time, known[-1].at if known else "", self.idle_days)
            data = entries.file_of(move, len(known) + 1, head, at)
            if self.store.write_if_absent(_key(len(known) + 1), data):
                entry = entries.read(data, len(known) + 1, head)
                with self._reading:  # so that a ledger that is put back from now on is noticed
                    if len(self._entries) == len(known):
                        self._entries.append(entry)
                log.info("ledger: %s", entry.summary())
                return entry

    def _read_on(self) -> list[Entry]:
        numbers = sorted(_number(entry.key, self.store) for entry in self.store.list())
        if not numbers:
            if self._entries or self._identity:
                raise LedgerError(f"the ledger in {self.store.uri} is gone; restore it from a backup")
            return []
        for expected, number in enumerate(numbers):
            if number != expected:
                raise LedgerError(f"entry {expected} is missing from {self.store.uri}; restore it from a backup")
        self.identity()
        known = len(self._entries)
        if len(numbers) <= known:
            raise LedgerError(
                f"the ledger in {self.store.uri} has {len(numbers) - 1} entries and had {known} when this process read "
                f"it; restore its newest copy, or restart this process if an older one was put back on purpose"
            )
        new = numbers[known + 1 :]
        for number, data in zip(new, records.read_all(self.store, [_key(number) for number in new]), strict=True):
            before = self._entries[-1].digest if self._entries else self._identity
            self._entries.append(entries.read(data, number, before))
        return list(self._entries)

    def _read_beginning(self) -> bool:
        try:
            data = self.store.read(_key(0))
        except ObjectNotFound:
            return False
        entries.check_format(data, 0)
        self._identity = records.digest_of(data)
        return True


def _key(sequence: int) -> str:
    return f"{sequence:08d}.json"


def _number(key: str, store: Store) -> int:
    stem = key.removesuffix(".json")
    if not (len(key) == 13 and len(stem) == 8 and stem.isascii() and stem.isdigit()):
        raise LedgerError(f"{key!r} in {store.uri} is not a ledger entry; move it away")
    return int(stem)


def _successor(known: Sequence[Entry], head: str) -> Entry:
    for entry in known:
        if entry.previous == head:
            return entry
    raise LedgerError(f"no entry has digest {head[:12]}; the state it was decided on is not of this ledger")


def _made_by(known: Sequence[Entry], at: datetime) -> tuple[int, int]:
    return chronology.made_by([entry.at for entry in known], chronology.text(at), _now())


def _check_meaning(known: Sequence[Entry], move: Move) -> None:
    """Raise LedgerError when a move would give a number a second meaning, or a candidate a second number."""
    for entry in known:
        if entry.kind != "registered":
            continue
        same_number, same_candidate = entry.version == move.version, entry.candidate == move.candidate != ""
        if move.kind == "registered" and (same_number or same_candidate):
            raise LedgerError(f"{move.candidate[:12]} can't be registered as version {move.version}: {entry.summary()}")
        pairs = (entry.candidate, move.candidate), (entry.artifact, move.artifact)
        if same_number and any(meant and said and meant != said for meant, said in pairs):
            raise LedgerError(
                f"version {entry.version} is candidate {entry.candidate[:12]}, artifact {entry.artifact[:12]} "
                f"({entry.summary()}), not {move.candidate[:12]}, {move.artifact[:12]}"
            )


def _now() -> str:
    return chronology.text(datetime.now(UTC))
