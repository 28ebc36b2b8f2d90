"""What became of each version, as tags and a description for somebody who only opens MLflow.

Made from the ledger's entries alone, so it can be written again after a crash and is never the source of anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xray_pipeline.base.text import shortened
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.state import State, spoken
from xray_pipeline.registry.version_tags import OUTDATED

_Aliases = Mapping[str, int | None]

WHERE = (
    "*Decide in Airflow, not here: its page Champion asks for a promotion, reopens and rolls back. An alias that is "
    "moved by hand is recorded as such.*"
)
HEADING = "**What became of it**"
_ALL, _FIRST, _LINE = 5000, 2500, 1000
"""Characters of a description that MLflow keeps on PostgreSQL, those of its first part, and of one line."""
_EARLIER = "- earlier: `xray history`"


@dataclass
class VersionStatus:
    """A version's first entry, its status, its newest entry, and one line for each decision about it."""

    registered: Entry
    status: str
    entry: Entry
    lines: list[str] = field(default_factory=list)

    @property
    def tags(self) -> dict[str, str]:
        """The tags a version should carry."""
        entry = self.entry
        decided = f"{entry.at[:10]} by {entry.who}, ledger entry {entry.sequence}"
        return {"xray.status": self.status, "xray.decided": decided}

    @property
    def description(self) -> str:
        """The version's description (Markdown): why it was registered, where to decide about it, then the lines.

        Of them the newest that MLflow has room for; the ledger has all.
        """
        first = f"{shortened(self.registered.why, _FIRST)}\n\n{WHERE}"
        if not self.lines:
            return first
        left = _ALL - len("\n\n".join([first, HEADING, _EARLIER]))
        shown: list[str] = []
        for line in reversed(self.lines):
            shown.append(f"- {shortened(line, _LINE)}")
            left -= len(shown[-1]) + 1
            if left < 0:
                shown[-1] = _EARLIER
                break
        return "\n\n".join([first, HEADING, "\n".join(reversed(shown))])

    def becomes(self, status: str, entry: Entry, text: str) -> None:
        """Note that `entry` gave the version another status, and what to say of it."""
        self.status = status
        self.note(entry, text)

    def note(self, entry: Entry, text: str) -> None:
        """Add the line on a decision."""
        self.entry = entry
        self.lines.append(f"{entry.at[:19]}Z {text}")


def describe_versions(registry: Registry) -> None:
    """Write on each version in MLflow what became of it, where that is not written yet.

    Raises RegistryError, RegistryUnavailable.
    """
    present = registry.versions()
    for version, status in statuses(registry.ledger.entries()).items():
        missing = {key: text for key, text in status.tags.items() if present.get(version, {}).get(key) != text}
        if missing and version in present:
            registry.describe(version, status.description)
            registry.untag(version, present[version].keys() & OUTDATED)
            registry.tag(version, missing)  # last: they say that the rest is said


def statuses(entries: Iterable[Entry]) -> dict[int, VersionStatus]:
    """Return the status of every registered version."""
    by_version: dict[int, VersionStatus] = {}
    state = State()
    for entry in entries:
        before = state.aliases
        state.step(entry)
        if entry.kind == "registered" and entry.version is not None:
            by_version[entry.version] = VersionStatus(entry, "challenger", entry)
        changes = _changes(entry, before, state.aliases)
        for version, (status, text) in changes.items():
            if version in by_version:
                by_version[version].becomes(status, entry, text)
        if entry.version in by_version.keys() - changes and entry.kind not in ("registered", "manual-change"):
            said = "not answered" if entry.kind == "not-answered" else f"{entry.kind} by {entry.who}"
            by_version[entry.version].note(entry, f"{said}: {entry.why}")
    return by_version


_CROWNS = {
    "promoted": ("promoted", "replaced"),
    "rolled-back": ("made champion again", "rolled back"),
    "manual-change": ("made champion by hand in MLflow", "replaced"),
}
"""What an entry that makes a version champion says of that, and what becomes of the champion before."""


def _changes(entry: Entry, before: _Aliases, after: _Aliases) -> dict[int | None, tuple[str, str]]:
    """Return status and line of each version that an entry gives another one; `before` and `after` are aliases."""
    by, changes = f"by {entry.who}: {entry.why}", dict[int | None, tuple[str, str]]()
    if entry.kind == "rejected":
        changes[entry.version] = "rejected", f"rejected {by}"
    waited, waits = before["challenger"], after["challenger"]
    if waited not in (waits, after["champion"], *changes):
        changes[waited] = "superseded", f"superseded by version {waits}" if waits else f"no longer challenger, {by}"
    if waits not in (None, waited) and entry.kind != "registered":
        waiting = "made challenger by hand in MLflow" if entry.kind == "manual-change" else entry.kind
        changes[waits] = "challenger", f"{waiting} {by}"
    if before["champion"] != after["champion"]:
        crowned, left = _CROWNS[entry.kind]
        changes[before["champion"]] = left, f"{left}: {spoken(after['champion'])} is champion, {by}"
        changes[after["champion"]] = "champion", f"{crowned} {by}"
    return changes
