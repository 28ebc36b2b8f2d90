"""Is a mean as high as it was promised? A test that may be looked at every night, for ever, and an interval with it.

Somebody who doubts that values have a mean of at least `null` bets on it: each value x multiplies the stake by
1 + bet * (null - x). While the mean of each value, given all before it, is at least `null`, no way of betting is
expected to win, so the wealth exceeds 1 / alpha at any time, ever, with probability at most alpha (Ville 1939): no
distribution, sample size or number of looks enters (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", JRSS-B 86, arXiv 2010.09686). The means may differ from night to night, but each must be at least
`null`: nights that wander below it and above it are not averaged, and a stretch below it may be found out as a fall.

How much to bet depends on how large a fall is and when it begins. Nobody knows, so the stake is spread over some bets,
as mixtures are (ibid.), and over the nights at which to begin: a part of it waits for each night, and what begins late
has lost nothing in the good years before. That is a Shiryaev-Roberts statistic (Shin, Ramdas and Rinaldo 2023,
"E-detectors", arXiv 2203.03532) with weights that sum to at most 1, which bounds whether there is ever a false alarm,
and not only how often. The price: a fall that comes after n nights has to earn its weight back, some 1.2 log(n) of the
wealth's logarithm, which every test with a bound over all time pays in some way (Lai 1998).

Values are counted, not listed: a patient has few radiographs, so ten years of nights are one product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GAPS: Final = np.array([0.01, 0.025, 0.06, 0.15])
"""Falls below the null that the bets are best at; between them little is lost."""
_FINE: Final = 0.0015 * 2.5 ** np.arange(6)
_MOST: Final = 0.9  # of the stake, that one value can lose
_GRID: Final = 401  # means among which the ends of an interval are looked for
_LEAST_VARIANCE: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Values:
    """What was seen, night by night: `counts` [..., nights, kinds] of the distinct `values` [..., kinds]; whatever may
    still come lies from `low` to `high`."""

    values: Floats
    counts: Floats
    low: float | Floats
    high: float | Floats

    @property
    def total(self) -> int:
        """How many values there are, in all nights."""
        return int(self.counts.sum())


def count(values: npt.ArrayLike, night: npt.ArrayLike, nights: int, low: float, high: float) -> Values:
    """Count values [N], each of a night [N] from 0 to nights - 1."""
    kinds, kind = np.unique(np.round(np.asarray(values, np.float64), 9), return_inverse=True)
    counts = np.zeros((nights, len(kinds)))
    np.add.at(counts, (np.asarray(night, np.int64), kind), 1)
    return Values(kinds.astype(np.float64), counts, low, high)


def beginnings(nights: int) -> Floats:
    """Return which part of the stake begins at each night [nights]: half of it at the first, in all at most 1."""
    n = np.arange(2, nights + 2)
    return np.asarray(1 / (2.11 * n * np.log(n) ** 2))  # of all n from 2 on, 1 / (n log² n) sums to 2.1097


def log_wealth(seen: Values, null: npt.ArrayLike, variance: npt.ArrayLike) -> Floats:
    """Return the logarithm of the wealth [..., nights] of a bet against means of at least `null`, after each night.

    `variance` is about that of a value at the null; a wrong one costs power and no validity. Of several series at once,
    `null`, `variance` and what `seen` holds have one of each.
    """
    gained = _gained(seen, null, variance)
    nights = gained.shape[-2]
    begins = beginnings(nights)
    waiting = np.log1p(-np.cumsum(begins))
    running = np.full((*gained.shape[:-2], gained.shape[-1]), -np.inf)
    logs = np.empty(gained.shape[:-1])
    for night in range(nights):
        running = np.logaddexp(running, np.log(begins[night])) + gained[..., night, :]
        logs[..., night] = np.logaddexp(_log_mean(running), waiting[night])
    return logs


def log_wealth_at_once(seen: Values, null: npt.ArrayLike, variance: npt.ArrayLike) -> Floats:
    """Return what `log_wealth` does of a bet that begins with all of its stake at the first night: right where what is
    looked for, if it is there, was there from the beginning."""
    return _log_mean(np.cumsum(_gained(seen, null, variance), axis=-2))


def best_beginning(seen: Values, null: float, variance: float, night: int) -> int:
    """Return the night at which the part of the stake began that has earned most after `night`: where a fall seems to
    have begun. If it earned anything, the values from then to `night` are below `null` on average."""
    gained = _gained(seen, null, variance)[: night + 1]
    earned = np.cumsum(gained[::-1], axis=0)[::-1]  # [beginnings, bets]: from each on to `night`
    return int((_log_mean(earned) + np.log(beginnings(night + 1))).argmax())


def _gained(seen: Values, null: npt.ArrayLike, variance: npt.ArrayLike) -> Floats:
    """Return by how much each night multiplies each bet [..., nights, bets], as logarithms."""
    least, most = np.asarray(null, np.float64)[..., None], np.asarray(seen.high)[..., None]
    spread = np.maximum(np.asarray(variance, np.float64), _LEAST_VARIANCE)[..., None]
    bets = np.minimum(GAPS / spread, _MOST / np.maximum(most - least, 1e-9))
    table = np.log1p(bets[..., None, :] * (least - seen.values)[..., None])  # [..., kinds, bets]
    return np.asarray(seen.counts @ table)


def averaged(logs: npt.ArrayLike, shares: npt.ArrayLike) -> Floats:
    """Return the logarithm of what wealths [tests, ...] come to, to each of which went a share [tests] of the stake.

    It exceeds 1 / alpha wherever one exceeds 1 / (alpha * share), as Bonferroni asks, and elsewhere too.
    """
    share = np.asarray(shares, np.float64)
    weighted = np.asarray(logs, np.float64) + np.log(share / share.sum()).reshape(-1, *(1,) * (np.ndim(logs) - 1))
    return np.asarray(np.logaddexp.reduce(weighted, axis=0))


def intervals(seen: Values, variance: float, alpha: float) -> Floats:
    """Return the ends [nights, 2] of a confidence sequence: if the mean is the same every night, it lies in all of them
    with probability at least 1 - alpha.

    A mean belongs to an interval while neither who bets that it is lower nor who bets that it is higher has got rich.
    """
    means = np.linspace(seen.low, seen.high, _GRID)
    bets = np.minimum(_FINE / max(variance, _LEAST_VARIANCE), _MOST / (seen.high - seen.low))
    away = seen.values[:, None] - means  # [kinds, means]
    sides = []
    for sign in (1, -1):
        table = np.log1p(sign * bets * away[:, :, None])  # [kinds, means, bets]
        sides.append(_log_mean(np.tensordot(np.cumsum(seen.counts, axis=0), table, axes=1)))
    kept = np.logaddexp(*sides) - np.log(2) < -np.log(alpha)  # [nights, means]
    step = means[1] - means[0]
    low = means[kept.argmax(axis=1)] - step
    high = means[len(means) - 1 - kept[:, ::-1].argmax(axis=1)] + step
    return np.stack([np.maximum(low, seen.low), np.minimum(high, seen.high)], axis=1)


def _log_mean(logs: Floats) -> Floats:
    """Return the logarithm of the mean over the last axis."""
    return np.asarray(np.logaddexp.reduce(logs, axis=-1) - np.log(logs.shape[-1]))
