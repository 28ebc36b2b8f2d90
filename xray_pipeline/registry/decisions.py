"""Registering, promoting and rolling back: each is one ledger entry, which the registry's aliases then follow.

Every function can be repeated after a crash anywhere in it: before the entry nothing has changed but for a version no
alias names, which the repeat finds; after it `reconcile` finishes the rest. What was decided against a champion is
committed only while that is the champion: of two promotions one wins, and the other is told who did.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from xray_pipeline.base.errors import LedgerError, RegistryError, RegistryUnavailable, StorageError
from xray_pipeline.base.text import shortened
from xray_pipeline.registry.ledger import Entry, Ledger, LostRace, State
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.story import FIRST, tell, why_void

log = logging.getLogger(__name__)

HAND = "unknown, in MLflow"
"""Who changed an alias by hand: MLflow does not say."""


class Candidate(Protocol):
    """What registering needs of a trained candidate; `training.Candidate` is one."""

    @property
    def digest(self) -> str:
        """The candidate digest (64 hex)."""

    @property
    def run_id(self) -> str:
        """The MLflow run."""

    @property
    def model_uri(self) -> str:
        """The logged model, models:/m-..."""

    @property
    def model_digest(self) -> str:
        """Digest of the saved classifier."""

    @property
    def snapshot(self) -> str:
        """Digest of the snapshot it was trained on."""


def reconcile(registry: Registry) -> State:
    """Bring ledger and registry together, before anything else is done; return the state.

    Aliases that a crash left behind are moved on; a change made by hand is first recorded. A champion set by hand is
    the champion from then on; a champion alias that was removed is set again. Raises RegistryError, LedgerError.
    """
    record_manual_change(registry)
    return registry.follow()


def record_manual_change(registry: Registry) -> Entry | None:
    """Append a manual-change entry when aliases were moved by hand, or MLflow was put back to an older state.

    Once per change; None when there was none. A challenger that an older MLflow lost no longer waits.
    """
    ledger = registry.ledger
    while True:
        gone, change = registry.lost(), registry.manual_change()
        state = ledger.state()
        known = {version for entry in ledger.entries() for version in gone_with(entry)} - {state.challenger}
        if change is None and gone.keys() <= known:
            return None
        before = {"champion": state.champion, "challenger": state.challenger}
        found = dict(change.found) if change else before
        newest = state.unsettled[-1:]
        if newest and newest[0].digest == state.head and newest[0].decision["found"] == found and gone.keys() <= known:
            return newest[0]
        champion = state.champion if found["champion"] is None else found["champion"]
        after = {"champion": champion, "challenger": None if found["challenger"] in gone else found["challenger"]}
        said = [f"version {version} {how}, which is older than the ledger" for version, how in gone.items()]
        try:
            entry = ledger.append(
                "manual-change",
                who=HAND,
                why="; ".join([*([change.sentence()] if change else []), *said]),
                **names(registry, state, champion),
                champion_before=state.champion,
                decision={"before": before, "found": found, "after": after, "gone": sorted(gone)},
                expected_head=state.head,
            )
        except LostRace as lost:  # perhaps that entry explains the aliases
            log.info("looking again: %s", lost)
        else:
            log.warning("%s; `xray adopt` accepts or undoes it", entry.summary())
            return entry


def gone_with(entry: Entry) -> list[int]:
    """Return the versions that an older MLflow lost, of the entry that says so."""
    return list(entry.decision.get("gone", ())) if entry.kind == "manual-change" else []


def names(registry: Registry, state: State, version: int | None) -> Fields:
    """Return a version with its digests: the ledger's or, of one that it does not know, MLflow's."""
    if version is None or version in state.registered:
        known = state.registered.get(version or 0)
        return {"version": version, **({"candidate": known.candidate, "artifact": known.artifact} if known else {})}
    try:
        model = registry.resolve(version)
    except RegistryUnavailable:
        raise
    except RegistryError:  # an older MLflow does not have it either
        return {"version": version}
    return {"version": version, "candidate": model.candidate, "artifact": model.artifact}


def register(
    registry: Registry,
    candidate: Candidate,
    *,
    who: str,
    why: str,
    decision: Mapping[str, Any],
    champion_before: int | None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
) -> Entry:
    """Make a candidate a version with alias `challenger`, exactly once; return its ledger entry.

    Its logged model is downloaded, audited and loaded first. Raises LostRace when the champion is no longer
    `champion_before`, ModelRefused, RegistryError.
    """
    ledger = registry.ledger
    if (known := _registered(reconcile(registry), candidate.digest, champion_before)) is not None:
        tell_story(registry)
        return known
    model = registry.resolve(candidate.model_uri)
    registry.load_exactly(model, candidate.model_digest)
    version = registry.add(
        candidate.digest,
        candidate.model_uri,
        candidate.run_id,
        {
            **(tags or {}),
            "xray.model": candidate.model_digest,
            "xray.artifact": model.artifact,
            "xray.files": model.tags.get("xray.files", "{}"),
            "xray.snapshot": candidate.snapshot,
            "xray.decision": why,
        },
        shortened(description, FIRST),
    )

    def decide(state: State) -> Entry | Fields:
        return _registered(state, candidate.digest, champion_before) or {
            "kind": "registered",
            "who": who,
            "why": why,
            "version": version,
            "candidate": candidate.digest,
            "champion_before": champion_before,
            "decision": decision,
            "snapshot": candidate.snapshot,
            "artifact": model.artifact,
        }

    entry = _commit(ledger, decide)
    with _decided(entry):
        registry.follow()
        tell_story(registry)
    return entry


def refuse(
    ledger: Ledger,
    candidate: Candidate,
    *,
    who: str,
    why: str,
    decision: Mapping[str, Any],
    champion_before: int | None,
) -> Entry:
    """Record that a candidate was refused; the same refusal against the same champion is recorded once.

    The caller lets the registry follow, so that its mark knows of the entry; also of `approve` and `reject`.
    """
    for entry in ledger.entries():
        if (entry.kind, entry.candidate, entry.champion_before) == ("refused", candidate.digest, champion_before):
            return entry
    return ledger.append(
        "refused",
        who=who,
        why=why,
        candidate=candidate.digest,
        champion_before=champion_before,
        decision=decision,
        snapshot=candidate.snapshot,
        request=f"refuse {candidate.digest} against {champion_before}",
    )


def approve(
    ledger: Ledger, version: int, *, who: str, why: str, expected_champion: int | None, request: str = ""
) -> Entry:
    """Record a named person's approval of promoting `version` over `expected_champion`. Raises LedgerError if void."""
    return _answer(ledger, "approved", version, who, why, expected_champion, request)


