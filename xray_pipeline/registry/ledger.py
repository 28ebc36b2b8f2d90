"""The append-only record of decisions; the registry's aliases follow it.

    ledger/00000000.json     the beginning: a random identity, by which a registry knows its ledger
    ledger/00000001.json     the first entry, and so on without a gap

An entry holds the SHA-256 of the file before it, so none can be changed, dropped or slipped in without breaking every
later one; its own digest is that of its file. Writing the next file, if absent, is the commit point of registering,
promoting and rolling back: of two writers one gets the place, the other is told who was first. A version's number
means one candidate for good. The state (who is champion) is never stored, only replayed. The trade-off: replaying reads
every entry; benchmarks/history.py says what that costs.

The chain shows tampering in the middle; that the last entries are the last is vouched for by the registry, which
remembers the newest entry it followed (see registry.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec

from xray_pipeline.base.errors import LedgerError, ObjectNotFound
from xray_pipeline.base.storage import DirectoryStore, Store
from xray_pipeline.registry import chronology

log = logging.getLogger(__name__)

FORMAT = 1
Kind = Literal["registered", "refused", "approved", "rejected", "promoted", "rolled-back", "manual-change"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"decision_json": "decision"}):
    """What an entry's file holds; see `Entry`."""

    format: int
    sequence: int
    kind: Kind
    at: str
    who: str
    why: str
    version: int | None
    candidate: str
    champion_before: int | None
    decision_json: msgspec.Raw
    snapshot: str
    artifact: str
    request: str
    previous: str


