"""One checker of what must always hold between ledger, registry and artifacts, for `xray verify` and for tests.

It changes nothing and stops at nothing it can go past, so that one look shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xray_pipeline.errors import DatasetError, LedgerError, ModelRefused, RegistryError, RegistryUnavailable
from xray_pipeline.ledger import Entry, Ledger, State
from xray_pipeline.registry import Registry
from xray_pipeline.rollout.operations import approval


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: the invariant ("I1", ..., "ledger"), whether it holds, and a sentence."""

    invariant: str
    holds: bool
    text: str


def check(registry: Registry) -> list[Finding]:
    """Check that ledger, registry and artifacts agree: I1, I2, I3 and I6, each with what was found. Changes nothing.

    Raises RegistryUnavailable, StorageUnavailable when they can't be asked.
    """
    fresh = Ledger.beside(registry.ledger)
    try:
        state = fresh.state()
    except LedgerError as error:
        return [Finding("ledger", False, str(error))]
    findings = [Finding("ledger", True, f"the chain of {state.sequence} entries is whole")]
    try:
        aliases = registry.aliases()
        versions = registry.versions()
    except RegistryUnavailable:
        raise
    except (RegistryError, DatasetError) as error:
        return [*findings, Finding("I3", False, str(error))]
    findings += _check_aliases(state, aliases)
    findings += _check_versions(state, versions)
    findings += _check_artifacts(registry, state)
    return findings + _check_promotions(fresh)


def _check_aliases(state: State, aliases: Mapping[str, int | None]) -> list[Finding]:
    wanted = {"champion": state.champion, "challenger": state.challenger}
    same = wanted == dict(aliases)
    shown = ", ".join(f"{alias} {_name(version)}" for alias, version in aliases.items())
    text = f"MLflow has {shown}" + ("" if same else f"; the ledger says {wanted}: run the night or `xray adopt`")
    found = [Finding("I3", same, text)]
    found += [Finding("I3", False, f"neither accepted nor undone: {e.summary()}") for e in state.unsettled]
    return found


def _check_versions(state: State, versions: Mapping[int, Mapping[str, str]]) -> list[Finding]:
    carriers: dict[str, list[int]] = {}
    for version, tags in versions.items():
        carriers.setdefault(tags.get("xray.candidate", ""), []).append(version)
    double = [numbers for candidate, numbers in carriers.items() if candidate and len(numbers) > 1]
    found = [Finding("I2", False, f"versions {numbers} carry the same candidate") for numbers in double]
    found += [
        Finding("I2", False, f"version {version} is in the ledger but not in MLflow")
        for version in state.registered
        if version not in versions
    ]
    return found or [Finding("I2", True, f"{len(versions)} versions, each of another candidate")]


def _check_artifacts(registry: Registry, state: State) -> list[Finding]:
    if state.champion is None:
        return [Finding("I1", True, "no champion yet: no version was ever promoted")]
    found: list[Finding] = []
    sound: set[str] = set()
    for version in dict.fromkeys([state.champion, *filter(None, [state.challenger]), *state.previous]):
        role = "the champion" if version == state.champion else "kept to promote or go back to"
        try:
            model = registry.resolve(version)
            if model.artifact not in sound:
                registry.load(version)
        except (RegistryError, ModelRefused) as error:
            found.append(Finding("I1", False, f"version {version} ({role}): {error}"))
        else:
            sound.add(model.artifact)
            found.append(Finding("I1", True, f"version {version} ({role}) loads and its files match their digest"))
    return found


def _check_promotions(ledger: Ledger) -> list[Finding]:
    entries = ledger.entries()
    promoted = [entry for entry in entries if entry.kind == "promoted"]
    bad = [(entry, why) for entry in promoted if (why := _undecided(entries[: entry.sequence - 1], entry))]
    if bad:
        return [Finding("I6", False, f"{entry.summary()}: {why}") for entry, why in bad]
    return [Finding("I6", True, f"{len(promoted)} promotions, each with its decision and approval")]


def _undecided(before: list[Entry], entry: Entry) -> str:
    if not any(e.kind == "registered" and e.version == entry.version and e.decision for e in before):
        return "no decision of the policy stands before it"
    if entry.decision.get("promotion") == "auto" or approval(before, entry.version, entry.champion_before):
        return ""
    return "nobody approved exactly that"


def _name(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
