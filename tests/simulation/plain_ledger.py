"""The rules of the ledger, written anew and plainly: what each entry makes of champion and challenger, and may be made.

Nothing of the package's own replay is used: what the two say must agree.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Decided:
    """What entries amount to."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    champion: int | None = None
    challenger: int | None = None
    crowned: list[int] = field(default_factory=list)
    """Every version that was ever champion, the latest last."""
    candidates: dict[int, str] = field(default_factory=dict)
    artifacts: dict[int, str] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    aliases: list[tuple[int | None, int | None]] = field(default_factory=lambda: [(None, None)])
    """Champion and challenger before the first entry and after each."""

    def wrong(self, data: bytes) -> list[str]:
        """Take the next entry's file; return what is wrong with it, by invariant."""
        entry = json.loads(data)
        before = self.digests[-1] if self.digests else self.beginning
        found = [] if entry["previous"] == before else ["I3: an entry does not follow the one before it"]
        if entry["sequence"] != len(self.entries) + 1:
            found.append("I3: an entry is not in its place")
        found += getattr(self, "_" + entry["kind"].replace("-", "_"))(entry)
        self.entries.append(entry)
        self.digests.append(hashlib.sha256(data).hexdigest())
        self.aliases.append((self.champion, self.challenger))
        return found

    beginning: str = ""
    before_hand: tuple[int | None] | None = None
    """The champion before the first change by hand that nobody settled yet."""

    def _registered(self, entry: dict[str, Any]) -> list[str]:
        version, candidate, found = entry["version"], entry["candidate"], []
        if candidate in self.candidates.values():
            found.append("I2: a candidate is registered twice")
        if version in self.candidates:
            found.append("I2: a number is given twice")
        again = entry["who"] == "gives-up"  # the entry that registered it is lost
        if entry["champion_before"] != self.champion and not again:
            found.append("I6: registered against another champion than that of the moment")
        if not entry["decision"]:
            found.append("I6: registered without a decision")
        self.candidates[version], self.artifacts[version] = candidate, entry["artifact"]
        self.challenger = version
        return found

    def _refused(self, entry: dict[str, Any]) -> list[str]:
        return self._new(entry, "request")

    def _approved(self, entry: dict[str, Any]) -> list[str]:
        return self._answered(entry)

    def _not_answered(self, entry: dict[str, Any]) -> list[str]:
        return self._answered(entry)

    def _rejected(self, entry: dict[str, Any]) -> list[str]:
        found = self._answered(entry)
        self.rejected.add(entry["version"])
        if self.challenger == entry["version"]:
            self.challenger = None
        return found

    def _answered(self, entry: dict[str, Any]) -> list[str]:
        void = entry["champion_before"] != self.champion or entry["version"] not in self.candidates
        void = void or self.challenger not in (None, entry["version"]) or entry["version"] in self.rejected
        return self._new(entry, "request") + (["I6: a void question was answered"] if void else [])

    def _reopened(self, entry: dict[str, Any]) -> list[str]:
        if entry["request"].startswith("put forward "):
            return self._put_forward(entry)
        good = entry["version"] in self.rejected and self.challenger is None
        self.rejected.discard(entry["version"])
        self.challenger = entry["version"]
        return [] if good else ["I6: reopened what was not rejected, or while another waits"]

    def _put_forward(self, entry: dict[str, Any]) -> list[str]:
        """A version that was better in shadow of the champion waits, in place of one that may not be promoted."""
        version = entry["version"]
        good = version in self.candidates and version not in self.rejected | {self.champion}
        self.challenger = version
        found = self._new(entry, "request")
        if entry["champion_before"] != self.champion:
            found.append("I6: put forward against another champion than that of the moment")
        return found + ([] if good else ["I6: put forward what was rejected, is champion or was never registered"])

    def _promoted(self, entry: dict[str, Any]) -> list[str]:
        version, found = entry["version"], []
        if entry["champion_before"] != self.champion:
            found.append("I6: promoted in place of another champion than that of the moment")
        if entry["decision"]["champion"] != self.candidates.get(self.champion or 0, ""):
            found.append("I6: promoted by a decision on another champion than that of the moment")
        if version not in self.candidates:
            found.append("I6: promoted without a decision")
        elif (entry["candidate"], entry["artifact"]) != (self.candidates[version], self.artifacts[version]):
            found.append("I2: promoted as another model than was registered")
        if entry["decision"].get("promotion") != "auto" and not self._approval(version):
            found.append("I6: promoted without an approval of exactly that")
        if entry["decision"].get("promotion") == "auto" and not entry["decision"].get("automatic"):
            found.append("I6: promoted by a policy that asks a person")
        found += self._new(entry, "request")
        self._crown(version)
        return found

    def _approval(self, version: int) -> bool:
        """Whether exactly this was approved, and nothing since changed champion or challenger."""
        for entry in reversed(self.entries):
            if entry["kind"] not in ("approved", "refused", "not-answered"):
                return False
            if (entry["kind"], entry["version"], entry["champion_before"]) == ("approved", version, self.champion):
                return True
        return False

    def _rolled_back(self, entry: dict[str, Any]) -> list[str]:
        found = [] if entry["version"] in self.crowned else ["I6: rolled back to what was never champion"]
        if entry["champion_before"] != self.champion or entry["version"] == self.champion:
            found.append("I6: rolled back from another champion than that of the moment")
        found += self._new(entry, "request")
        self._crown(entry["version"])
        return found

    def _new(self, entry: dict[str, Any], *fields: str) -> list[str]:
        """Whether no entry of this kind says the same already: who asks again must be shown that one."""
        said = [entry[field] for field in ("kind", *fields)]
        again = all(said) and any([e[field] for field in ("kind", *fields)] == said for e in self.entries)
        return [f"I5: entry {entry['sequence']} says what one before it says"] if again else []

    def _manual_change(self, entry: dict[str, Any]) -> list[str]:
        """A hand may crown, and what it crowned may be undone, even to no champion where there was none before it."""
        after, undone = entry["decision"]["after"], entry["decision"].get("action") == "undone"
        found = []
        if self.before_hand is None:
            self.before_hand = (self.champion,)
        if self.champion and not after["champion"] and not (undone and self.before_hand == (None,)):
            found.append("I1: a change by hand takes the champion away")
        if "action" in entry["decision"]:
            self.before_hand = None
        if after["champion"] is None:
            self.champion = None
        else:
            self._crown(after["champion"])
        self.challenger = after["challenger"]
        return found

    def _crown(self, version: int) -> None:
        if version != self.champion:
            self.crowned.append(version)
        self.champion = version
        if self.challenger == version:
            self.challenger = None
