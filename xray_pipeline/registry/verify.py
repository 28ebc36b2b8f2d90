"""One checker of what must always hold between ledger, registry and artifacts, for `xray verify` and for tests.

It changes nothing and stops at nothing it can go past, so that one look shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xray_pipeline.base.errors import DatasetError, LedgerError, ModelRefused, RegistryError, RegistryUnavailable
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry import loading, tidied
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.manual_changes import gone_with
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.questions import approval, has_crowned
from xray_pipeline.registry.state import State, spoken


@dataclass(frozen=True)
class Verified:
    """One thing that was checked: the invariant ("I1", ..., "ledger"), whether it holds, and a sentence."""

    invariant: str
    holds: bool
    text: str


def check(registry: Registry) -> list[Verified]:
    """Check that ledger, registry and artifacts agree: I1, I2, I3 and I6, each with what was found. Changes nothing.

    Raises RegistryUnavailable, StorageUnavailable when they can't be asked.
    """
    settings = registry.settings
    ledger = Ledger(open_store(settings.store, settings), settings.idle_days)  # what was read once is read anew
    try:
        state = ledger.state()
    except LedgerError as error:
        return [Verified("ledger", False, str(error))]
    findings = [Verified("ledger", True, f"the chain of {state.sequence} entries is whole")]
    try:
        aliases = registry.aliases()
        versions = registry.versions()
    except RegistryUnavailable:
        raise
    except (RegistryError, DatasetError) as error:
        return [*findings, Verified("I3", False, str(error))]
    entries = ledger.entries()
    missing, lost = registry.missing(state.registered), registry.lost()
    accepted = _accepted(state, entries, missing)
    if lost:
        text = f"it lacks versions {sorted(lost)}; restore its newest backup, or run the night and `xray adopt`"
        findings.append(Verified("I3", False, f"MLflow is older than the ledger: {text}"))
    findings += _check_aliases(state, aliases)
    by_hand = {state.champion, *state.previous} - state.registered.keys()
    findings += _check_versions(versions, missing, accepted, by_hand)
    findings += _check_names(state, entries)
    findings += _check_artifacts(registry, state, entries, accepted.keys())
    return findings + _check_promotions(entries)


def _check_aliases(state: State, aliases: Mapping[str, int | None]) -> list[Verified]:
    same = state.aliases == dict(aliases)
    shown = ", ".join(f"{alias} {spoken(version)}" for alias, version in aliases.items())
    text = f"MLflow has {shown}" + ("" if same else f"; the ledger says {state.aliases}: run the night or `xray adopt`")
    by_hand = [Verified("I3", False, f"neither accepted nor undone: {entry.summary()}") for entry in state.by_hand]
    return [Verified("I3", same, text), *by_hand]


def _accepted(state: State, entries: Sequence[Entry], missing: Iterable[int]) -> dict[int, Entry]:
    """Return the versions that an older MLflow lost, which a person accepted, each with the entry that told of it."""
    closed = [entry for entry in entries if entry not in state.by_hand]
    lost = {version: entry for entry in closed for version in gone_with(entry)}
    return {version: lost[version] for version in missing if version in lost and version not in state.aliases.values()}


def _check_names(state: State, entries: Sequence[Entry]) -> list[Verified]:
    """Check that every entry means by a number the candidate and the files that it was registered with."""
    findings = []
    for entry in entries:
        first = state.registered.get(entry.version or 0)
        if first is None or first is entry:
            continue
        pairs = (first.candidate, entry.candidate), (first.artifact, entry.artifact)
        if entry.kind == "registered" or any(theirs not in ("", ours) for ours, theirs in pairs):
            findings.append(
                Verified("I2", False, f"{entry.summary()}, a number that {first.summary()} gave to another")
            )
    return findings


def _check_versions(
    versions: Mapping[int, Mapping[str, str]],
    missing: Mapping[int, str],
    accepted: Mapping[int, Entry],
    by_hand: Container[int | None],
) -> list[Verified]:
    """Check that each candidate is one version, beside those that a hand crowned before they were registered."""
    carriers: dict[str, list[int]] = {}
    for version, tags in versions.items():
        carriers.setdefault(tags.get("xray.candidate", ""), []).append(version)
    findings = []
    for numbers in (numbers for candidate, numbers in carriers.items() if candidate and len(numbers) > 1):
        crowned = [number for number in numbers if number in by_hand]
        why = f", as {crowned} became champion by hand before it was registered" if crowned else ""
        findings.append(
            Verified("I2", len(numbers) - len(crowned) < 2, f"versions {numbers} carry the same candidate{why}")
        )
    for version, how in missing.items():
        text = how if version in versions else "is in the ledger but not in MLflow"
        if version in accepted:
            text += f", which is accepted: {accepted[version].summary()}"
        findings.append(Verified("I2", version in accepted, f"version {version} {text}"))
    return findings or [Verified("I2", True, f"{len(versions)} versions, each of another candidate")]


def _check_artifacts(
    registry: Registry, state: State, entries: Sequence[Entry], accepted: Container[int]
) -> list[Verified]:
    """Look at the files of every version that was ever registered, promoted or made champion by hand and accepted."""
    findings: list[Verified] = []
    if state.champion is None:
        findings.append(Verified("I1", True, "no champion yet: no version was ever promoted"))
    within_reach = [version for version in (state.champion, state.challenger, *state.previous) if version is not None]
    crowned = [entry.version for entry in entries if entry.version is not None and has_crowned(entry)]
    proven: set[tuple[str, str]] = set()
    sound = 0
    removed = tidied.of_versions(open_store(registry.settings.store, registry.settings), state.registered)
    for version, removal in removed.items():
        findings.append(
            Verified("I1", version not in (*within_reach, *crowned), f"version {version}: {removal.sentence()}")
        )
    for version in dict.fromkeys([*within_reach, *state.registered, *crowned]):
        if version in accepted or version in removed:
            continue
        role = "kept to promote or go back to" if version in within_reach else "registered or champion once"
        role = "the champion" if version == state.champion else role
        try:
            model = registry.resolve(version)
            if (model.source, model.artifact) not in proven:
                loading.prove(registry, version)
        except RegistryUnavailable:
            raise
        except (RegistryError, ModelRefused) as error:
            findings.append(Verified("I1", False, f"version {version} ({role}): {error}"))
            continue
        proven.add((model.source, model.artifact))
        sound += version not in within_reach
        if version in within_reach:
            findings.append(Verified("I1", True, f"version {version} ({role}) loads and its files match their digest"))
    if sound:
        findings.append(Verified("I1", True, f"{sound} more versions load and their files match their digests"))
    return findings


def _check_promotions(entries: Sequence[Entry]) -> list[Verified]:
    promoted = [entry for entry in entries if entry.kind == "promoted"]
    bad = [(entry, why) for entry in promoted if (why := _undecided(entries[: entry.sequence - 1], entry))]
    if bad:
        return [Verified("I6", False, f"{entry.summary()}: {why}") for entry, why in bad]
    return [Verified("I6", True, f"{len(promoted)} promotions, each with its decision and approval")]


def _undecided(before: Sequence[Entry], entry: Entry) -> str:
    if not any(e.kind == "registered" and e.version == entry.version and e.decision for e in before):
        return "no decision of the policy stands before it"
    if entry.decision.get("promotion") == "auto" or approval(before, entry.version, entry.champion_before):
        return ""
    return "nobody approved exactly that"