def reject(
    ledger: Ledger, version: int, *, who: str, why: str, expected_champion: int | None, request: str = ""
) -> Entry:
    """Record a rejection of `version`; it is no longer the challenger. Raises LedgerError when the question is void."""
    return _answer(ledger, "rejected", version, who, why, expected_champion, request)


def _answer(
    ledger: Ledger,
    kind: Literal["approved", "rejected"],
    version: int,
    who: str,
    why: str,
    expected_champion: int | None,
    request: str,
) -> Entry:
    def decide(state: State) -> Entry | Fields:
        if earlier := ledger.asked_before(kind, request):
            return earlier
        if kind == "approved" and (standing := approval(ledger.entries(), version, expected_champion, who)):
            return standing
        if void := why_void(ledger, version, expected_champion):
            raise LedgerError(f"version {version} can't be {kind}: {void}")
        return {
            "kind": kind,
            "who": who,
            "why": why,
            **_registered_as(state, version),
            "champion_before": expected_champion,
            "request": request,
        }

    return _commit(ledger, decide)


def promote(
    registry: Registry,
    version: int,
    *,
    who: str,
    why: str,
    expected_champion: int | None,
    decision: Mapping[str, Any],
    promotion: Literal["approve", "auto"] = "approve",
    request: str = "",
) -> Entry:
    """Make a registered version the champion in place of `expected_champion`; return the ledger entry.

    With "approve" an `approve`d answer to exactly that question must stand in the ledger; with "auto" the policy's
    `decision` is enough. The model is audited and loaded first. Repeating it is safe. Raises LostRace when another
    champion came first, LedgerError without a decision or approval, RegistryError, ModelRefused.
    """
    ledger = registry.ledger
    reconcile(registry)

    def decide(state: State) -> Entry | Fields:
        if earlier := ledger.asked_before("promoted", request):
            if state.champion != version and state.since:
                raise LostRace(state.since)  # another decision came since
            return earlier
        if state.champion == version and state.since is not None and state.since.kind == "promoted":
            log.info("nothing to promote: %s", state.since.summary())
            return state.since
        _expect_champion(state, expected_champion)
        _expect_decided(ledger, state, version, decision, promotion)
        registry.load(version)
        told = {"who": who, "why": why, "decision": {**decision, "promotion": promotion}, "request": request}
        return {"kind": "promoted", **_crowning(state, version), **told}

    entry = _commit(ledger, decide)
    with _decided(entry, again=bool(request)):
        registry.follow()
        _tell(registry, entry)
    return entry


