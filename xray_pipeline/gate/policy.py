"""From two evaluations and a written policy to a decision: a pure function, without I/O and without a clock.

A policy is a TOML file of numbered clauses, each naming one of the rules in `rules` with its numbers: a predetermined
change-control plan that runs. Every clause is judged for every candidate, also after one has failed, so that a decision
shows all of it. Whatever is missing, not a number or doesn't fit together fails its clause.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.records import Plain
from xray_pipeline.base.shipped import read_toml
from xray_pipeline.base.text import BARRED
from xray_pipeline.gate.confidence import level_after
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.finding import number_of
from xray_pipeline.gate.rules import RULES, Stage

Verdict = Literal["refused", "registered"]


@dataclass(frozen=True)
class Clause:
    """One clause of a decision: what it asks (`threshold`), what was found (`actual`) and whether it held.

    `passed` is None where the clause does not apply, such as a floor for first models when there is a champion. `why`
    says it in a sentence, which a person should read where `warning` says so, though the clause holds.
    """

    number: str
    stage: Stage
    text: str
    threshold: float | str | None
    actual: float | str | None
    passed: bool | None
    why: str
    warning: bool = False

    @property
    def said(self) -> str:
        """What it found, with its number."""
        return f"{self.why} (clause {self.number})"


@dataclass(frozen=True)
class Decision(Plain):
    """What the policy says of a candidate.

    `may_promote`: every clause on promoting held. `automatic`: it does, and no person is asked. `level` is the share
    of the held-out set's budget that this comparison spent, 0 without one.
    """

    verdict: Verdict
    may_promote: bool
    automatic: bool
    clauses: tuple[Clause, ...]
    reasons: tuple[str, ...]
    policy: str
    policy_name: str
    candidate: str
    champion: str
    snapshot: str
    level: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should read though no clause stops for it, a sentence each."""
        return tuple(clause.said for clause in self.clauses if clause.warning)


@dataclass(frozen=True)
class PolicyClause:
    """A clause as the policy states it; `numbers` are those of its rule, and 1 or 0 for what a list may name."""

    number: str
    rule: str
    text: str
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Policy:
    """A policy as read; `digest` is the SHA-256 of its text, `source` the text."""

    name: str
    version: int
    clauses: tuple[PolicyClause, ...]
    digest: str
    source: str

    def asks(self, rule: str) -> bool:
        """Whether a clause of this policy applies that rule."""
        return self.clause(rule) is not None

    def clause(self, rule: str) -> PolicyClause | None:
        """Return the clause that applies a rule, None where none does."""
        return next((clause for clause in self.clauses if clause.rule == rule), None)


def load_policy(name_or_path: str) -> Policy:
    """Read the policy of that name shipped here, or the TOML file at that path.

    Raises ConfigError, naming the clause, for an unknown rule, a missing or unknown number, a number used twice, or a
    rule that no policy may leave out.
    """
    source, content = read_toml("gate", "policies", "policy", name_or_path)
    return _policy(content, source)


def decide(evidence: Evidence, policy: Policy) -> Decision:
    """Judge a candidate. Never raises: what is missing or not a number fails the clause that needs it."""
    clauses = tuple(_judged(clause, evidence) for clause in policy.clauses)

    def hold(*stages: Stage) -> bool:
        return all(clause.passed is not False for clause in clauses if clause.stage in stages)

    registered = hold("evidence", "register", "first")
    may_promote = registered and hold("promote", "release")
    spends = policy.clause("confidence")
    return Decision(
        verdict="registered" if registered else "refused",
        may_promote=may_promote,
        automatic=may_promote and evidence.promotion == "auto",
        clauses=clauses,
        reasons=_reasons(clauses, registered, may_promote),
        policy=policy.digest,
        policy_name=f"{policy.name} {policy.version}",
        candidate=evidence.candidate.model_digest if evidence.candidate else "",
        champion=evidence.champion.model_digest if evidence.champion else "",
        snapshot=evidence.snapshot,
        level=level_after(evidence.earlier_uses, spends.numbers) if spends and evidence.comparison else 0.0,
    )


# --- putting it together


