"""Asking whether a version becomes the champion, and acting on the answer.

The question is about one version against one champion; the answer counts only while both are still the ones that were
asked about. What the policy does not allow is not asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xray_pipeline import night
from xray_pipeline.errors import LedgerError
from xray_pipeline.night import Outcome, Run, Trained

if TYPE_CHECKING:
    from xray_pipeline.gate import Decision

log = logging.getLogger(__name__)

NOBODY = "nobody, the time ran out"


@dataclass(frozen=True)
class Request(Outcome):
    """A question to a person: `version` in place of `champion`? `void` says why there is nothing to ask."""

    version: int
    champion: int | None
    evidence: str
    text: str
    void: str


def request(run: Run, version: int | None = None) -> Request:
    """Measure a version (default: the challenger) against the champion of this moment and phrase the question.

    Raises LedgerError for a version that was never registered, and what `night.evaluate` raises.
    """
    from xray_pipeline import operations

    state = operations.reconcile(run.registry())
    version = version or state.challenger
    if version is None:
        return Request(0, state.champion, "", "", "no version waits to be promoted")
    if version == state.champion:
        return Request(version, state.champion, "", "", f"version {version} is the champion already")
    if version not in state.registered:
        raise LedgerError(f"version {version} is not in the ledger; only what the night registered can be promoted")
    evaluated = night.evaluate(run, Trained(state.registered[version].candidate, ""))
    decision = night.judged(run, evaluated.evidence)
    void = "" if decision.may_promote else f"the policy does not allow version {version}: {' '.join(decision.reasons)}"
    return Request(
        version, evaluated.champion, evaluated.evidence, question(decision, version, evaluated.champion), void
    )


def question(decision: Decision, version: int, champion: int | None) -> str:
    """Return the evidence as Markdown: what it is about, then every clause with threshold, value and verdict."""
    against = f"version {champion}" if champion else "no model"
    lines = [
        f"Version **{version}** in place of {against}. Policy {decision.policy_name}.",
        "",
        "| clause | asks | found | held |",
        "| --- | --- | --- | --- |",
    ]
    held = {True: "yes", False: "**no**", None: "does not apply"}
    lines += [f"| {c.number} | {c.text} | {c.why} | {held[c.passed]} |" for c in decision.clauses]
    return "\n".join(lines)


def settle(run: Run, asked: Request, answer: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Record an answer and act on it: promote, reject, or say why the question is void.

    `answer` is what Airflow returns: chosen_options, params_input (reason), responded_by_user. `name` makes a repeat of
    this call find its own entries. Returns outcome ("promoted", "rejected" or "void"), version, who and why.
    Raises RegistryError, ModelRefused, StorageError.
    """
    from xray_pipeline import operations

    registry = run.registry()
    user = answer.get("responded_by_user") or {}
    who = str(user.get("name") or user.get("id") or NOBODY)
    why = str((answer.get("params_input") or {}).get("reason") or "no reason given")
    approved = answer["chosen_options"] == ["Approve"]
    said = {"version": asked.version, "who": who, "why": why}
    try:
        if not approved:
            operations.reject(
                registry.ledger, asked.version, who=who, why=why, expected_champion=asked.champion, request=name
            )
            log.info("version %d is rejected by %s: %s", asked.version, who, why)
            return {"outcome": "rejected", **said}
        promote(run, asked, who, why, name)
    except LedgerError as error:
        log.warning("the answer of %s has no effect: %s", who, error)
        return {"outcome": "void", **said, "why": str(error)}
    log.info("version %d is promoted by %s: %s", asked.version, who, why)
    return {"outcome": "promoted", **said}


def promote(run: Run, asked: Request, who: str, why: str, name: str = "") -> int:
    """Record a person's approval and make the version the champion; return the ledger entry's number.

    Raises LedgerError when the question is void, RegistryError, ModelRefused.
    """
    from xray_pipeline import operations

    registry = run.registry()
    terms: dict[str, Any] = {"who": who, "why": why, "expected_champion": asked.champion, "request": name}
    operations.approve(registry.ledger, asked.version, **terms)
    entry = operations.promote(
        registry, asked.version, **terms, decision=night.judged(run, asked.evidence).to_dict(), promotion="approve"
    )
    return entry.sequence


def rollback(run: Run, version: int | None, why: str, name: str = "") -> dict[str, Any]:
    """Make an earlier champion (default: the previous one) the champion again; return version, who and why.

    Raises LedgerError when there is nothing to go back to, RegistryError, ModelRefused: the champion stays.
    """
    from xray_pipeline import operations

    entry = operations.rollback(run.registry(), version, who=run.who, why=why, request=name)
    log.info("%s", entry.summary())
    return {"version": entry.version, "who": entry.who, "why": entry.why, "entry": entry.sequence}


def adopt(run: Run, undo: bool, why: str) -> dict[str, Any]:
    """Accept, or undo, the aliases that were moved by hand in MLflow; return the champion's version, who and why.

    Raises LedgerError when nothing was moved by hand, RegistryError, ModelRefused.
    """
    from xray_pipeline import operations

    entry = operations.adopt(run.registry(), accept=not undo, who=run.who, why=why)
    return {"version": entry.version, "who": entry.who, "why": entry.why, "entry": entry.sequence}
