"""A version in shadow: is it more accurate than the champion on patients that neither has learned from?

It answers beside the champion on each new delivery. A value is, for a patient, the mean over the radiographs of right
(1) or wrong (0) of the version less that of the champion, from -1 to 1. Somebody who doubts that the version is better
bets on it (`betting`): while the mean of each value, given all before it, is at most 0, the wealth exceeds 1 / level at
any time with probability at most `level`, so it may be looked at every night. A patient counts once, with the delivery
that showed the patient first, for the reasons that `watching` gives. The mix of classes is that of the deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from xray_pipeline.base.records import Plain
from xray_pipeline.evaluation import betting
from xray_pipeline.evaluation.watching import first_seen

VARIANCE: Final = 0.05
"""About that of a value where two models differ on 5 % of the radiographs; another one costs power, no validity."""


@dataclass(frozen=True)
class Shadow(Plain):
    """A version's turn in shadow: the `turn`-th one there ever was (from 1), on so many patients, of so many
    deliveries, that neither it nor the champion has learned from; accuracy there less the champion's, by patients (None
    without any); and the most wealth (its logarithm) that who bets that the version is better had after any delivery:
    Ville's bound is about ever, so what was shown once stays shown."""

    turn: int
    deliveries: int
    patients: int
    difference: float | None
    wealth: float


def contest(turn: int, ours: pd.DataFrame, theirs: pd.DataFrame) -> Shadow:
    """Set a version's record beside the champion's.

    Both have the columns digest, order (place of the delivery among the commits), patient, truth and named (classes by
    number), a row per radiograph, or are empty; what only one of them was asked about does not count.
    """
    nothing = Shadow(turn, 0, 0, None, 0.0)
    if ours.empty or theirs.empty:
        return nothing
    rows = first_seen(ours.merge(theirs[["digest", "named"]], on="digest", suffixes=("", "_by_champion")))
    if rows.empty:
        return nothing
    right, champion_right = (rows[by] == rows["truth"] for by in ("named", "named_by_champion"))
    gains = (right.astype(float) - champion_right.astype(float)).groupby([rows["order"], rows["patient"]]).mean()
    _, night = np.unique(gains.index.get_level_values("order"), return_inverse=True)
    deliveries = int(night.max()) + 1
    # Against means of at least 0 of what the champion gains.
    seen = betting.count(-gains.to_numpy(), night, deliveries, -1, 1)
    wealth = float(betting.log_wealth_at_once(seen, 0.0, VARIANCE).max())
    return Shadow(turn, deliveries, len(gains), float(gains.mean()), wealth)
