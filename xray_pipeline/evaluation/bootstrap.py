"""The patient-clustered bootstrap: one or two models' predictions into metrics, differences and intervals.

Patients are drawn with replacement (the cluster bootstrap; Field and Welsh 2007) as integer weights, all draws at once:
each count-based metric is one product of the draws with a table of sums per patient, each ranking metric one cumulative
sum; the point value is that of the draw which has each patient once. The price is memory, bounded by working through
the draws in blocks. Tests compare every value with scikit-learn's.

`ece` is the expected calibration error over 15 bins of equal mass (Nixon et al. 2019, "Measuring calibration in deep
learning"; Roelofs et al. 2022): of the positive class, or the mean over classes with more than two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_pipeline.evaluation.cases import Cases, Floats, Ints
from xray_pipeline.evaluation.metric_table import NAMES, PROPORTIONS, Interval

Key = tuple[int, str]  # class (-1: all of them), metric

LEVEL = 0.95
ECE_BINS = 15

_BLOCK = 4_000_000  # weights held at once: 32 MB each for a handful of arrays


@dataclass(frozen=True)
class Resampling:
    """How often patients are drawn, and from which seed."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Measured:
    """Models on the same rows under the same draws: each one's metrics, over all classes and by class with more than
    two, and the first's minus the second's, empty without a second. A metric that the rows can't have is absent."""

    models: tuple[Cases, ...]
    metrics: tuple[Mapping[str, Interval], ...]
    by_class: tuple[Mapping[str, Mapping[str, Interval]], ...]
    difference: Mapping[str, Interval]
    resampling: Resampling


def measure(models: Sequence[Cases], resampling: Resampling) -> Measured:
    """Measure one model, or two and how they differ, with patient-clustered 95 % intervals."""
    values = _values(models, resampling)
    whole = [_intervals(cases, found) for cases, found in zip(models, values, strict=True)]
    metrics, by_class = zip(*whole, strict=True)
    return Measured(tuple(models), metrics, by_class, _difference(*values) if len(values) > 1 else {}, resampling)


# --- metrics: weighted sums and cumulative sums, for all draws at once


def _macro(values: dict[Key, Any], accuracy: Any, cases: Cases) -> dict[Key, Any]:
    """Add what belongs to all classes together: the mean over one-vs-rest."""
    rated = cases.rated()
    for c in rated:
        values[(c, "balanced_accuracy")] = (values[(c, "sensitivity")] + values[(c, "specificity")]) / 2
    for name in NAMES[2:]:
        values[(-1, name)] = sum(values[(c, name)] for c in rated) / len(rated)
    values[(-1, "accuracy")] = accuracy
    # Of several classes it is the mean recall, not the mean of the one-vs-rest values, which true negatives inflate.
    values[(-1, "balanced_accuracy")] = values[(1, "balanced_accuracy") if len(rated) == 1 else (-1, "sensitivity")]
    return values


def _bin_gaps(y: npt.NDArray[np.bool_], s: Floats) -> Floats:
    """Return [N, bins]: probability minus truth, in the column of its bin. Equal probabilities share a bin."""
    bins = np.searchsorted(np.sort(s), s, side="left") * ECE_BINS // len(s)
    gaps = np.zeros((len(s), ECE_BINS))
    gaps[np.arange(len(s)), bins] = s - y
    return gaps