def _judged(clause: PolicyClause, evidence: Evidence) -> Clause:
    rule = RULES[clause.rule]
    finding = rule.judge(evidence, clause.numbers)
    about = (clause.number, rule.stage, clause.text, finding.threshold)
    if rule.stage in (("first",) if evidence.champion_known else ("register", "promote")):
        why = f"Does not apply {'with' if evidence.champion_known else 'without'} a champion."
        return Clause(*about, actual=None, passed=None, why=why)
    return Clause(*about, finding.actual, finding.passed, finding.why, finding.warning)


def _reasons(clauses: tuple[Clause, ...], registered: bool, may_promote: bool) -> tuple[str, ...]:
    def of(*stages: Stage, passed: bool) -> list[str]:
        return [
            clause.said
            for clause in clauses
            if clause.stage in stages and clause.passed is passed and not clause.warning
        ]

    warnings = [f"Warning: {clause.said}" for clause in clauses if clause.warning]
    if not registered:
        return ("Refused.", *of("evidence", "register", "first", passed=False), *warnings)
    head = ["Registered.", *of("register", "first", passed=True)]
    if not may_promote:
        return (*head, BARRED, *of("promote", "release", passed=False), *warnings)
    return (*head, "May be promoted.", *of("promote", "release", passed=True), *warnings)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    version: int
    clause: list[dict[str, Any]]


def _policy(content: Mapping[str, Any], source: str) -> Policy:
    try:
        file = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a policy has a name, a version (whole number) and clauses: {error}") from error
    clauses, name = tuple(_policy_clause(found) for found in file.clause), file.name
    for what, given in (("number", [c.number for c in clauses]), ("rule", [c.rule for c in clauses])):
        twice = sorted({value for value in given if given.count(value) > 1})
        if twice:
            raise ConfigError(f"policy {name!r} uses the {what} {twice[0]!r} more than once")
    absent = sorted({rule for rule, spec in RULES.items() if spec.required} - {c.rule for c in clauses})
    if absent:
        raise ConfigError(f"policy {name!r} leaves out {', '.join(absent)}, which no policy may")
    return Policy(name, file.version, clauses, hashlib.sha256(source.encode()).hexdigest(), source)


def _policy_clause(found: Mapping[str, Any]) -> PolicyClause:
    number, rule, text = (str(found.get(key, "")) for key in ("number", "rule", "text"))
    numbers = {key: value for key, value in found.items() if key not in ("number", "rule", "text", "allowed")}
    if rule not in RULES:
        raise ConfigError(f"clause {number or '?'}: no rule {rule!r}; there are {', '.join(RULES)}")
    if not number or not text:
        raise ConfigError(f"clause {number or '?'} ({rule}) needs a number and a text")
    wanted, optional = RULES[rule].numbers, RULES[rule].optional
    if set(numbers) not in (set(wanted), {*wanted, *optional}):
        may = f" and may have all of {', '.join(optional)}" if optional else ""
        raise ConfigError(
            f"clause {number} ({rule}) takes {', '.join(wanted) or 'no numbers'}{may}; found {sorted(numbers)}"
        )
    wrong = [key for key, value in numbers.items() if number_of(value) is None or value < 0]
    numbers |= _allowed(number, rule, found.get("allowed"))
    if wrong:
        raise ConfigError(f"clause {number} ({rule}): {wrong[0]} is {numbers[wrong[0]]!r}, not a number of at least 0")
    return PolicyClause(number, rule, text, {key: float(value) for key, value in numbers.items()})


def _allowed(number: str, rule: str, listed: Any) -> dict[str, float]:
    """A clause's list as numbers. Raises ConfigError for a name that its rule does not know, and for no list."""
    parts = RULES[rule].parts
    if (listed is None) != (not parts) or not isinstance(listed or [], list):
        raise ConfigError(f"clause {number} ({rule}) takes {'a list' if parts else 'no list'} `allowed`")
    unknown = [name for name in listed or [] if name not in parts]
    if unknown:
        raise ConfigError(f"clause {number} ({rule}): no {unknown[0]!r} to allow; there are {', '.join(parts)}")
    return {part: float(part in (listed or [])) for part in parts}