def rollback(
    registry: Registry,
    to: int | None = None,
    *,
    who: str,
    why: str,
    expected_champion: int | None = None,
    decision: Mapping[str, Any] | None = None,
    request: str = "",
) -> Entry:
    """Make an earlier champion (default: the previous one) the champion again; return the ledger entry.

    Its files must be there, equal their digest and load, else nothing changes. With `expected_champion` the rollback
    happens only while that is the champion. `decision` is kept in the entry: how the version was tried before. Raises
    LostRace, LedgerError when there is nothing to go back to, RegistryError, ModelRefused.
    """
    ledger = registry.ledger
    record_manual_change(registry)

    def decide(state: State) -> Entry | Fields:
        if earlier := ledger.asked_before("rolled-back", request):
            return earlier
        if expected_champion is not None:
            _expect_champion(state, expected_champion)
        target = rollback_target(ledger, state, to)
        registry.load(target)
        told = {"who": who, "why": why, "decision": decision or {}, "request": request}
        return {"kind": "rolled-back", **_crowning(state, target), **told}

    entry = _commit(ledger, decide)
    with _decided(entry, again=bool(request)):
        registry.follow()
        _tell(registry, entry)
    return entry


def adopt(registry: Registry, *, accept: bool, who: str, why: str) -> Entry:
    """Settle the changes made by hand in MLflow: accept what is there, or undo them; return the ledger entry.

    Undoing brings back the aliases from before the first of them. What becomes champion must load. Raises LedgerError
    when nothing is unsettled or the champion changed since, RegistryError, ModelRefused.
    """
    ledger = registry.ledger
    record_manual_change(registry)

    def decide(state: State) -> Entry | Fields:
        if not state.unsettled:
            raise LedgerError("nothing was changed by hand in MLflow; there is nothing to accept or undo")
        first, last = state.unsettled[0], state.unsettled[-1]
        now = {"champion": state.champion, "challenger": state.challenger}
        if not accept and state.champion != last.decision["after"]["champion"]:
            raise LedgerError(f"the champion changed since ({_since(state)}); use `xray rollback`")
        after = dict(now)
        if not accept:  # a challenger that was registered since stays
            moved = now["challenger"] == last.decision["after"]["challenger"]
            after = {**first.decision["before"], **({} if moved else {"challenger": now["challenger"]})}
        for version in filter(None, after.values()):
            registry.load(version)
        settles = {"settles": [e.sequence for e in state.unsettled], "action": "accepted" if accept else "undone"}
        return {
            "kind": "manual-change",
            "who": who,
            "why": why,
            **names(registry, state, after["champion"]),
            "champion_before": state.champion,
            "decision": {"before": now, "after": after, **settles},
        }

    entry = _commit(ledger, decide)
    with _decided(entry, again=False):
        registry.follow()
        tell_story(registry)
    return entry


def approval(entries: Sequence[Entry], version: int | None, champion: int | None, who: str = "") -> Entry | None:
    """Find the approval, by `who` if given, of exactly `version` over `champion` that nothing after it made void."""
    for entry in reversed(entries):
        same = (entry.kind, entry.version, entry.champion_before) == ("approved", version, champion)
        if same and who in ("", entry.who):
            return entry
        if entry.kind not in ("approved", "refused"):
            return None
    return None


Fields = dict[str, Any]


def _commit(ledger: Ledger, decide: Callable[[State], Entry | Fields]) -> Entry:
    """Append what `decide` makes of the state, deciding anew whenever the ledger grew meanwhile.

    `decide` returns the fields of an entry, or an entry that says it already; or raises, and nothing is appended.
    """
    while True:
        state = ledger.state()
        decided = decide(state)
        if isinstance(decided, Entry):
            return decided
        try:
            return ledger.append(**decided, expected_head=state.head)
        except LostRace as lost:
            log.info("looking again: %s", lost)


