"""From two evaluations and a written policy to a decision: a pure function, without I/O and without a clock.

A policy is a TOML file of numbered clauses, each naming one of the rules in `rules` with its numbers: a predetermined
change-control plan that runs. Every clause is judged for every candidate, also after one has failed, so that a decision
shows all of it. Whatever is missing, not a number or doesn't fit together fails its clause.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xray_pipeline.errors import ConfigError, EvaluationError
from xray_pipeline.judging.rules import RULES, Stage, effective_uses, level_after, number_of

if TYPE_CHECKING:
    from xray_pipeline.evaluation import Comparison, Evaluation, Slice

__all__ = ["Clause", "Decision", "Evidence", "Policy", "PolicyClause", "decide", "effective_uses", "load_policy"]

Verdict = Literal["refused", "registered"]


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on.

    `champion_known`: the ledger names a champion, whether or not it could be measured. `snapshot` is the digest that
    both evaluations must name. `promotion` is the setting: "auto" or "approve". `earlier_uses` counts earlier
    comparisons on these held-out patients (see `effective_uses`). `slices` and `stress` compare both models on parts of
    the held-out set and under perturbations. `alarms` names the drift alarms of the data behind the candidate that
    stand; `acknowledged` says of what is new against the champion's data who settled which alarms and why; `changed`
    names what it has otherwise than the champion (of `rules.PARTS`). None always means not measured, which fails each
    clause that asks for it.
    """

    candidate: Evaluation | None
    champion: Evaluation | None
    champion_known: bool
    comparison: Comparison | None
    snapshot: str
    promotion: str
    earlier_uses: float | None = None
    slices: tuple[Slice, ...] | None = None
    stress: tuple[Slice, ...] | None = None
    alarms: tuple[str, ...] | None = None
    changed: tuple[str, ...] | None = None
    acknowledged: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values, so that a decision can be made again from what it was made from."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evidence:
        """Inverse of `to_dict`. Raises EvaluationError for anything else."""
        from xray_pipeline.evaluation import Comparison, Evaluation, Slice

        def many(found: list[Any] | None) -> tuple[Slice, ...] | None:
            return None if found is None else tuple(Slice.from_dict(part) for part in found)

        try:
            return cls(
                **{
                    **data,
                    "candidate": data["candidate"] and Evaluation.from_dict(data["candidate"]),
                    "champion": data["champion"] and Evaluation.from_dict(data["champion"]),
                    "comparison": data["comparison"] and Comparison.from_dict(data["comparison"]),
                    "slices": many(data["slices"]),
                    "stress": many(data["stress"]),
                    "alarms": None if data["alarms"] is None else tuple(data["alarms"]),
                    "changed": None if data.get("changed") is None else tuple(data["changed"]),
                    "acknowledged": tuple(data.get("acknowledged", ())),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"this is not evidence written by this version: {error!r}") from error


@dataclass(frozen=True)
class Clause:
    """One clause of a decision: what it asks (`threshold`), what was found (`actual`) and whether it held.

    `passed` is None where the clause does not apply, such as a floor for first models when there is a champion. `why`
    says it in a sentence.
    """

    number: str
    stage: Stage
    text: str
    threshold: float | str | None
    actual: float | str | None
    passed: bool | None
    why: str


@dataclass(frozen=True)
class Decision:
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

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Inverse of `to_dict`."""
        clauses = tuple(Clause(**clause) for clause in data["clauses"])
        return cls(**{**data, "clauses": clauses, "reasons": tuple(data["reasons"])})


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


def load_policy(name_or_path: str) -> Policy:
    """Read the policy of that name shipped here, or the TOML file at that path.

    Raises ConfigError, naming the clause, for an unknown rule, a missing or unknown number, a number used twice, or a
    rule that no policy may leave out.
    """
    shipped = files("xray_pipeline") / "policies"
    try:
        if name_or_path.endswith(".toml"):
            source = Path(name_or_path).read_text(encoding="utf-8")
        else:
            source = (shipped / f"{Path(name_or_path).name}.toml").read_text(encoding="utf-8")
        content = tomllib.loads(source)
    except OSError as error:
        names = ", ".join(sorted(f.name.removesuffix(".toml") for f in shipped.iterdir()))
        raise ConfigError(f"no policy {name_or_path!r}: give a .toml file or one of {names}") from error
    except ValueError as error:
        raise ConfigError(f"policy {name_or_path!r} is not TOML: {error}") from error
    return _policy(content, source)


def decide(evidence: Evidence, policy: Policy) -> Decision:
    """Judge a candidate. Never raises: what is missing or not a number fails the clause that needs it."""
    clauses = tuple(_judged(clause, evidence) for clause in policy.clauses)

    def hold(*stages: Stage) -> bool:
        return all(clause.passed is not False for clause in clauses if clause.stage in stages)

    registered = hold("evidence", "register", "first")
    may_promote = registered and hold("promote", "release")
    spends = [clause for clause in policy.clauses if clause.rule == "confidence"]
    return Decision(
        verdict="registered" if registered else "refused",
        may_promote=may_promote,
        automatic=may_promote and evidence.promotion == "auto",
        clauses=clauses,
        reasons=_reasons(clauses, registered, may_promote, evidence),
        policy=policy.digest,
        policy_name=f"{policy.name} {policy.version}",
        candidate=evidence.candidate.model_digest if evidence.candidate else "",
        champion=evidence.champion.model_digest if evidence.champion else "",
        snapshot=evidence.snapshot,
        level=level_after(evidence.earlier_uses, spends[0].numbers) if evidence.comparison else 0.0,
    )


# --- putting it together


def _judged(clause: PolicyClause, evidence: Evidence) -> Clause:
    rule = RULES[clause.rule]
    found = rule.judge(evidence, clause.numbers)
    applies = rule.stage not in ("register", "promote") if not evidence.champion_known else rule.stage != "first"
    passed = found.passed if applies else None
    why = found.why if applies else f"Does not apply {'with' if evidence.champion_known else 'without'} a champion."
    return Clause(
        clause.number, rule.stage, clause.text, found.threshold, found.actual if applies else None, passed, why
    )


def _reasons(clauses: tuple[Clause, ...], registered: bool, may_promote: bool, evidence: Evidence) -> tuple[str, ...]:
    def of(*stages: Stage, passed: bool) -> list[str]:
        return [
            f"{clause.why} (clause {clause.number})"
            for clause in clauses
            if clause.stage in stages and clause.passed is passed
        ]

    if not registered:
        return ("Refused.", *of("evidence", "register", "first", passed=False))
    head = ["Registered.", *of("register", "first", passed=True)]
    if not may_promote:
        return (*head, "Not to be promoted.", *of("promote", "release", passed=False))
    return (*head, "May be promoted.", *of("promote", "release", passed=True))


def _policy(content: Mapping[str, Any], source: str) -> Policy:
    stray = sorted(set(content) - {"name", "version", "clause"})
    name, version = content.get("name"), content.get("version")
    listed = content.get("clause")
    whole = isinstance(listed, list) and all(isinstance(clause, dict) for clause in listed)
    if stray or not whole or not isinstance(name, str) or not isinstance(version, int):
        raise ConfigError(
            f"a policy has a name, a version (whole number) and clauses; found {', '.join(sorted(content))}"
        )
    clauses = tuple(_policy_clause(found) for found in content["clause"])
    for what, given in (("number", [c.number for c in clauses]), ("rule", [c.rule for c in clauses])):
        twice = sorted({value for value in given if given.count(value) > 1})
        if twice:
            raise ConfigError(f"policy {name!r} uses the {what} {twice[0]!r} more than once")
    absent = sorted({rule for rule, spec in RULES.items() if spec.required} - {c.rule for c in clauses})
    if absent:
        raise ConfigError(f"policy {name!r} leaves out {', '.join(absent)}, which no policy may")
    return Policy(name, version, clauses, hashlib.sha256(source.encode()).hexdigest(), source)


def _policy_clause(found: Mapping[str, Any]) -> PolicyClause:
    number, rule, text = (str(found.get(key, "")) for key in ("number", "rule", "text"))
    numbers = {key: value for key, value in found.items() if key not in ("number", "rule", "text", "allowed")}
    if rule not in RULES:
        raise ConfigError(f"clause {number or '?'}: no rule {rule!r}; there are {', '.join(RULES)}")
    if not number or not text:
        raise ConfigError(f"clause {number or '?'} ({rule}) needs a number and a text")
    wanted = RULES[rule].numbers
    if set(numbers) != set(wanted):
        raise ConfigError(
            f"clause {number} ({rule}) takes {', '.join(wanted) or 'no numbers'}; found {sorted(numbers)}"
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
