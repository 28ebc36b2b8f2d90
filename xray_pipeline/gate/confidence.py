"""How confident a promotion must be by now, the more often the held-out patients have been looked at.

Each comparison on the same held-out patients is one more chance to look better by luck, so the confidence asked for a
promotion follows a spending function (Lan and DeMets 1983) as Feng et al. 2022 ("Sequential algorithmic modification
with test data reuse") do for models approved again and again on one test set. After u earlier uses the level is

    budget * (S(u + 1) - S(u)),    S(u) = u / (u + half_life)

The levels of all uses sum to at most `budget`, so it bounds the expected number of false promotions whatever the
dependence between nights. The price is power: small gains need a large held-out set or new patients in it.

A version that waits may show that it is better on patients that nothing has learned from instead: a turn in shadow
(`evaluation/shadow`). Nothing is used twice there, but each turn is a chance of its own, so the turns have a budget of
their own, which they spend by the same function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from xray_pipeline.gate.finding import Finding, number_of

if TYPE_CHECKING:
    from xray_pipeline.evaluation.shadow import Shadow
    from xray_pipeline.gate.evidence import Evidence

USES = ("budget", "half_life", "max_level")
RECORD = ("record_budget", "record_half_life", "record_max_level", "record_deliveries")
"""Numbers of the rule `confidence`: what uses of the held-out patients may spend, and what turns in shadow may."""


def effective_uses(earlier: Iterable[int], patients: int) -> float:
    """Return how many earlier comparisons a held-out set of `patients` counts as having served.

    `earlier` holds the number of held-out patients of each earlier comparison. Patients never leave the held-out set,
    so each counts for the share of today's patients that it looked at: a set that has doubled halves its past.
    """
    return math.fsum(min(1.0, then / patients) for then in earlier) if patients > 0 else 0.0


def spending(uses: float, budget: float, half_life: float, max_level: float) -> float:
    """Return the level (largest p value) for the next comparison after so many uses; the module says how."""
    if half_life <= 0:
        return 0.0
    return min(max_level, budget * half_life / ((uses + half_life) * (uses + 1 + half_life)))


def level_after(uses: float | None, numbers: Mapping[str, float]) -> float:
    """Return the level that a clause `confidence` of these numbers leaves after so many uses; 0 where they are none."""
    known = number_of(uses)
    if known is None or known < 0:
        return 0.0
    return spending(known, numbers["budget"], numbers["half_life"], numbers["max_level"])


def level_of_turn(turn: int, numbers: Mapping[str, float]) -> float:
    """Return the level at which a turn in shadow (1, 2 ...) ends in favour of its version; 0 where none may."""
    if turn < 1:
        return 0.0
    return spending(turn - 1, *(numbers.get(f"record_{name}", 0.0) for name in ("budget", "half_life", "max_level")))


def confidence(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    """Judge by the held-out patients or, where the policy lets it, by the patients of a turn in shadow."""
    held_out = _held_out(evidence, numbers)
    if held_out.passed or held_out.actual is None or evidence.shadow is None or not numbers.get("record_budget"):
        return held_out
    passed, why = _in_shadow(evidence.shadow, numbers)
    return replace(held_out, passed=passed, why=f"{held_out.why} {why}")


def _held_out(evidence: Evidence, numbers: Mapping[str, float]) -> Finding:
    p = number_of(evidence.comparison and evidence.comparison.p_value)
    uses, most = number_of(evidence.earlier_uses), level_after(evidence.earlier_uses, numbers)
    if uses is None or uses < 0:
        return Finding(False, None, None, "How often the held-out patients were used before is not known.")
    if p is None or not 0 <= p <= 1:
        return Finding(False, None, 1 - most, "There is no comparison with the champion.")
    why = (
        f"Confidence that the candidate is more accurate: {1 - p:.4f}; asked after {_so_often(uses)} of the held-out "
        f"patients: {1 - most:.4f}."
    )
    return Finding(most > 0 and p <= most, 1 - p, 1 - most, why)


def _so_often(uses: float) -> str:
    """Say how often the held-out patients were used before; later patients make of a use a part of one."""
    if uses < 0.05:
        return "under 0.1 earlier uses" if uses else "no earlier use"
    count = f"{uses:.1f}".removesuffix(".0")
    return f"{count} earlier use{'s' * (count != '1')}"


def _in_shadow(shadow: Shadow, numbers: Mapping[str, float]) -> tuple[bool, str]:
    """Say whether new patients have shown that a candidate is more accurate, and in words."""
    wealth, level = number_of(shadow.wealth), level_of_turn(shadow.turn, numbers)
    gap = number_of(shadow.difference)
    if level <= 0:
        return False, f"By the policy's numbers turn {shadow.turn} in shadow can show nothing."
    if wealth is None or gap is None or shadow.patients < 1:
        return False, "In shadow it was asked about no patient that is new to both models yet."
    why = (
        f"In shadow, on {shadow.patients} patients of {shadow.deliveries} deliveries that are new to both models, its "
        f"accuracy is {gap:+z.4f} from the champion's: evidence of {math.exp(min(wealth, 50)):.3g} to 1; asked of turn "
        f"{shadow.turn}: {1 / level:.0f} to 1."
    )
    return gap > 0 and wealth >= -math.log(level), why
