"""What the ledger's entries amount to: who is champion, who waits, what was decided. Replayed, never stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xray_pipeline.registry.entries import Entry, Kind


@dataclass
class State:
    """What the entries up to `sequence` amount to; `head` is the digest of the last of them. Made by `replay`.

    `champion` and `challenger` are versions; `since` is the entry that made the champion; `previous` are the earlier
    champions, oldest first, of which a rollback takes the last. `registered` maps a version to its first entry,
    `rejected` to the entry that rejected it and was not reopened since; `not_answered` is the entry that says that
    nobody answered about the challenger, None once somebody did. `used` are all numbers that entries name. `by_hand`
    are the changes made by hand in the registry that nobody has accepted or undone.
    """

    head: str = ""
    sequence: int = 0
    champion: int | None = None
    challenger: int | None = None
    since: Entry | None = None
    previous: tuple[int, ...] = ()
    registered: dict[int, Entry] = field(default_factory=dict)
    rejected: dict[int, Entry] = field(default_factory=dict)
    not_answered: Entry | None = None
    by_hand: tuple[Entry, ...] = ()
    used: set[int] = field(default_factory=set)
    _requests: dict[tuple[Kind, str], Entry] = field(default_factory=dict)
    _previous_before_hand: tuple[int, ...] = ()

    @property
    def aliases(self) -> dict[str, int | None]:
        """The version that each alias of the registry should name."""
        return {"champion": self.champion, "challenger": self.challenger}

    def version_of(self, candidate: str) -> int | None:
        """Return the version a candidate was registered as, None when it was not."""
        return next((v for v, entry in self.registered.items() if entry.candidate == candidate), None)

    def asked(self, kind: Kind, request: str) -> Entry | None:
        """Return the entry of this kind that `request` led to earlier; None without one, or for the request ""."""
        return self._requests.get((kind, request)) if request else None

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

    def step(self, entry: Entry) -> None:
        """Apply the next entry; a refusal, an approval and a missing answer change neither champion nor challenger."""
        self.head, self.sequence = entry.digest, entry.sequence
        self._requests.setdefault((entry.kind, entry.request), entry)
        version = entry.version
        if version is not None:
            self.used.add(version)
        if entry.kind == "registered" and version is not None:
            self.registered.setdefault(version, entry)
            self.challenger = version
        elif entry.kind == "rejected" and version is not None:
            self.rejected[version] = entry
        elif entry.kind == "reopened" and version is not None:
            self.rejected.pop(version, None)
            self.challenger = version
        elif entry.kind == "manual-change":
            self._change_by_hand(entry)
        elif entry.kind in ("promoted", "rolled-back"):
            self._crown(entry, version, back=entry.kind == "rolled-back")
        if entry.kind in ("rejected", "promoted", "rolled-back") and self.challenger == version:
            self.challenger = None
        if entry.kind == "not-answered" and version == self.challenger:
            self.not_answered = entry
        elif entry.kind != "refused":
            self.not_answered = None

    def _change_by_hand(self, entry: Entry) -> None:
        if not self.by_hand:
            self._previous_before_hand = self.previous
        decision = entry.decision
        after, found = decision["after"], decision.get("found", {})
        self.used.update(version for version in (*after.values(), *found.values()) if version is not None)
        self._crown(entry, after["champion"], back=False)
        self.challenger = after["challenger"]
        if "action" not in decision:  # accepted or undone
            self.by_hand += (entry,)
            return
        if decision["action"] == "undone":
            self.previous = self._previous_before_hand
        self.by_hand = ()

    def _crown(self, entry: Entry, version: int | None, back: bool) -> None:
        """Make a version the champion; `back` to an earlier one forgets those that came after it."""
        if version == self.champion:
            return
        if back and version in self.previous:
            self.previous = self.previous[: len(self.previous) - 1 - self.previous[::-1].index(version)]
        elif self.champion is not None:
            self.previous += (self.champion,)
        self.champion, self.since = version, entry


def replay(entries: Iterable[Entry], head: str = "") -> State:
    """Return the state that entries amount to, from the first one on; `head` is the state's when there are none."""
    state = State(head)
    for entry in entries:
        state.step(entry)
    return state


def aliases_since(entries: Iterable[Entry], sequence: int) -> list[dict[str, int | None]]:
    """Return champion and challenger as they were after entry `sequence` (0: before any) and after each later one."""
    state = State()
    aliases = [state.aliases] if sequence == 0 else []
    for entry in entries:
        state.step(entry)
        if entry.sequence >= sequence:
            aliases.append(state.aliases)
    return aliases


def spoken(version: int | None) -> str:
    """Name a version in a sentence; None is no version."""
    return "none" if version is None else f"version {version}"
