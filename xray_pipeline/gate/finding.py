"""What a rule finds in the evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a rule found (`actual`) beside what it asks (`threshold`), and in a sentence.

    `warning`: a person should read the sentence, though the clause holds.
    """

    passed: bool
    actual: float | str | None
    threshold: float | str | None
    why: str
    warning: bool = False


def number_of(value: object) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
