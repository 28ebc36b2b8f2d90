"""What was measured and decided, in words and numbers for a radiologist and an auditor.

Each sentence holds for every value it may be given, also at the ends: nobody right, everybody right, one radiograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xray_pipeline.base.text import several
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.evaluation.metrics import Comparison, Evaluation
from xray_pipeline.evaluation.sweep import Cuts
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import Decision


def candidate_of(evidence: Evidence) -> Evaluation:
    """The candidate's evaluation. Raises KeyError when there is none."""
    if evidence.candidate is None:
        raise KeyError("the evidence holds no evaluation of the candidate: there is nothing to report")
    return evidence.candidate


_SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """A share as people read it: 93.1 %. What is not quite none or all never reads as none or all."""
    if not math.isfinite(share):
        return "an unknown share"
    text = f"{100 * share:.1f}"
    if text == "0.0" and share > 0:
        return f"under 0.1{_SPACE}%"
    return f"over 99.9{_SPACE}%" if text == "100.0" and share < 1 else f"{text}{_SPACE}%"


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


def tries(p: float) -> str:
    """How often something of probability `p`, 0 to 1, happens: in about 1 of 8 tries."""
    if p > 0.9:
        return "every time" if p >= 1 else "in more than 9 of 10 tries"
    if p >= 0.15:
        return f"in about {10 * p:.0f} of 10 tries"
    return f"in about 1 of {1 / p:,.0f} tries" if p >= 1e-6 else "in fewer than 1 of a million tries"


def headline(decision: Decision) -> str:
    """The decision in a few words."""
    if decision.verdict == "refused":
        return "Refused: it stays out of the registry"
    if not decision.may_promote:
        return "Registered, not promoted"
    return "Registered; no person is asked" if decision.automatic else "Registered; a person decides on promoting it"


def in_words(evidence: Evidence, rival: str) -> list[str]:
    """What was found, in sentences for a reader who does not know the metrics' names; `rival` names the champion."""
    ours, theirs = candidate_of(evidence), evidence.champion
    accuracy = ours.metrics["accuracy"]
    told = [
        f"The candidate read {several(ours.n, 'radiograph')} of {several(ours.patients, 'patient')} that no training "
        f"ever saw, and named {percent(accuracy.value)} of them right (95 % interval {percent(accuracy.low)} to "
        f"{percent(accuracy.high)})."
    ]
    if len(ours.classes) == 2:
        told.append(
            f"Of the radiographs that are {ours.classes[1]} it calls {percent(ours.metrics['sensitivity'].value)}; of "
            f"those that are {ours.classes[0]} it clears {percent(ours.metrics['specificity'].value)}."
        )
    if theirs is None or evidence.comparison is None:
        alone = "There is no model in production to compare it with: the policy's floors for a first model decide."
        return [*told, alone]
    told[0] += f" {rival.capitalize()} named {percent(theirs.metrics['accuracy'].value)} of the same radiographs right."
    if len(ours.classes) == 2:
        called, cleared = (percent(theirs.metrics[name].value) for name in ("sensitivity", "specificity"))
        told[1] += f" {rival.capitalize()}: {called} and {cleared}."
    return [*told, _lead(evidence.comparison, rival)]


def _lead(against: Comparison, rival: str) -> str:
    """Who is right where the other is wrong, and whether luck could do as much."""
    ours, theirs = against.only_candidate_right, against.only_champion_right
    if not ours and not theirs:
        return "The two models name the same radiographs right."
    told = f"On {several(ours, 'radiograph')} only the candidate is right, on {theirs:,} only {rival}."
    if ours <= theirs:
        return f"{told} The candidate is not ahead."
    if not 0 <= against.p_value <= 1:
        return f"{told} How often luck would do as much is not known."
    luck = tries(against.p_value)
    return f"{told} If both were equally good, luck alone would put the candidate this far ahead or further {luck}."


def cuts_in_words(cuts: Cuts, threshold: tuple[float, float], rival: str) -> str:
    """What the choice of the cut did: candidate's and champion's accuracy at their own cuts and at .5."""
    half = (
        f"At a cut of .5 the candidate would name {percent(cuts.half[0])} right, {rival} "
        f"{percent(cuts.half[1])}; at their own cuts, {threshold[0]:.3f} and {threshold[1]:.3f}, it is "
        f"{percent(cuts.own[0])} and {percent(cuts.own[1])}."
    )
    if not cuts.decide:
        return half
    better = "the candidate" if cuts.auc[0] > cuts.auc[1] else rival
    return (
        f"The threshold, not the ranking, made the difference in accuracy: {better} ranks radiographs better (AUC "
        f"{cuts.auc[0]:.4f} of the candidate, {cuts.auc[1]:.4f} of {rival}) and names fewer right at "
        f"its cut. {half}"
    )


def warnings(decision: Decision, evidence: Evidence) -> list[str]:
    """What a reader must know before the decision: alarms that stand, and what the policy warns of."""
    alarms = evidence.alarms or ()
    told = [f"Drift alarm: {alarm}. Nobody had acknowledged it when this was decided." for alarm in alarms]
    if evidence.watch and evidence.watch.alarm:
        told.insert(
            0, f"Alarm about the champion: {evidence.watch.alarm} Nobody had looked into it when this was decided."
        )
    return [*told, *decision.warnings]