@contextlib.contextmanager
def _decided(entry: Entry, again: bool = True) -> Iterator[None]:
    """Say of an error in what follows that the decision stands, and whether to ask `again` finds it or is a new one."""
    try:
        yield
    except (RegistryError, StorageError) as error:
        todo = "run it again: it finds this entry and goes on"
        if not again:
            todo = "don't run it again, that would be a new decision; the next night or command moves the aliases"
        raise type(error)(f"this is decided: {entry.summary()}; what follows is not done ({error}); {todo}") from error


def _crowning(state: State, version: int) -> Fields:
    """Return what an entry that makes a version the champion says of it."""
    return {**_registered_as(state, version), "champion_before": state.champion}


def _registered_as(state: State, version: int) -> Fields:
    found = state.registered[version]
    about = {"candidate": found.candidate, "artifact": found.artifact}
    return {"version": version, **about, "snapshot": found.snapshot}


def _registered(state: State, candidate: str, champion: int | None) -> Entry | None:
    """Return a candidate's entry; None when it is still to be registered, against exactly this champion."""
    known = state.version_of(candidate)
    if known is None:
        _expect_champion(state, champion)
        return None
    return state.registered[known]


def _expect_champion(state: State, expected: int | None) -> None:
    if state.champion != expected:
        if state.since is None:
            raise LedgerError(f"there is no champion, expected {_name(expected)}; look at the state again")
        raise LostRace(state.since)


def _expect_decided(
    ledger: Ledger, state: State, version: int, decision: Mapping[str, Any], promotion: Literal["approve", "auto"]
) -> None:
    if version not in state.registered:
        raise LedgerError(f"version {version} is not in the ledger; only what the night registered can be promoted")
    if not decision or not state.registered[version].decision:
        raise LedgerError(f"version {version} has no decision of the policy; it can't be promoted")
    if not decision.get("may_promote"):
        raise LedgerError(
            f"the policy does not allow version {version} any more: {' '.join(decision.get('reasons', ()))}"
        )
    if promotion == "auto" and not decision.get("automatic"):
        raise LedgerError(f"the policy asks a person about version {version} now; start xray_promote or `xray promote`")
    if promotion == "approve" and not approval(ledger.entries(), version, state.champion):
        raise LedgerError(
            f"nobody approved version {version} in place of {_name(state.champion)}, or it is void by now"
        )


def rollback_target(ledger: Ledger, state: State, to: int | None) -> int:
    """Return the version that a rollback to `to` (None: the previous champion) makes champion. Raises LedgerError."""
    if to is None:
        earlier = [version for version in state.previous if version in state.registered]
        if not earlier:
            raise LedgerError("there is no earlier champion to go back to")
        return earlier[-1]
    if to == state.champion:
        raise LedgerError(f"version {to} is the champion already ({_since(state)})")
    meant = state.registered.get(to)
    crowned = to in state.previous or any(e.version == to and has_crowned(e) for e in ledger.entries())
    if meant is None or not crowned:
        raise LedgerError(f"version {to} was never champion; use `xray promote`")
    return to


def has_crowned(entry: Entry) -> bool:
    """Whether an entry made its version champion: as decided, or by hand and accepted."""
    accepted = entry.kind == "manual-change" and entry.decision.get("action") == "accepted"
    return accepted or entry.kind in ("promoted", "rolled-back")


def tell_story(registry: Registry) -> None:
    """Write on each version what became of it, for someone who only opens MLflow; says what is not said yet.

    Raises RegistryError, RegistryUnavailable.
    """
    versions = registry.versions()
    for version, tale in tell(registry.ledger.entries()).items():
        missing = {key: text for key, text in tale.tags.items() if versions.get(version, {}).get(key) != text}
        if missing and version in versions:
            registry.describe(version, tale.description)
            registry.tag(version, missing)  # last: they say that the rest is said


def _tell(registry: Registry, entry: Entry) -> None:
    """Leave the story of a change of champion on the version and on those it concerns."""
    if entry.version is not None:
        registry.tag(entry.version, {f"xray.{entry.kind}": f"{entry.at} by {entry.who}: {entry.why}"})
    tell_story(registry)


def _since(state: State) -> str:
    return state.since.summary() if state.since else "none"


def _name(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