class Entry(Record, frozen=True):
    """One decision.

    `at` is what the clock said, ISO 8601 in UTC; the order is that of `sequence`; `who` a person or the pipeline;
    `version` the registry's number; `candidate` and `artifact` digests (of what was trained, and of every file of its
    logged model), which say what the number means;
    `champion_before` the version in production when it was decided, None when there was none; `decision` the policy's
    verdict or, of a manual change, the aliases before and after; `request` names what asked for it, so that asking
    again adds nothing; `previous` and `digest` are SHA-256 of the files before and of this one.
    """

    digest: str = ""

    @property
    def decision(self) -> dict[str, Any]:
        """The decision, read anew each time: a ledger is replayed far more often than one of its decisions is."""
        return dict(msgspec.json.decode(self.decision_json))

    def summary(self) -> str:
        """Say in one line what was decided, by whom and when."""
        what = f"version {self.version}" if self.version is not None else f"candidate {self.candidate[:12]}"
        return f"entry {self.sequence}: {self.kind} {what} by {self.who} at {self.at} ({self.why})"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON-able values."""
        found = msgspec.structs.asdict(self) | {"decision": self.decision}
        del found["decision_json"], found["format"]
        return found


@dataclass(frozen=True)
class State:
    """What the entries up to `sequence` amount to; `head` is the digest of the last of them.

    `champion` and `challenger` are versions; `since` is the entry that made the champion; `previous` are the earlier
    champions, oldest first, of which a rollback takes the last. `registered` maps a version to its first entry, `used`
    are all numbers that entries name. `unsettled` are the changes made by hand in the registry that nobody has accepted
    or undone.
    """

    head: str = ""
    sequence: int = 0
    champion: int | None = None
    challenger: int | None = None
    since: Entry | None = None
    previous: tuple[int, ...] = ()
    registered: Mapping[int, Entry] = field(default_factory=dict)
    unsettled: tuple[Entry, ...] = ()
    used: frozenset[int] = frozenset()

    @property
    def aliases(self) -> dict[str, int]:
        """The aliases the registry should have."""
        wanted = {"champion": self.champion, "challenger": self.challenger}
        return {alias: version for alias, version in wanted.items() if version is not None}

    def version_of(self, candidate: str) -> int | None:
        """Return the version a candidate was registered as, None when it was not."""
        return next((v for v, entry in self.registered.items() if entry.candidate == candidate), None)

    def models(self, *versions: int | None) -> dict[str, list[str]]:
        """Return what numbers mean: the candidate and artifact digest of each that was registered, by its text."""
        known = {version: self.registered[version] for version in versions if version and version in self.registered}
        return {str(version): [entry.candidate, entry.artifact] for version, entry in known.items()}

    def other(self, models: Mapping[str, Sequence[str]]) -> str:
        """Say which numbers mean another model now than in `models`, "" when none does."""
        now = self.models(*map(int, models))
        return ", ".join(
            f"version {number} is another model in this ledger (candidate {now[number][0][:12]}) than the one meant "
            f"({meant[0][:12]})"
            if number in now
            else f"version {number} (candidate {meant[0][:12]}) is not in this ledger"
            for number, meant in models.items()
            if now.get(number) != list(meant)
        )


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

    @classmethod
    def beside(cls, other: Ledger) -> Ledger:
        """Return the same ledger with nothing read yet, to check it anew."""
        fresh = cls.__new__(cls)
        fresh.store, fresh.idle_days, fresh._identity, fresh._entries = other.store, other.idle_days, "", []
        fresh._reading = threading.Lock()
        return fresh

    def identity(self, make: bool = True) -> str:
        """Return the ledger's identity (64 hex); without one it is made, or "" is returned.

        Raises LedgerError, StorageUnavailable.
        """
        if not self._identity and not self._read_beginning() and make:
            beginning = {"format": FORMAT, "kind": "beginning", "id": secrets.token_hex(16)}
            self.store.write_if_absent(_key(0), _canonical(beginning))
            self._read_beginning()
        return self._identity

    def entries(self, at: datetime | None = None) -> list[Entry]:
        """Return all entries, or those surely made by `at` (an aware time), oldest first.

        Raises LedgerError, naming the entry, for a gap, a broken chain or a format this version does not know.
        """
        with self._reading:  # pages and triggers share one ledger between threads
            entries = self._read_on()
        return entries if at is None else entries[: _made_by(entries, at)[0]]

    def unsure(self, at: datetime) -> list[Entry]:
        """Return the entries that follow `entries(at)` and may have been made by then: a clock was wrong."""
        entries = self.entries()
        sure, possibly = _made_by(entries, at)
        return entries[sure:possibly]

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
        for number, data in zip(numbers[known + 1 :], self._read(numbers[known + 1 :]), strict=True):
            self._entries.append(_parse(data, number, self._entries[-1].digest if self._entries else self._identity))
        return list(self._entries)

    def append(
        self,
        kind: Kind,
        *,
        who: str,
        why: str,
        version: int | None = None,
        candidate: str = "",
        champion_before: int | None = None,
        decision: Mapping[str, Any] | None = None,
        snapshot: str = "",
        artifact: str = "",
        request: str = "",
        expected_head: str | None = None,
    ) -> Entry:
        """Commit the next entry and return it.

        With `expected_head` (the `head` of the state it was decided on) it is committed right after that entry or not
        at all: LostRace names the entry that came first. Without it, it takes the next free place. A `request` that has
        an entry of this kind already gets that entry back. Raises LedgerError, also for a version or candidate that
        is registered already, digests that are not the version's and a clock that is ahead, StorageUnavailable.
        """
        if kind not in KINDS or not who.strip() or not why.strip():
            raise LedgerError(
                f"an entry needs a kind ({', '.join(KINDS)}), who and why; got {kind!r}, {who!r}, {why!r}"
            )
        content: dict[str, Any] = {
            "kind": kind,
            "who": who,
            "why": why,
            "version": version,
            "candidate": candidate,
            "champion_before": champion_before,
            "decision": _finite(decision or {}),
            "snapshot": snapshot,
            "artifact": artifact,
            "request": request,
        }
        while True:
            entries = self.entries()
            if earlier := _asked_before(entries, kind, request):
                log.info("nothing to add to the ledger: %s", earlier.summary())
                return earlier
            head = entries[-1].digest if entries else self.identity()
            if expected_head is not None and head != (expected_head or self.identity()):
                raise LostRace(_successor(entries, expected_head or self.identity()))
            _check_names(entries, content)
            store_time = datetime.fromtimestamp(self.store.clock(), UTC)
            at = chronology.stamp(_now(), store_time, entries[-1].at if entries else "", self.idle_days)
            place = {"format": FORMAT, "sequence": len(entries) + 1, "previous": head}
            data = _canonical({**content, **place, "at": at})
            if self.store.write_if_absent(_key(len(entries) + 1), data):
                entry = _parse(data, len(entries) + 1, head)
                log.info("ledger: %s", entry.summary())
                return entry

    def asked_before(self, kind: Kind, request: str) -> Entry | None:
        """Return the entry of this kind that `request` led to earlier; None without one, or for the request ""."""
        return _asked_before(self.entries(), kind, request)

    def state(self, at: datetime | None = None) -> State:
        """Replay the entries, only those surely made by `at` (an aware time). Raises LedgerError."""
        return replay(self.entries(at), self._identity)

    def _read_beginning(self) -> bool:
        try:
            data = self.store.read(_key(0))
        except ObjectNotFound:
            return False
        _check_format(data, 0)
        self._identity = hashlib.sha256(data).hexdigest()
        return True

    def _read(self, numbers: Sequence[int]) -> Iterable[bytes]:
        keys = [_key(number) for number in numbers]
        if isinstance(self.store, DirectoryStore) or len(keys) < 10:
            return map(self.store.read, keys)
        with ThreadPoolExecutor(32) as pool:  # a store behind a network: latency, not work
            return list(pool.map(self.store.read, keys))


def replay(entries: Iterable[Entry], head: str = "") -> State:
    """Return the state that entries amount to, from the first one on; `head` is the state's when there are none."""
    replayed = _Replay()
    for entry in entries:
        replayed.step(entry)
        head, replayed.sequence = entry.digest, entry.sequence
    return State(
        head,
        replayed.sequence,
        replayed.champion,
        replayed.challenger,
        replayed.since,
        tuple(replayed.previous),
        replayed.registered,
        tuple(replayed.unsettled),
        frozenset(replayed.used),
    )


