"""What the ledger says of each version, as tags and lines for somebody who only opens MLflow.

Functions of the entries alone, so they can be told again after a crash and are never the source of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xray_pipeline.base.text import shortened
from xray_pipeline.registry.ledger import Entry, Ledger

HEADING = "**What became of it**"
FIRST = 2500
"""Characters of a description's first part, of the 5,000 that MLflow keeps."""
_ALL, _LINE = 5000, 1000
_EARLIER = "- earlier: `xray history`"


@dataclass
class Tale:
    """A version's first entry, its status, the entry that made it so, and one line for each decision about it."""

    registered: Entry
    status: str
    entry: Entry
    lines: list[str] = field(default_factory=list)

    @property
    def tags(self) -> dict[str, str]:
        """The tags a version should carry."""
        entry, first = self.entry, self.registered
        return {
            "xray.ledger-entry": f"{first.sequence} {first.digest}",
            **{"xray.status": self.status, "xray.since": entry.at, "xray.by": entry.who, "xray.why": entry.why},
        }

    def description(self, present: str) -> str:
        """Return the version's description (Markdown): what was written when it was registered, then the lines.

        Of them the newest that MLflow has room for; the ledger has all.
        """
        first = shortened(present.partition(HEADING)[0].rstrip(), FIRST)
        if not self.lines:
            return first
        left = _ALL - len("\n\n".join([first, HEADING, _EARLIER]))
        told: list[str] = []
        for line in reversed(self.lines):
            told.append(f"- {shortened(line, _LINE)}")
            left -= len(told[-1]) + 1
            if left < 0:
                told[-1] = _EARLIER
                break
        return "\n\n".join([first, HEADING, "\n".join(reversed(told))])


def tell(entries: Iterable[Entry]) -> dict[int, Tale]:
    """Return the tale of every registered version."""
    tales: dict[int, Tale] = {}
    champion: int | None = None
    for entry in entries:
        version = entry.version
        if entry.kind == "registered" and version is not None:
            _pass_over(tales, entry)
            tales[version] = Tale(entry, "challenger", entry)
        elif version is not None and version in tales:
            _next(tales, champion, entry, version)
            if entry.kind in ("promoted", "rolled-back", "manual-change"):
                champion = version
    return tales


def _pass_over(tales: dict[int, Tale], entry: Entry) -> None:
    """Of two challengers the newer one waits; what was asked about the older one is void."""
    for tale in tales.values():
        if tale.status == "challenger":
            tale.status, tale.entry = "superseded", entry
            tale.lines.append(f"{entry.at[:19]}Z superseded by version {entry.version}")


_WORDS = {"promoted": "champion", "rolled-back": "champion", "rejected": "rejected", "manual-change": "champion"}
_LEFT = {"rolled-back": "rolled back"}


def _next(tales: dict[int, Tale], champion: int | None, entry: Entry, version: int) -> None:
    tale = tales[version]
    said = f"by {entry.who}: {entry.why}"
    what = {"rolled-back": "made champion again", "manual-change": "made champion by hand in MLflow"}
    status = _WORDS.get(entry.kind)
    if entry.kind == "manual-change" and version == champion:
        return
    tale.lines.append(f"{entry.at[:19]}Z {what.get(entry.kind, entry.kind)} {said}")
    if status is None:
        return
    tale.status, tale.entry = status, entry
    if status == "champion" and champion is not None and champion != version and champion in tales:
        before = tales[champion]
        before.status, before.entry = _LEFT.get(entry.kind, "replaced"), entry
        before.lines.append(f"{entry.at[:19]}Z {before.status}: version {version} is champion, {said}")


def why_void(
    ledger: Ledger, version: int, expected_champion: int | None, models: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Say why a question about promoting `version` over `expected_champion` is void; "" while it stands.

    `models` is what the numbers meant when it was asked (`State.models`).
    """
    state = ledger.state()
    if other := state.other(models or {}):
        return other
    if version not in state.registered:
        return f"version {version} is not in the ledger"
    if state.champion != expected_champion:
        by = f" ({state.since.summary()})" if state.since else ""
        return f"the champion is now {_name(state.champion)}, was {_name(expected_champion)} when asked{by}"
    if state.challenger not in (version, None):
        return f"version {state.challenger} was registered meanwhile; decide on that, or reject it first"
    rejected = [e for e in ledger.entries() if e.kind == "rejected" and e.version == version]
    return f"it was rejected: {rejected[-1].summary()}" if rejected else ""


def _name(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
