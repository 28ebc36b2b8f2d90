"""Registering, promoting and rolling back: each is one ledger entry, which the registry's aliases then follow.

Every function can be repeated after a crash anywhere in it: before the entry nothing has changed but for a version no
alias names, which the repeat finds; after it the next command or night finishes the rest. What was decided against a
champion is committed only while that is the champion: of two promotions one wins, and the other is told who did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from xray_pipeline.base.errors import LedgerError
from xray_pipeline.registry import loading
from xray_pipeline.registry.commit import commit
from xray_pipeline.registry.entries import Entry, Kind, Move
from xray_pipeline.registry.ledger import Ledger, LostRace
from xray_pipeline.registry.manual_changes import move_by_hand, reconcile
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.questions import approval, rollback_target, why_not_reopened, why_void
from xray_pipeline.registry.state import State, spoken
from xray_pipeline.registry.version_status import describe_versions
from xray_pipeline.registry.version_tags import DIGESTS, digests


class Candidate(Protocol):
    """What registering needs of a trained candidate; `training.Candidate` is one.

    Its digest, its MLflow run, the logged model (models:/m-...), and the digests (64 hex) of the saved classifier and
    of the snapshot it was trained on.
    """

    @property
    def digest(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def model_uri(self) -> str: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def snapshot(self) -> str: ...


def register(
    registry: Registry,
    candidate: Candidate,
    *,
    who: str,
    why: str,
    decision: Mapping[str, Any],
    champion_before: int | None,
    tags: Mapping[str, str] | None = None,
) -> Entry:
    """Make a candidate a version with alias `challenger`, exactly once; return its ledger entry.

    Its logged model is downloaded, audited and loaded first. Raises LostRace when the champion is no longer
    `champion_before`, ModelRefused, RegistryError.
    """

    def registered(state: State) -> Entry | None:
        if (known := state.version_of(candidate.digest)) is not None:
            return state.registered[known]
        _expect_champion(state, champion_before)
        return None

    if (entry := registered(reconcile(registry))) is not None:
        describe_versions(registry)
        return entry
    model = registry.resolve(candidate.model_uri)
    loading.load_exactly(registry, model, candidate.model_digest)
    named = digests(model.artifact, model=candidate.model_digest, snapshot=candidate.snapshot)
    described = {**(tags or {}), DIGESTS: named}
    version = registry.add(candidate.digest, candidate.model_uri, candidate.run_id, described)

    def decide(state: State) -> Entry | Move:
        return registered(state) or Move(
            "registered",
            who=who,
            why=why,
            version=version,
            candidate=candidate.digest,
            champion_before=champion_before,
            decision=decision,
            snapshot=candidate.snapshot,
            artifact=model.artifact,
        )

    return commit(registry, decide)


def refuse(
    registry: Registry,
    candidate: Candidate,
    *,
    who: str,
    why: str,
    decision: Mapping[str, Any],
    champion_before: int | None,
) -> Entry:
    """Record that a candidate was refused; the same refusal against the same champion is recorded once."""
    request = f"refuse {candidate.digest} against {champion_before}"

    def decide(state: State) -> Entry | Move:
        return state.asked("refused", request) or Move(
            "refused",
            who=who,
            why=why,
            candidate=candidate.digest,
            champion_before=champion_before,
            decision=decision,
            snapshot=candidate.snapshot,
            request=request,
        )

    return commit(registry, decide)


def answer(
    registry: Registry,
    kind: Literal["approved", "rejected", "not-answered"],
    version: int,
    *,
    who: str,
    why: str,
    expected_champion: int | None,
    request: str = "",
) -> Entry:
    """Record what `who` said of promoting `version` over `expected_champion`, or that nobody said anything.

    A rejected version no longer waits; one that nobody answered about does. Raises LedgerError when the question is
    void.
    """

    def decide(state: State) -> Entry | Move:
        if earlier := state.asked(kind, request):
            return earlier
        if kind == "approved" and (same := approval(registry.ledger.entries(), version, expected_champion, who)):
            return same
        if void := why_void(state, version, expected_champion):
            raise LedgerError(f"version {version} can't be {kind}: {void}")
        return _about(state, kind, version, expected_champion, who=who, why=why, request=request)

    return commit(registry, decide)


def reopen(registry: Registry, version: int, *, who: str, why: str, request: str = "") -> Entry:
    """Let a rejected version wait again as the challenger, so that it may be asked about; return the ledger entry.

    Its files must be there, equal their digest and load, else nothing changes. Raises LedgerError when it was not
    rejected, or another version waits; RegistryError, ModelRefused.
    """

    def decide(state: State) -> Entry | Move:
        if earlier := state.asked("reopened", request):
            return earlier
        if why_not := why_not_reopened(state, version):
            raise LedgerError(why_not)
        loading.load(registry, version)
        return _about(state, "reopened", version, state.champion, who=who, why=why, request=request)

    return commit(registry, decide, repeatable=bool(request))


def put_forward(
    registry: Registry,
    version: int,
    expected_champion: int,
    expected_challenger: int | None,
    *,
    who: str,
    why: str,
    request: str,
) -> Entry:
    """Let a registered version wait as the challenger, in place of `expected_challenger`; return the ledger entry.

    Its files must be there, equal their digest and load, else nothing changes. Raises LedgerError when it was rejected
    or another was registered meanwhile, LostRace when another champion came, RegistryError, ModelRefused.
    """

    def decide(state: State) -> Entry | Move:
        if earlier := state.asked("reopened", request):
            return earlier
        _expect_champion(state, expected_champion)
        if version not in state.registered or version in state.rejected:
            raise LedgerError(f"version {version} can't be put forward: it was rejected, or is not in the ledger")
        if state.challenger != expected_challenger:
            raise LedgerError(f"version {version} can't be put forward: {spoken(state.challenger)} waits by now")
        loading.load(registry, version)
        return _about(state, "reopened", version, state.champion, who=who, why=why, request=request)

    return commit(registry, decide)


def promote(
    registry: Registry,
    version: int,
    *,
    who: str,
    why: str,
    expected_champion: int | None,
    decision: Mapping[str, Any],
    request: str = "",
) -> Entry:
    """Make a registered version the champion in place of `expected_champion`; return the ledger entry.

    An approval of exactly that must be in the ledger, unless the policy's `decision` is automatic. The model is audited
    and loaded first. Repeating it is safe. Raises LostRace when another champion came first, LedgerError without a
    decision or approval, RegistryError, ModelRefused.
    """

    def decide(state: State) -> Entry | Move:
        if earlier := state.asked("promoted", request):
            if state.champion != version and state.since:
                raise LostRace(state.since)  # another decision came since
            return earlier
        if state.champion == version and state.since is not None and state.since.kind == "promoted":
            return state.since
        _expect_champion(state, expected_champion)
        how = _leave(registry.ledger, state, version, decision)
        loading.load(registry, version)
        said = {"who": who, "why": why, "decision": {**decision, "promotion": how}, "request": request}
        return _about(state, "promoted", version, state.champion, **said)

    return commit(registry, decide, repeatable=bool(request))


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
    happens only while that is the champion. The entry keeps `decision`: how the version was tried before. Raises
    LostRace, LedgerError when there is nothing to go back to, RegistryError, ModelRefused.
    """

    def decide(state: State) -> Entry | Move:
        if earlier := state.asked("rolled-back", request):
            return earlier
        if expected_champion is not None:
            _expect_champion(state, expected_champion)
        target = rollback_target(registry.ledger.entries(), state, to)
        loading.load(registry, target)
        said = {"who": who, "why": why, "decision": decision or {}, "request": request}
        return _about(state, "rolled-back", target, state.champion, **said)

    return commit(registry, decide, repeatable=bool(request))


