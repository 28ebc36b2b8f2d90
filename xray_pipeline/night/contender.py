"""The version in shadow: which one takes the next turn, and when it is put forward to be promoted."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.records import moment
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.gate.policy import load_policy
from xray_pipeline.night import shadow, unanswered
from xray_pipeline.night.judging import judged
from xray_pipeline.night.run import Run
from xray_pipeline.night.shadow import Turn
from xray_pipeline.registry import decisions
from xray_pipeline.registry.entries import PUT_FORWARD, Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State

log = logging.getLogger(__name__)


def in_turn(run: Run, ledger: Ledger) -> Turn | None:
    """Return whose turn in shadow it is, which the challenger takes when it is nobody's; None where none may have one.

    The challenger takes it when all it lacks is the confidence of the held-out comparison, once against a champion.
    Raises ConfigError, EvaluationError, DatasetError, LedgerError, StorageError.
    """
    clause, state = load_policy(run.settings.policy).clause("confidence"), ledger.state()
    if clause is None or not clause.numbers.get("record_budget") or state.champion not in state.registered:
        return None
    store, dataset = run.store(), Dataset(run.settings)
    last = shadow.open_turn(store, ledger)
    if last and len(last.deliveries(dataset)) <= clause.numbers["record_deliveries"]:
        return last
    past, entry = shadow.turns(store), state.registered.get(state.challenger or 0)
    against = state.registered[state.champion].candidate
    if entry is None or entry.version is None or entry.champion_before != state.champion:
        return last  # what it was judged by is about another champion
    if any((turn.candidate, turn.against) == (entry.candidate, against) for turn in past):
        return last
    _, decision = judged(run, _evidence(state, entry.version))
    stops = [one.number for one in decision.clauses if one.stage in ("promote", "release") and one.passed is False]
    if stops != [clause.number]:
        return last
    after = _known(dataset, store, entry, against)
    turn = Turn(len(past) + 1, entry.version, entry.candidate, state.champion, against, after, moment())
    if not shadow.keep(store, turn):
        return shadow.open_turn(store, ledger)  # another night gave it
    log.info("version %d is in shadow of version %d: turn %d", turn.version, turn.champion, turn.number)
    return turn


def _known(dataset: Dataset, store: Store, entry: Entry, against: str) -> int:
    """Return the newest commit whose delivery a version has learned from, or it or the champion was asked about: what
    somebody may have looked at counts in no turn."""
    known = {
        delivery for candidate in (entry.candidate, against) for delivery in prospective.recorded(store, candidate)
    }
    known.update(dataset.open_snapshot(entry.snapshot).manifests)
    return max((commit.number for commit in dataset.commits.manifests() if commit.manifest in known), default=0)


def to_ask(run: Run) -> dict[str, Any]:
    """Return version, candidate and champion of the version that is put forward, {} where nobody is to be asked.

    A question may end without an answer in the ledger, as when an alarm stood that moment: it is asked again when the
    time for an answer is over. What hinders it is told in the log: the next night tries again. Raises StorageError.
    """
    try:
        entry = put_forward(run)
    except XrayError as error:
        log.warning("nobody is put forward from the shadow: %s", error)
        return {}
    if entry is None:
        return {}
    hours = (run.store().clock() - datetime.fromisoformat(entry.at).timestamp()) / 3600
    if not unanswered.ask_once(run, entry, max(0, int(hours / run.settings.approval_hours))):
        return {}
    return {"version": entry.version, "candidate": entry.candidate, "champion": entry.champion_before}


def put_forward(run: Run) -> Entry | None:
    """Let the version in shadow wait as challenger once the policy lets it be promoted, and return the ledger's entry
    that says so; None where there is none, or a request about it went unanswered (`unanswered`).

    It is put forward again when another was registered meanwhile, but not while that one may be promoted, too. Raises
    LedgerError, LostRace when another champion came first, and as `judging.judged` does.
    """
    registry = run.registry()
    turn = shadow.open_turn(run.store(), registry.ledger)
    state = registry.ledger.state()
    if turn is None or state.not_answered or not (why := _shown(run, state, turn.version)):
        return None
    last = [entry for entry in registry.ledger.entries() if entry.version == turn.version][-1]
    if state.challenger == turn.version and (last.kind == "approved" or last.request.startswith(PUT_FORWARD)):
        return None if last.kind == "approved" else last
    if state.challenger not in (None, turn.version) and not _may_displace(run, state):
        return None
    terms = {"who": run.who, "why": why, "request": f"{PUT_FORWARD} {turn.version} after entry {state.sequence}"}
    return decisions.put_forward(registry, turn.version, turn.champion, state.challenger, **terms)


def _may_displace(run: Run, state: State) -> bool:
    """Whether the challenger is one that the night registered and the policy does not let be promoted."""
    known = state.challenger in state.registered
    return known and not judged(run, _evidence(state, state.challenger or 0))[1].may_promote


def _shown(run: Run, state: State, version: int) -> str:
    """Say what was shown in shadow when the policy lets the version be promoted by that, else ""."""
    evidence, decision = judged(run, _evidence(state, version))
    asked = load_policy(run.settings.policy).clause("confidence")
    if evidence.shadow is None or asked is None or not decision.may_promote:
        return ""
    return next(clause.why for clause in decision.clauses if clause.number == asked.number)


def _evidence(state: State, version: int) -> str:
    return str(state.registered[version].decision["evidence"])
