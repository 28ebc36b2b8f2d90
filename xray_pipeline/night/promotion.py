"""Asking whether a version becomes the champion, and acting on the answer.

The question is about one version against one champion; the answer counts only while both are still the ones that were
asked about. What the policy does not allow is not asked.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from xray_pipeline.base.errors import LedgerError, XrayError
from xray_pipeline.base.records import Plain
from xray_pipeline.base.text import APPROVE, SHORTEST_REASON, shortened
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.metric_table import BY_NAME, HEADLINE
from xray_pipeline.night import compose_report, contender, judging, model_steps, trial, versions
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.run import Promoted, Run, Trained
from xray_pipeline.registry import decisions, lost_entries, manual_changes
from xray_pipeline.registry.questions import rollback_target, why_void
from xray_pipeline.report import page as report
from xray_pipeline.report.places import report_key
from xray_pipeline.report.wording import cell, difference
from xray_pipeline.training import candidate as training

if TYPE_CHECKING:
    from xray_pipeline.gate.evidence import Evidence
    from xray_pipeline.gate.policy import Decision
    from xray_pipeline.night.run import Evaluated
    from xray_pipeline.registry.entries import Entry
    from xray_pipeline.registry.mlflow_registry import Registry
    from xray_pipeline.registry.state import State

log = logging.getLogger(__name__)

Answer = Literal["approved", "rejected", "not-answered"]
NOBODY = "nobody, the time ran out"


@dataclass(frozen=True)
class Request(Plain):
    """A question to a person: `version` in place of `champion`? `void` says why there is nothing to ask.

    `candidate` is its digest; `automatic`: the policy and the settings ask nobody; `text` is the evidence in Markdown;
    `models` is what both numbers mean (`State.models`); `figures` says how accurate both are.
    """

    version: int
    champion: int | None
    evidence: str
    text: str
    void: str
    candidate: str = ""
    automatic: bool = False
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    figures: str = ""


def request(run: Run, version: int | None = None, candidate: str = "") -> Request:
    """Measure a version (default: the challenger) against the champion of this moment and phrase the question.

    With `candidate` (a digest) the version must be that one; another, since the ledger was put back, is void.
    The report on exactly this pair is written when it is not there yet, or tells of another decision. Raises
    LedgerError for a version that was never registered, and what `model_steps.evaluate` raises.
    """
    registry = run.registry()
    state = manual_changes.reconcile(registry)
    version = version or state.challenger
    if version is None:
        return Request(0, state.champion, "", "", "no version waits to be promoted")
    if void := _not_to_ask(state, version, candidate):
        return Request(version, state.champion, "", "", void)
    if removal := registry.removed(version):
        return Request(version, state.champion, "", "", f"version {version} can't be promoted: {removal.sentence()}")
    candidate = state.registered[version].candidate
    evaluated = model_steps.evaluate(run, Trained(candidate, ""))
    evidence, decision = judging.judged(run, evaluated.evidence)
    _ensure_report(run, registry, evaluated, evidence, decision)
    void = "" if decision.may_promote else f"the policy does not allow version {version}: {' '.join(decision.reasons)}"
    text = question(decision, version, evaluated.champion, evidence)
    about = (void, candidate, decision.automatic, state.models(version, evaluated.champion), evaluated.figures)
    return Request(version, evaluated.champion, evaluated.evidence, text, *about)


def _not_to_ask(state: State, version: int, candidate: str) -> str:
    """Say why a version is not to be asked about, "" when it is. Raises LedgerError for one never registered."""
    if version == state.champion:
        return f"version {version} is the champion already"
    meant = versions.registered(state, version)
    if void := why_void(state, version, state.champion):
        return f"version {version} is not to be asked about: {void}"
    return state.other({str(version): [candidate, meant.artifact]}) if candidate else ""


def _ensure_report(run: Run, registry: Registry, evaluated: Evaluated, evidence: Evidence, decision: Decision) -> None:
    """Write the report unless it is there and of this decision: an alarm may have been acknowledged since."""
    store, key = run.store(), report_key(evaluated.candidate, evaluated.champion)
    if not (store.exists(key) and report.is_of(store.read(key).decode(errors="replace"), decision)):
        both = comparing.pair(run, registry, evaluated.candidate, evaluated.champion)
        compose_report.write_report(run, registry, both, evidence, decision)


def question(decision: Decision, version: int, champion: int | None, evidence: Evidence) -> str:
    """Return the evidence as Markdown of at most some 3 KB: both models' metrics and how they differ, what else is
    different, whether an alarm stands, then each clause of the policy."""
    against = f"version {champion}" if champion else "no model"
    lines = [f"Version **{version}** in place of {against}. Policy {decision.policy_name}.", ""]
    lines += ["| held-out, 95 % | candidate | champion | difference |", "| --- | --- | --- | --- |"]
    differences = evidence.comparison.differences if evidence.comparison else {}
    for name in HEADLINE:
        if evidence.candidate and name in evidence.candidate.metrics:
            theirs = evidence.champion.metrics.get(name) if evidence.champion else None
            values = f"{cell(evidence.candidate.metrics[name])} | {cell(theirs)} | {difference(differences.get(name))}"
            lines.append(f"| {BY_NAME[name].title} | {values} |")
    lines += ["", *([_changes(evidence), ""] if champion else []), _drift(evidence)]
    lines += ["", "| clause | found | held |", "| --- | --- | --- |"]
    held = {True: "yes", False: "**no**"}
    asked = [c for c in decision.clauses if c.passed is not None and (c.stage != "evidence" or not c.passed)]
    lines += [f"| {c.number} | {_short(c.why)} | {held[c.passed is True]} |" for c in asked]
    return "\n".join(lines)


def _changes(evidence: Evidence) -> str:
    if evidence.changed is None:
        return "What is different from the champion is not on record."
    return f"Different from the champion: {', '.join(evidence.changed) or 'nothing'}."


def _drift(evidence: Evidence) -> str:
    if evidence.alarms is None:
        return "Drift was not measured."
    return f"**Drift alarm:** {_short('; '.join(evidence.alarms))}." if evidence.alarms else "No drift alarm stands."


def _short(text: str) -> str:
    return shortened(text.replace("|", "/").replace("\n", " "), 160)


def record_answer(run: Run, asked: Request, answer: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Record an answer in the ledger: "approved", "rejected", "not-answered", or "void" and why it has no effect.

    `answer` is what Airflow returns: chosen_options, params_input (reason), responded_by_user, which is missing where
    the time ran out; or void: why nobody was left to ask. `name` makes a repeat of this call find its own entries.
    Returns outcome, version, who and why. Raises RegistryError, StorageError.
    """
    registry = run.registry()
    registry.aliases()  # an answer goes to no other ledger than the one that asked
    if "void" in answer:
        return _void(registry, asked.version, "nobody", answer["void"])
    user = answer.get("responded_by_user") or {}
    who = str(user.get("name") or user.get("id") or NOBODY)
    reason = str((answer.get("params_input") or {}).get("reason") or "").strip()
    why = reason or ("no reason given" if user else "it is asked again by the next night, or by hand")
    approved = answer["chosen_options"] == [APPROVE]
    try:
        if other := registry.ledger.state().other(asked.models):
            raise LedgerError(other)
        if approved and (not user or len(reason) < SHORTEST_REASON):
            raise LedgerError("an approval needs a person and a reason; ask again by starting xray_promote by hand")
        kind: Answer = "approved" if approved else "rejected" if user else "not-answered"
        terms: dict[str, Any] = {"who": who, "why": why, "expected_champion": asked.champion, "request": name}
        entry = decisions.answer(registry, kind, asked.version, **terms)
    except LedgerError as error:
        return _void(registry, asked.version, who, str(error))
    return {"outcome": entry.kind, "version": asked.version, "who": who, "why": why}


