"""What may be asked of a version and what was answered: read from the ledger's state and entries alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xray_pipeline.base.errors import LedgerError
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.state import State, spoken


def why_void(
    state: State, version: int, expected_champion: int | None, models: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Say why a question about promoting `version` over `expected_champion` is void; "" while it may be answered.

    `models` is what the numbers meant when it was asked (`State.models`).
    """
    if other := state.other(models or {}):
        return other
    if version not in state.registered:
        return f"version {version} is not in the ledger"
    if state.champion != expected_champion:
        by = f" ({state.since.summary()})" if state.since else ""
        return f"the champion is now {spoken(state.champion)}, was {spoken(expected_champion)} when asked{by}"
    if state.challenger not in (version, None):
        return f"version {state.challenger} was registered meanwhile; decide on that, or reject it first"
    if version in state.rejected:
        return f"it was rejected: {state.rejected[version].summary()}; `xray reopen {version}` lets it be asked again"
    return ""


def approval(entries: Sequence[Entry], version: int | None, champion: int | None, who: str = "") -> Entry | None:
    """Find the approval, by `who` if given, of exactly `version` over `champion` that nothing after it made void."""
    for entry in reversed(entries):
        same = (entry.kind, entry.version, entry.champion_before) == ("approved", version, champion)
        if same and who in ("", entry.who):
            return entry
        if entry.kind not in ("approved", "refused", "not-answered"):
            return None
    return None


def why_not_reopened(state: State, version: int) -> str:
    """Say why a version can't be reopened; "" when it was rejected and no other waits."""
    if version not in state.registered:
        return f"version {version} is not in the ledger"
    if version not in state.rejected:
        return f"version {version} is not rejected; `xray promote {version}` asks about it as it is"
    if state.challenger is not None:
        return f"version {state.challenger} waits; decide on that, or reject it first"
    return ""


def has_crowned(entry: Entry) -> bool:
    """Whether an entry made its version champion: as decided, or by hand and accepted."""
    accepted = entry.kind == "manual-change" and entry.decision.get("action") == "accepted"
    return accepted or entry.kind in ("promoted", "rolled-back")


def rollback_target(entries: Sequence[Entry], state: State, to: int | None) -> int:
    """Return the version that a rollback to `to` (None: the previous champion) makes champion. Raises LedgerError."""
    if to is None:
        earlier = [version for version in state.previous if version in state.registered]
        if not earlier:
            raise LedgerError("there is no earlier champion to go back to")
        return earlier[-1]
    if to == state.champion:
        raise LedgerError(f"version {to} is the champion already ({state.since.summary() if state.since else 'none'})")
    crowned = to in state.previous or any(entry.version == to and has_crowned(entry) for entry in entries)
    if to not in state.registered or not crowned:
        raise LedgerError(f"version {to} was never champion; use `xray promote`")
    return to
