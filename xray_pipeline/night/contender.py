"""The version in shadow: which one takes the next turn, and when it is put forward to be promoted."""

from __future__ import annotations

import logging
from typing import Any

from xray_pipeline.base.records import moment
from xray_pipeline.gate.policy import load_policy
from xray_pipeline.night import shadow, unanswered
from xray_pipeline.night.judging import judged
from xray_pipeline.night.run import Run
from xray_pipeline.night.shadow import Turn
from xray_pipeline.registry import decisions
from xray_pipeline.registry.entries import PUT_FORWARD
from xray_pipeline.registry.state import State

log = logging.getLogger(__name__)


def in_turn(run: Run, state: State) -> Turn | None:
    """Return whose turn in shadow it is, which the challenger takes when it is nobody's; None where none may have one.

    The challenger takes it when all it lacks is the confidence of the held-out comparison, once against a champion.
    Raises ConfigError, EvaluationError, DatasetError, StorageError.
    """
    clause = load_policy(run.settings.policy).clause("confidence")
    if clause is None or not clause.numbers.get("record_budget") or state.champion not in state.registered:
        return None
    past = shadow.turns(run.store())
    last = past[-1] if past and past[-1].counts(state) else None
    if last and shadow.of(run, last).deliveries < clause.numbers.get("record_deliveries", 0):
        return last
    entry = state.registered.get(state.challenger or 0)
    against = state.registered[state.champion].candidate
    if entry is None or entry.version is None or entry.champion_before != state.champion:
        return last  # what it was judged by is about another champion
    if any((turn.candidate, turn.against) == (entry.candidate, against) for turn in past):
        return last
    _, decision = judged(run, _evidence(state, entry.version))
    stops = [one.number for one in decision.clauses if one.stage in ("promote", "release") and one.passed is False]
    if stops != [clause.number]:
        return last
    turn = Turn(len(past) + 1, entry.version, entry.candidate, state.champion, against, moment())
    if not shadow.keep(run.store(), turn):
        return shadow.turns(run.store())[-1]  # another night gave it
    log.info("version %d is in shadow of version %d: turn %d", turn.version, turn.champion, turn.number)
    return turn


def to_put_forward(run: Run) -> dict[str, Any]:
    """Return version, candidate and champion of the version in shadow once the policy lets it be promoted, else {}.

    It waits as challenger from then on, and is put forward again when another was registered meanwhile, but not while
    that one may be promoted, too. Once: another night than the one named `run.name` is told {}. Raises LedgerError,
    LostRace when another champion came first, and as `judging.judged` does.
    """
    registry = run.registry()
    state = registry.ledger.state()
    turn = next((turn for turn in shadow.turns(run.store())[-1:] if turn.counts(state)), None)
    if turn is None or not (why := _shown(run, state, turn.version)):
        return {}
    if state.challenger == turn.version:
        kinds = ("registered", "reopened")
        entry = [one for one in registry.ledger.entries() if one.version == turn.version and one.kind in kinds][-1]
    elif state.challenger and judged(run, _evidence(state, state.challenger))[1].may_promote:
        return {}
    else:
        terms = {"who": run.who, "why": why, "request": f"{PUT_FORWARD} {turn.version} after entry {state.sequence}"}
        entry = decisions.put_forward(registry, turn.version, turn.champion, **terms)
    if not unanswered.ask_once(run, entry):
        return {}
    return {"version": turn.version, "candidate": turn.candidate, "champion": turn.champion}


def _shown(run: Run, state: State, version: int) -> str:
    """Say what was shown in shadow when the policy lets the version be promoted by that, else ""."""
    evidence, decision = judged(run, _evidence(state, version))
    asked = load_policy(run.settings.policy).clause("confidence")
    if evidence.shadow is None or asked is None or not decision.may_promote:
        return ""
    return next(clause.why for clause in decision.clauses if clause.number == asked.number)


def _evidence(state: State, version: int) -> str:
    return str(state.registered[version].decision["evidence"])