def reopen(run: Run, version: int, why: str, name: str = "") -> dict[str, Any]:
    """Let a rejected version be asked about again; return version, who and why.

    Raises LedgerError when it was not rejected, was tidied, or another version waits; RegistryError.
    """
    registry = run.registry()
    if removal := registry.removed(version):
        raise LedgerError(f"version {version} can't be promoted any more: {removal.sentence()}")
    return _done(decisions.reopen(registry, version, who=run.who, why=why, request=name))


def _void(registry: Registry, version: int, who: str, why: str) -> dict[str, Any]:
    log.warning("the request about version %d is void, answered by %s: %s", version, who, why)
    registry.tag(version, {"xray.request": f"void, answered by {who}: {why}"})
    return {"outcome": "void", "version": version, "who": who, "why": why}


def promote(run: Run, asked: Request, who: str, why: str, name: str = "") -> Promoted:
    """Make the version the champion on a person's approval, recorded here unless `record_answer` did.

    Raises LedgerError when the question is void, RegistryError, ModelRefused.
    """
    registry = run.registry()
    judging.expect_same(registry, asked.models)
    terms: dict[str, Any] = {"who": who, "why": why, "expected_champion": asked.champion, "request": name}
    _, decision = judging.judged(run, asked.evidence)
    if not asked.automatic:
        decisions.answer(registry, "approved", asked.version, **terms)
    told = {**decision.to_dict(), "evidence": asked.evidence}
    entry = decisions.promote(registry, asked.version, **terms, decision=told)
    versions.refresh(run)
    return Promoted(asked.version, entry.sequence, entry.candidate, entry.artifact)