class _Table:
    """One model's cases made ready to be measured under any patient weights [draws, patients]."""

    def __init__(self, cases: Cases) -> None:
        order = np.lexsort((*cases.probabilities.T, cases.truth, cases.patient))
        self.cases = cases.at(order)  # sums are rounded alike, whatever order the rows came in
        self.size = self._per_patient(np.ones(len(order)))
        self.right = self._per_patient((self.cases.truth == self.cases.predicted).astype(float))
        self.sums = {c: self._sums(c) for c in cases.rated()}

    def measure(self, weights: Floats) -> dict[Key, Floats]:
        """Return each metric for each draw; NaN where a draw lacks what it needs (ppv and npv are then 0)."""
        values: dict[Key, Floats] = {}
        total = weights @ self.size
        with np.errstate(divide="ignore", invalid="ignore"):
            for c, per_patient in self.sums.items():
                sums = weights @ per_patient
                hits, positives, called, negatives_right, error = sums[:, :5].T
                values |= {
                    (c, "accuracy"): (hits + negatives_right) / total,
                    (c, "sensitivity"): hits / positives,
                    (c, "specificity"): negatives_right / (total - positives),
                    (c, "ppv"): np.nan_to_num(hits / called),
                    (c, "npv"): np.nan_to_num(negatives_right / (total - called)),
                    (c, "brier"): error / total,
                    (c, "ece"): np.abs(sums[:, 5:]).sum(axis=1) / total,
                }
                values[(c, "auc")], values[(c, "average_precision")] = self._ranking(c, weights)
            return _macro(values, weights @ self.right / total, self.cases)

    def _sums(self, c: int) -> Floats:
        y, hit, s = self.cases.truth == c, self.cases.predicted == c, self.cases.probabilities[:, c]
        columns = [y & hit, y, hit, ~y & ~hit, (s - y) ** 2, *_bin_gaps(y, s).T]
        return np.stack([self._per_patient(np.asarray(x, dtype=float)) for x in columns], axis=1)

    def _per_patient(self, values: Floats) -> Floats:
        return np.bincount(self.cases.patient, weights=values, minlength=self.cases.count).astype(np.float64)

    def _ranking(self, c: int, weights: Floats) -> tuple[Floats, Floats]:
        """Area under the ROC curve and average precision, with ties as scikit-learn has them."""
        s, y = self.cases.probabilities[:, c], self.cases.truth == c
        order = np.argsort(-s, kind="stable")
        last = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
        w = weights[:, self.cases.patient[order]]
        everyone = np.cumsum(w, axis=1)[:, last]
        w *= y[order]
        hits = np.cumsum(w, axis=1)[:, last]
        misses = everyone - hits
        gained = np.diff(hits, axis=1, prepend=0)
        tied = np.diff(misses, axis=1, prepend=0)
        area = (gained * (misses[:, -1:] - misses + tied / 2)).sum(axis=1)
        precision = np.divide(hits, everyone, out=np.zeros_like(hits), where=everyone > 0)
        return area / (hits[:, -1] * misses[:, -1]), (gained * precision).sum(axis=1) / hits[:, -1]


def _draw(patients: int, rows: int, resampling: Resampling) -> Iterator[Floats]:
    """Yield blocks of patient weights [draws, patients]: how often each patient is drawn."""
    rng = np.random.default_rng(resampling.seed)
    step = max(1, _BLOCK // max(rows, patients))
    for start in range(0, resampling.resamples, step):
        count = min(step, resampling.resamples - start)
        drawn = rng.integers(patients, size=(count, patients)) + np.arange(count)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients).astype(np.float64)


def _values(models: Sequence[Cases], resampling: Resampling) -> list[dict[Key, Floats]]:
    """Return each model's metrics [1 + draws]: those of the rows themselves, then those of the draws of patients."""
    tables = [_Table(cases) for cases in models]
    blocks: list[list[dict[Key, Floats]]] = [[] for _ in models]
    patients, rows = models[0].count, len(models[0].truth)
    for weights in chain([np.ones((1, patients))], _draw(patients, rows, resampling)):
        for measured, table in zip(blocks, tables, strict=True):
            measured.append(table.measure(weights))
    return [{key: np.concatenate([block[key] for block in parts]) for key in parts[0]} for parts in blocks]


# --- intervals


def _intervals(
    cases: Cases, values: Mapping[Key, Floats]
) -> tuple[dict[str, Interval], dict[str, dict[str, Interval]]]:
    rated = {c: {name: _interval(cases, c, name, values[(c, name)]) for name in NAMES} for c in cases.rated()}
    for one in rated.values():
        recalls = [one["sensitivity"], one["specificity"]]
        one["balanced_accuracy"] = _widened(one["balanced_accuracy"], recalls)
    whole = {name: _interval(cases, -1, name, values[(-1, name)]) for name in NAMES}
    for name in PROPORTIONS[1:]:
        whole[name] = _widened(whole[name], _parts(name, rated))
    several = rated if len(rated) > 1 else {}
    return _defined(whole), {cases.classes[c]: _defined(one) for c, one in several.items()}


def _parts(name: str, rated: Mapping[int, Mapping[str, Interval]]) -> list[Interval]:
    """The proportions that one over all classes is the mean of."""
    if name == "balanced_accuracy":
        if len(rated) == 1:
            return [one[part] for one in rated.values() for part in ("sensitivity", "specificity")]
        name = "sensitivity"
    return [one[name] for one in rated.values()]


