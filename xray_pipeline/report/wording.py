"""What was measured and decided, in words and numbers for a radiologist and an auditor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xray_pipeline.evaluation.bootstrap import Interval
    from xray_pipeline.evaluation.metrics import Evaluation
    from xray_pipeline.gate.evidence import Evidence
    from xray_pipeline.gate.policy import Decision


def candidate_of(evidence: Evidence) -> Evaluation:
    """The candidate's evaluation. Raises KeyError when there is none."""
    if evidence.candidate is None:
        raise KeyError("the evidence holds no evaluation of the candidate: there is nothing to report")
    return evidence.candidate


def percent(share: float) -> str:
    """A share as people read it: 93.1 %."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Cell:
    """A number in a table: the value, its interval in words, and whether a difference is beyond doubt."""

    value: str = "-"
    range: str = ""
    tone: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


def cell(interval: Interval | None) -> Cell:
    """A value with its interval: 0.931 (0.909 to 0.948)."""
    if interval is None:
        return Cell()
    return Cell(f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")


def difference(interval: Interval | None, higher_is_better: bool = True) -> Cell:
    """A difference with its interval: +0.012 (-0.004 to +0.027); "good" or "bad" when that leaves out zero."""
    if interval is None:
        return Cell()
    tone = ""
    if not interval.low <= 0 <= interval.high:
        tone = "good" if (interval.value > 0) == higher_is_better else "bad"
    return Cell(f"{interval.value:+z.3f}", f"{interval.low:+z.3f} to {interval.high:+z.3f}", tone)


def chance(p: float) -> str:
    """A p value in words, such as "in 1 of 8 tries"."""
    if p > 0.4:
        return "always" if p > 0.95 else f"in {10 * p:.0f} of 10 tries"
    return f"in 1 of {1 / p:,.0f} tries" if p > 1e-9 else "practically never"


def headline(decision: Decision) -> str:
    """The decision in a few words."""
    if decision.verdict == "refused":
        return "Refused: it stays out of the registry"
    if not decision.may_promote:
        return "Registered, not promoted"
    return "Registered and promoted" if decision.automatic else "Registered; a person decides on promoting it"


def in_words(evidence: Evidence) -> list[str]:
    """What was found, in sentences for a reader who does not know the metrics' names."""
    ours, theirs = candidate_of(evidence), evidence.champion
    found = [
        f"The candidate read {ours.n:,} radiographs of {ours.patients:,} patients that no training ever saw, and named "
        f"{percent(ours.metrics['accuracy'].value)} of them right (95 % interval "
        f"{percent(ours.metrics['accuracy'].low)} to {percent(ours.metrics['accuracy'].high)})."
    ]
    if len(ours.classes) == 2:
        negative, positive = ours.classes
        found.append(
            f"Of 100 radiographs with {positive} it calls {100 * ours.metrics['sensitivity'].value:.0f}; of 100 "
            f"radiographs with {negative} it clears {100 * ours.metrics['specificity'].value:.0f}."
        )
    if theirs is None or evidence.comparison is None:
        return [
            *found,
            "There is no model in production to compare it with: the policy's floors for a first model decide.",
        ]
    against = evidence.comparison
    found[0] += (
        f" The model in production named {percent(theirs.metrics['accuracy'].value)} of the same radiographs right."
    )
    if len(ours.classes) == 2:
        sensitivity, specificity = (100 * theirs.metrics[name].value for name in ("sensitivity", "specificity"))
        found[1] += f" The model in production: {sensitivity:.0f} and {specificity:.0f}."
    found.append(
        f"On {against.only_candidate_right} radiographs only the candidate is right, on {against.only_champion_right} "
        f"only the model in production. If both were equally good, luck would favour the candidate at least this much "
        f"{chance(against.p_value)}."
    )
    return found