def promote_put_forward(run: Run) -> Promoted | None:
    """Put the version in shadow forward once new patients have shown that it is better, and promote it where nobody is
    to be asked. What hinders that is told in the log: the night is over, and the next one tries again."""
    try:
        if (entry := contender.put_forward(run)) is None:
            return None
        asked = request(run, entry.version, entry.candidate)
        if asked.void or not asked.automatic:
            log.info("version %d waits: %s", asked.version, asked.void or "`xray promote` asks about it")
            return None
        trial.try_version(run, asked.candidate, asked.version)
        return promote(run, asked, run.who, "the policy allows it; nobody is asked")
    except XrayError as error:
        log.warning("nobody is promoted from the shadow: %s", error)
        return None


def rollback(run: Run, version: int | None, why: str, name: str = "", untried: bool = False) -> dict[str, Any]:
    """Make an earlier champion (default: the previous one) the champion again; return version, who and why.

    As before a promotion, the model server is booted on it and its answers are checked, unless it goes back `untried`:
    what was in production once may be needed at once. Raises LedgerError when there is nothing to go back to, LostRace
    when another champion came meanwhile, EvaluationError, RegistryError, ModelRefused: the champion stays.
    """
    registry = run.registry()
    champion, difference = None, None
    if not registry.ledger.state().asked("rolled-back", name):
        manual_changes.record_manual_change(registry)
        state = registry.ledger.state()
        # Of two people who go back at once the second must be told, not go back one further.
        champion, version = state.champion, rollback_target(registry.ledger.entries(), state, version)
        if not untried:
            difference = trial.try_version(run, state.registered[version].candidate, version)
    terms: dict[str, Any] = {"who": run.who, "why": why, "expected_champion": champion, "request": name}
    entry = decisions.rollback(registry, version, **terms, decision={"model_server_off_by": difference})
    versions.refresh(run)
    return _done(entry)


def adopt(run: Run, undo: bool, why: str, lost: bool = False) -> dict[str, Any]:
    """Accept, or undo, the aliases that were moved by hand in MLflow; return the champion's version, who and why.

    With `lost` this is about what MLflow has where the ledger lost the entries that would say. Raises LedgerError when
    nothing was changed by hand or lost, RegistryError, ModelRefused.
    """
    registry, said = run.registry(), {"who": run.who, "why": why}
    if lost:
        dataset, find = Dataset(run.settings), functools.partial(training.find_candidate, run.store())
        unnamed = dataset.unnamed()
        entry = lost_entries.give_up(registry, find, unnamed, accept=not undo, **said)
        dataset.put_away(unnamed)
    else:
        entry = decisions.adopt(registry, accept=not undo, **said)
    return _done(entry)


def _done(entry: Entry) -> dict[str, Any]:
    about = {"version": entry.version, "candidate": entry.candidate, "artifact": entry.artifact}
    return {**about, "who": entry.who, "why": entry.why, "entry": entry.sequence}
