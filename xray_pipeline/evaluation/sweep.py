"""What a model of two classes would score at other cuts than its own: whether its ranking or its cut made it lose.

A model calls a radiograph positive when the probability of the second class reaches its cut. The cut is chosen on few
validation patients and so is noisy; the order in which a model puts radiographs (AUC) does not depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xray_pipeline.base.errors import EvaluationError

Floats = npt.NDArray[np.float64]

CUTS: Floats = np.linspace(0, 1, 201)
"""Where a sweep looks."""


@dataclass(frozen=True, eq=False)
class AtCuts:
    """Accuracy, sensitivity and specificity at cuts; each [K], in 0..1."""

    cuts: Floats
    accuracy: Floats
    sensitivity: Floats
    specificity: Floats


def at_cuts(scores: npt.ArrayLike, truth: npt.ArrayLike, cuts: npt.ArrayLike = CUTS) -> AtCuts:
    """Score probabilities [N] of the positive class against `truth` [N] (True: positive) at cuts [K].

    Raises EvaluationError unless both classes are there and as many scores as truths.
    """
    p, positive, at = np.asarray(scores, float), np.asarray(truth, bool), np.atleast_1d(np.asarray(cuts, float))
    if p.shape != positive.shape or positive.all() or not positive.any():
        raise EvaluationError(f"a sweep takes scores of both classes; got {p.shape} scores, {positive.sum()} positive")
    ill, well = np.sort(p[positive]), np.sort(p[~positive])
    called, cleared = len(ill) - np.searchsorted(ill, at), np.searchsorted(well, at)
    return AtCuts(at, (called + cleared) / len(p), called / len(ill), cleared / len(well))


@dataclass(frozen=True)
class Cuts:
    """Candidate (first) and champion: accuracy at its own cut and at .5, and AUC, all in 0..1."""

    own: tuple[float, float]
    half: tuple[float, float]
    auc: tuple[float, float]

    @property
    def decide(self) -> bool:
        """Whether the cuts, not the ranking, made the difference: who ranks better names fewer radiographs right at
        their own cuts, and not at .5."""
        own, half, auc = (first - second for first, second in (self.own, self.half, self.auc))
        return own * auc < 0 <= half * auc
