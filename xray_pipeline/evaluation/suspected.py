"""What a list of suspects holds; suspects.py finds them. Reading a list needs no scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suspect:
    """One radiograph to look at: `says` is the class that a head trained without its patient gives, with `p` for it.

    `kind` is "mislabel" or "outlier"; `score` sorts a kind, larger is worse: p(says) - p(label), or how many robust
    standard deviations its neighbours are too far.
    """

    digest: str
    kind: str
    label: str
    says: str
    p: float
    score: float