def adopt(registry: Registry, *, accept: bool, who: str, why: str) -> Entry:
    """Accept the changes made by hand in MLflow as they are, or undo them; return the ledger entry.

    Undoing brings back the aliases from before the first of them. What becomes champion must load. Raises LedgerError
    when there is no such change or the champion changed since, RegistryError, ModelRefused.
    """

    def decide(state: State) -> Entry | Move:
        if not state.by_hand:
            raise LedgerError("nothing was changed by hand in MLflow; there is nothing to accept or undo")
        first, last = state.by_hand[0].decision, state.by_hand[-1].decision
        after = state.aliases
        if not accept:
            if state.champion != last["after"]["champion"]:
                since = state.since.summary() if state.since else "none"
                raise LedgerError(f"the champion changed since ({since}); use `xray rollback`")
            moved = state.challenger == last["after"]["challenger"]  # one that was registered since stays
            after = {**first["before"], **({} if moved else {"challenger": state.challenger})}
        for version in filter(None, after.values()):
            loading.load(registry, version)
        action = "accepted" if accept else "undone"
        return move_by_hand(registry, state, after, who, why, action=action)

    return commit(registry, decide, repeatable=False)


def _about(state: State, kind: Kind, version: int, champion: int | None, **said: Any) -> Move:
    """Return a move about a registered version, with its digests."""
    first = state.registered[version]
    said |= {"candidate": first.candidate, "artifact": first.artifact, "snapshot": first.snapshot}
    return Move(kind, version=version, champion_before=champion, **said)


def _expect_champion(state: State, expected: int | None) -> None:
    if state.champion != expected:
        if state.since is None:
            raise LedgerError(f"there is no champion, expected {spoken(expected)}; look at the state again")
        raise LostRace(state.since)


def _leave(ledger: Ledger, state: State, version: int, decision: Mapping[str, Any]) -> str:
    """Return by what leave a version may be promoted: "approve", a person's, or "auto", the policy's alone.

    Raises LedgerError without leave.
    """
    if version not in state.registered:
        raise LedgerError(f"version {version} is not in the ledger; only what the night registered can be promoted")
    if not decision or not state.registered[version].decision:
        raise LedgerError(f"version {version} has no decision of the policy; it can't be promoted")
    if not decision.get("may_promote"):
        raise LedgerError(
            f"the policy does not allow version {version} any more: {' '.join(decision.get('reasons', ()))}"
        )
    if approval(ledger.entries(), version, state.champion):
        return "approve"
    if decision.get("automatic"):
        return "auto"
    raise LedgerError(
        f"nobody approved version {version} in place of {spoken(state.champion)}, or that is void by now; the policy "
        f"asks a person: start xray_promote or `xray promote`"
    )
