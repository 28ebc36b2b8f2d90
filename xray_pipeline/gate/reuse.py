"""How confident a promotion must be by now, the more often the held-out patients have been looked at.

Each comparison on the same held-out patients is one more chance to look better by luck, so the confidence asked for a
promotion follows a spending function (Lan and DeMets 1983) as Feng et al. 2022 ("Sequential algorithmic modification
with test data reuse") do for models approved again and again on one test set. After u earlier uses the level is

    budget * (S(u + 1) - S(u)),    S(u) = u / (u + half_life)

The levels of all uses sum to at most `budget`, so it bounds the expected number of false promotions whatever the
dependence between nights. The price is power: small gains need a large held-out set or new patients in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


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


def number_of(value: object) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def level_after(uses: float | None, numbers: Mapping[str, float]) -> float:
    """Return the level that a clause `confidence` of these numbers leaves after so many uses; 0 where they are none."""
    known = number_of(uses)
    return 0.0 if known is None or known < 0 else spending(known, **numbers)