def aliases_since(entries: Iterable[Entry], sequence: int) -> list[dict[str, int | None]]:
    """Return champion and challenger as they were after entry `sequence` (0: before any) and after each later one."""
    replayed = _Replay()
    found: list[dict[str, int | None]] = []
    if sequence == 0:
        found.append({"champion": None, "challenger": None})
    for entry in entries:
        replayed.step(entry)
        if entry.sequence >= sequence:
            found.append({"champion": replayed.champion, "challenger": replayed.challenger})
    return found


class _Replay:
    """A state in the making: mutable, because ten thousand copies cost more than the steps."""

    def __init__(self) -> None:
        self.sequence = 0
        self.champion: int | None = None
        self.challenger: int | None = None
        self.since: Entry | None = None
        self.previous: list[int] = []
        self.previous_before_hand: list[int] = []
        self.registered: dict[int, Entry] = {}
        self.unsettled: list[Entry] = []
        self.used: set[int] = set()

    def step(self, entry: Entry) -> None:
        """Apply one entry; `refused` and `approved` change nothing."""
        if entry.version is not None:
            self.used.add(entry.version)
        if entry.kind == "registered" and entry.version is not None:
            self.registered.setdefault(entry.version, entry)
            self.challenger = entry.version
        elif entry.kind == "manual-change":
            self._manual_change(entry)
        elif entry.kind in ("promoted", "rolled-back"):
            self._crown(entry, entry.version, back=entry.kind == "rolled-back")
        if entry.kind in ("rejected", "promoted", "rolled-back") and self.challenger == entry.version:
            self.challenger = None

    def _manual_change(self, entry: Entry) -> None:
        if not self.unsettled:
            self.previous_before_hand = list(self.previous)
        decision = entry.decision
        after, found = decision["after"], decision.get("found", {})
        self.used.update(version for version in (*after.values(), *found.values()) if version is not None)
        self._crown(entry, after["champion"], back=False)
        self.challenger = after["challenger"]
        if "settles" not in decision:
            self.unsettled.append(entry)
            return
        if decision["action"] == "undone":
            self.previous = self.previous_before_hand
        self.unsettled = []

    def _crown(self, entry: Entry, version: int | None, back: bool) -> None:
        """Make a version the champion; `back` to an earlier one forgets those that came after it."""
        if version == self.champion:
            return
        if back and version in self.previous:
            while self.previous.pop() != version:
                continue
        elif self.champion is not None:
            self.previous.append(self.champion)
        self.champion, self.since = version, entry