def _widened(whole: Interval, parts: Sequence[Interval]) -> Interval:
    """A mean of proportions of which one is exactly 0 or 1, and so has no spread: at least the mean of their bounds."""
    if not any(part.value in (0.0, 1.0) for part in parts):
        return whole
    low, high = (float(np.mean([getattr(part, end) for part in parts])) for end in ("low", "high"))
    return Interval(whole.value, min(whole.low, low), max(whole.high, high))


def _interval(cases: Cases, c: int, name: str, values: Floats) -> Interval:
    """The percentile interval of a metric's values [1 + draws], with two repairs where it is known to fail.

    A proportion of exactly 0 or 1 has no spread to resample: the bound is Clopper and Pearson's (1934) for as many
    trials as patients. The calibration error of a resample is biased upward by the resampling: its draws are moved by
    their mean's distance from the point.
    """
    value = np.minimum(values[0], 1.0)  # an average precision may be rounded to a little more
    low, high = _percentiles(values[1:])
    if name == "ece" and np.isfinite(value):
        shift = float(np.nanmean(values[1:])) - value
        low, high = max(0.0, low - shift), max(0.0, high - shift)
    if name in PROPORTIONS and value in (0.0, 1.0):
        trials = _trials(cases, c, name)
        least = ((1 - LEVEL) / 2) ** (1 / trials) if trials else 0.0
        low, high = (least, 1.0) if value == 1 else (0.0, 1 - least)
    return Interval(float(value), float(min(low, value)), float(min(max(high, value), 1.0)))


def _trials(cases: Cases, c: int, name: str) -> int:
    """Patients that a proportion rests on: of the several it is a mean of, the fewest."""
    truth, predicted = cases.truth, cases.predicted
    kinds: dict[str, Callable[[int], npt.NDArray[np.bool_]]] = {
        "sensitivity": lambda k: truth == k,
        "specificity": lambda k: truth != k,
        "ppv": lambda k: predicted == k,
        "npv": lambda k: predicted != k,
        "balanced_accuracy": lambda k: truth == k,
        "accuracy": lambda k: truth >= 0,
    }
    if name == "balanced_accuracy" and c >= 0:
        return min(_trials(cases, c, "sensitivity"), _trials(cases, c, "specificity"))
    wanted = range(len(cases.classes)) if name == "balanced_accuracy" else cases.rated() if c < 0 else [c]
    return min(len(np.unique(cases.patient[kinds[name](k)])) for k in wanted)


def _difference(ours: Mapping[Key, Floats], theirs: Mapping[Key, Floats]) -> dict[str, Interval]:
    """Return the first model's metric minus the second's, both under the same draws."""
    gaps = {}
    for name in NAMES:
        value, *draws = ours[(-1, name)] - theirs[(-1, name)]
        low, high = _percentiles(np.array(draws))
        gaps[name] = Interval(float(value), float(min(low, value)), float(max(high, value)))
    return _defined(gaps)


def _percentiles(draws: Floats) -> tuple[float, float]:
    finite = draws[np.isfinite(draws)]
    if len(finite) == 0:
        return np.nan, np.nan
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _defined(intervals: Mapping[str, Interval]) -> dict[str, Interval]:
    return {name: one for name, one in intervals.items() if np.isfinite([one.value, one.low, one.high]).all()}


def sign_flip_p(balance: Ints) -> float:
    """Return P(sum >= the one seen) when the sign of each patient's balance is a fair coin.

    Exact: the distribution is a convolution of one scaled binomial per magnitude. 1.0 when no patient differs.
    """
    magnitudes, counts = np.unique(np.abs(balance[balance != 0]), return_counts=True)
    tail = np.ones(1)  # distribution of the sum of the magnitudes whose coin is positive
    for magnitude, count in zip(magnitudes, counts, strict=True):
        spread = np.zeros(int(magnitude * count) + 1)
        spread[:: int(magnitude)] = list(_coins(int(count)))
        tail = np.convolve(tail, spread)
    reached = (int(balance.sum()) + int(np.abs(balance).sum())) // 2
    return float(min(1.0, tail[reached:].sum()))


def _coins(count: int) -> Iterator[float]:
    """Yield the probability of 0, 1, ... `count` heads of so many fair coins, each rounded once."""
    ways = 1
    for heads in range(count + 1):
        yield ways / 2**count
        ways = ways * (count - heads) // (heads + 1)
