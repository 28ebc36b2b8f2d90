"""The policy applied to kept evidence, what the ledger keeps of that, and whether anything is left to decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xray_pipeline.base.errors import LedgerError, XrayError
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.evaluation.watching import Standing
from xray_pipeline.gate.policy import decide, load_policy
from xray_pipeline.intake import alarms
from xray_pipeline.night import shadow, watching
from xray_pipeline.night.affected import learned_withdrawn
from xray_pipeline.report.wording import difference

if TYPE_CHECKING:
    from xray_pipeline.base.settings import Settings
    from xray_pipeline.evaluation.metrics import Evaluation
    from xray_pipeline.gate.evidence import Evidence
    from xray_pipeline.gate.policy import Decision
    from xray_pipeline.night.run import Run
    from xray_pipeline.registry.mlflow_registry import Registry

log = logging.getLogger(__name__)


def judged(run: Run, key: str) -> tuple[Evidence, Decision]:
    """Return evidence that `evaluate` kept, with what was withdrawn and acknowledged since and what was said in shadow,
    and what the policy says.

    Raises ConfigError, EvaluationError, DatasetError, LedgerError.
    """
    candidate, store = key.split("/")[1], run.store()
    evidence = replace(
        run.evidence(key),
        withdrawn=learned_withdrawn(run.settings, candidate),
        shadow=shadow.standing(run, candidate),
    )
    if evidence.alarms:  # else none stood, or nobody knows
        deliveries = Dataset(run.settings).open_snapshot(evidence.snapshot).manifests
        if (now := alarms.standing(store, deliveries)) != evidence.alarms:
            said = dict.fromkeys((*evidence.acknowledged, *alarms.acknowledgements(store, deliveries)))
            evidence = replace(evidence, alarms=now, acknowledged=tuple(said))
    if evidence.watch and evidence.watch.alarm and _settled(run):
        evidence = replace(evidence, watch=Standing(""))
    return evidence, decide(evidence, load_policy(run.settings.policy))


def _settled(run: Run) -> bool:
    """Return whether no alarm about the champion stands any more; one stands while that can't be read."""
    try:
        return not watching.watched(run).alarm
    except XrayError as error:
        log.warning("whether the alarm about the champion still stands is not known: %s", error)
        return False


def alarms_hold_up(settings: Settings) -> bool:
    """Return whether the policy in force promotes nothing while a drift alarm stands. Raises ConfigError."""
    return load_policy(settings.policy).asks("no-drift")


def recorded(evidence: Evidence, decision: Decision, key: str) -> dict[str, Any]:
    """Return what the ledger keeps of a decision: all of it, its evidence's key, and how many patients it compared."""
    compared = evidence.comparison.patients if evidence.comparison else 0
    return {**decision.to_dict(), "evidence": key, "compared_patients": compared}


def why_waits(decision: Decision) -> str:
    """Say why a registered version is not promoted at once."""
    unmet = [c.why for c in decision.clauses if c.stage in ("promote", "release") and c.passed is False]
    return " ".join(unmet) or "a person decides."


def headline(evaluation: Evaluation) -> str:
    """Return an evaluation's headline metrics in one line."""
    return ", ".join(f"{name} {evaluation.metrics[name].value:.3f}" for name in HEADLINE if name in evaluation.metrics)


def in_short(evidence: Evidence, champion: int | None) -> str:
    """Say in one sentence how accurate the candidate is beside the champion."""
    ours, theirs = evidence.candidate, evidence.champion
    if ours is None:
        return "the candidate could not be measured"
    against = f" against version {champion}'s {theirs.metrics['accuracy'].value:.3f}" if theirs else ""
    if evidence.comparison and (gap := evidence.comparison.differences.get("accuracy")):
        against += f": {difference(gap)}"
    return (
        f"accuracy {ours.metrics['accuracy'].value:.3f}{against} on {ours.n:,} held-out radiographs of "
        f"{ours.patients:,} patients"
    )


def expect_same(registry: Registry, models: Mapping[str, Sequence[str]]) -> None:
    """Raise LedgerError when a version's number does not mean the model any more that it meant in `models`."""
    if other := registry.ledger.state().other(models):
        raise LedgerError(f"{other}: the ledger was put back since; start anew from what it says now")


def automatic(version: int | None, champion: int | None) -> str:
    """Return the name of the request by which a night promotes a version, so that a repeat finds its entry."""
    return f"auto {version} over {champion}"


def concluded(run: Run, candidate: str) -> str:
    """Say what was decided of a candidate when nothing about it is left to decide, else ""."""
    ledger = run.registry().ledger
    state = ledger.state()
    decided = [e for e in ledger.entries() if e.candidate == candidate and e.kind in ("registered", "refused")]
    if not decided:
        return ""
    newest = decided[-1]
    if newest.kind == "refused":
        policy = load_policy(run.settings.policy).digest
        same = newest.champion_before == state.champion and newest.decision["policy"] == policy
        return f"candidate {candidate[:12]} was refused against the same champion" if same else ""
    unfinished = (
        run.settings.promotion == "auto"
        and state.challenger == newest.version
        and state.champion == newest.champion_before
        and newest.decision["automatic"]
        and not state.asked("promoted", automatic(newest.version, state.champion))  # it was, and was taken back since
    )
    role = " and is the champion" if newest.version == state.champion else ""
    return "" if unfinished else f"candidate {candidate[:12]} was registered as version {newest.version}{role}"