def _key(sequence: int) -> str:
    return f"{sequence:08d}.json"


def _number(key: str, store: Store) -> int:
    stem = key.removesuffix(".json")
    if not (len(key) == 13 and len(stem) == 8 and stem.isascii() and stem.isdigit()):
        raise LedgerError(f"{key!r} in {store.uri} is not a ledger entry; move it away")
    return int(stem)


def _check_format(data: bytes, sequence: int) -> None:
    try:
        found = msgspec.json.decode(data)["format"]
    except (ValueError, KeyError, TypeError) as error:  # msgspec leaves UnicodeDecodeError as it is
        raise LedgerError(f"entry {sequence} is damaged ({error}); restore it from a backup") from error
    if found != FORMAT:
        raise LedgerError(f"entry {sequence} has format {found!r}; this version reads {FORMAT}")


def _parse(data: bytes, sequence: int, previous: str) -> Entry:
    try:
        data.decode()  # what is left raw is not looked at otherwise
        file = _READER.decode(data)
    except ValueError as error:
        _check_format(data, sequence)
        raise LedgerError(
            f"entry {sequence} does not have the fields of format {FORMAT} ({error}); restore it from a backup"
        ) from error
    if file.format != FORMAT:
        _check_format(data, sequence)
    if file.sequence != sequence or file.previous != previous:
        raise LedgerError(
            f"the chain breaks at entry {sequence}: it follows {file.previous[:12]}, the entry before it is "
            f"{previous[:12]}; one of the two was changed: restore the ledger from a backup"
        )
    return Entry(**msgspec.structs.asdict(file), digest=hashlib.sha256(data).hexdigest())


_READER = msgspec.json.Decoder(Record)


def _successor(entries: Sequence[Entry], head: str) -> Entry:
    for entry in entries:
        if entry.previous == head:
            return entry
    raise LedgerError(f"no entry has digest {head[:12]}; the state it was decided on is not of this ledger")


def _asked_before(entries: Sequence[Entry], kind: Kind, request: str) -> Entry | None:
    return next((entry for entry in entries if request and (entry.kind, entry.request) == (kind, request)), None)


def _made_by(entries: Sequence[Entry], at: datetime) -> tuple[int, int]:
    return chronology.made_by([entry.at for entry in entries], chronology.text(at), _now())


def _check_names(entries: Sequence[Entry], content: Mapping[str, Any]) -> None:
    """Raise LedgerError when an entry would give a number a second meaning, or a candidate a second number."""
    version, names = content["version"], (content["candidate"], content["artifact"])
    for entry in entries:
        if entry.kind != "registered":
            continue
        if content["kind"] == "registered" and (entry.version == version or entry.candidate == names[0] != ""):
            raise LedgerError(f"{names[0][:12]} can't be registered as version {version}: {entry.summary()}")
        known = (entry.candidate, entry.artifact)
        if entry.version == version and any(a and b and a != b for a, b in zip(names, known, strict=True)):
            raise LedgerError(
                f"version {version} is candidate {known[0][:12]}, artifact {known[1][:12]} ({entry.summary()}), not "
                f"{names[0][:12]}, {names[1][:12]}"
            )


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """Return JSON-able values with NaN and infinities as text: JSON has none, and a refusal may be about them."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return chronology.text(datetime.now(UTC))
