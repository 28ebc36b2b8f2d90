"""The patient-clustered bootstrap: one or two models' predictions into metrics, differences and intervals.

Patients are drawn with replacement (the cluster bootstrap; Field and Welsh 2007) as integer weights, all draws at once:
each count-based metric is one product of the draws with a table of sums per patient, each ranking metric one cumulative
sum. The price is memory, bounded by working through the draws in blocks. Point values are scikit-learn's.

`ece` is the expected calibration error over 15 bins of equal mass (Nixon et al. 2019, "Measuring calibration in deep
learning"; Roelofs et al. 2022): of the positive class, or the mean over classes with more than two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sk

from xray_pipeline.base.errors import EvaluationError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Key = tuple[int, str]  # class (-1: all of them), metric

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "auc",
    "average_precision",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "brier",
    "ece",
)
PROPORTIONS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv")
LEVEL = 0.95
ECE_BINS = 15

_BLOCK = 4_000_000  # weights held at once: 32 MB each for a handful of arrays


@dataclass(frozen=True)
class Interval:
    """A value and its two-sided 95 % interval; `low <= value <= high` holds for all but resampling noise."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cases:
    """One model's predictions with the truth; `digest` names the rows (patients and labels), "" for a part of them."""

    probabilities: Floats  # [N, C]
    truth: Ints  # [N]
    predicted: Ints  # [N]
    patient: Ints  # [N], 0 .. count-1
    count: int
    classes: tuple[str, ...]
    digest: str

    def rated(self) -> range:
        """The classes taken against the rest: the positive one of two, or each."""
        return range(1, 2) if len(self.classes) == 2 else range(len(self.classes))

    @cached_property
    def points(self) -> dict[Key, float]:
        """The metrics of these rows; one that they can't have is NaN."""
        return _points(self)


def prepare(
    tables: Sequence[npt.ArrayLike],
    labels: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
    thresholds: Sequence[float],
    in_order: bool = True,
) -> list[Cases]:
    """Check each model's probabilities [N, C] against the same N rows and bring them into one canonical order.

    Raises EvaluationError for no rows, lengths that differ, a value that is no probability, a label outside `classes`,
    an empty patient, a threshold that is not a number.
    """
    names, owners = np.asarray(list(labels), dtype=str), np.asarray(list(patients), dtype=str)
    if len(names) == 0:
        raise EvaluationError("there is no radiograph to evaluate on; the held-out split is empty")
    ps = [np.asarray(table, dtype=np.float64) for table in tables]
    for p in ps:
        check_probabilities(p, len(names), len(classes))
    if len(owners) != len(names) or (owners == "").any():
        raise EvaluationError(f"{len(names)} rows need {len(names)} patients, none of them empty")
    if len(classes) == 2 and not np.isfinite(thresholds).all():
        raise EvaluationError(f"an operating threshold is not a number: {tuple(thresholds)}; train the model again")
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names.tolist()) - set(index))
    if unknown:
        raise EvaluationError(f"label {unknown[0]!r} is not one of the model's classes {tuple(classes)}")
    truth = np.array([index[name] for name in names.tolist()], dtype=np.int64)
    distinct, owner = np.unique(owners, return_inverse=True)
    if in_order:
        order = np.lexsort((*(column for p in ps for column in p.T), truth, owner))
        ps, truth, owner = [p[order] for p in ps], truth[order], owner[order]
    digest = _rows_digest(distinct, truth, owner, classes)
    return [
        Cases(p, truth, _predicted(p, threshold), owner, len(distinct), tuple(classes), digest)
        for p, threshold in zip(ps, thresholds, strict=False)
    ]


def _predicted(p: Floats, threshold: float) -> Ints:
    return (p[:, 1] >= threshold).astype(np.int64) if p.shape[1] == 2 else p.argmax(axis=1)


def check_probabilities(p: Floats, rows: int, classes: int) -> None:
    """Raise EvaluationError unless `p` is [rows, classes] of finite values >= 0 that sum to 1 in each row."""
    if p.shape != (rows, classes):
        raise EvaluationError(f"probabilities have shape {p.shape}, expected {(rows, classes)}: rows x classes")
    bad = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < 1e-3))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"row {row} holds {p[row].tolist()}, not probabilities that sum to 1 ({int(bad.sum())} of {rows} rows)"
        )


def require_every_class(cases: Cases) -> None:
    """Raise EvaluationError, naming it, for a class without any row."""
    counts = np.bincount(cases.truth, minlength=len(cases.classes))
    if (counts == 0).any():
        absent = [name for name, count in zip(cases.classes, counts, strict=True) if count == 0]
        raise EvaluationError(
            f"none of the {len(cases.truth)} rows is {' or '.join(absent)}: sensitivity and AUC need every class"
        )


def _rows_digest(distinct: npt.NDArray[Any], truth: Ints, patient: Ints, classes: Sequence[str]) -> str:
    order = np.lexsort((truth, patient))
    lines = [f"{distinct[patient[i]]}\t{classes[truth[i]]}" for i in order]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def subset(cases: Cases, where: Ints) -> Cases:
    """Return the rows at the positions `where` as cases of their own, in canonical order."""
    inverse: Ints
    distinct, inverse = np.unique(cases.patient[where], return_inverse=True)
    p, truth, predicted = cases.probabilities[where], cases.truth[where], cases.predicted[where]
    order = np.lexsort((*p.T, truth, inverse))
    return Cases(p[order], truth[order], predicted[order], inverse[order], len(distinct), cases.classes, "")


# --- metrics: scikit-learn's for the point, weighted sums and cumulative sums for all draws at once


def _points(cases: Cases) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for c in cases.rated():
        y, hit, s = cases.truth == c, cases.predicted == c, cases.probabilities[:, c]
        both = bool(y.any() and not y.all())
        tn, fp, fn, tp = sk.confusion_matrix(y, hit, labels=[False, True]).ravel().tolist()
        found |= {
            (c, "accuracy"): (tp + tn) / len(y),
            (c, "auc"): float(sk.roc_auc_score(y, s)) if both else np.nan,
            (c, "average_precision"): float(sk.average_precision_score(y, s)) if both else np.nan,
            (c, "sensitivity"): tp / (tp + fn) if tp + fn else np.nan,
            (c, "specificity"): tn / (tn + fp) if tn + fp else np.nan,
            (c, "ppv"): tp / (tp + fp) if tp + fp else 0.0,
            (c, "npv"): tn / (tn + fn) if tn + fn else 0.0,
            (c, "brier"): float(sk.brier_score_loss(y, s, pos_label=True)),
            (c, "ece"): float(np.abs(_bin_gaps(y, s).sum(axis=0)).sum() / len(y)),
        }
    return _macro(found, float(sk.accuracy_score(cases.truth, cases.predicted)), cases)


def _macro(found: dict[Key, Any], accuracy: Any, cases: Cases) -> dict[Key, Any]:
    """Add what belongs to all classes together: the mean over one-vs-rest."""
    rated = cases.rated()
    for c in rated:
        found[(c, "balanced_accuracy")] = (found[(c, "sensitivity")] + found[(c, "specificity")]) / 2
    for name in METRICS[2:]:
        found[(-1, name)] = sum(found[(c, name)] for c in rated) / len(rated)
    found[(-1, "accuracy")] = accuracy
    # Of several classes it is the mean recall, not the mean of the one-vs-rest values, which true negatives inflate.
    found[(-1, "balanced_accuracy")] = found[(1, "balanced_accuracy") if len(rated) == 1 else (-1, "sensitivity")]
    return found


def _bin_gaps(y: npt.NDArray[np.bool_], s: Floats) -> Floats:
    """Return [N, bins]: probability minus truth, in the column of its bin. Equal probabilities share a bin."""
    bins = np.searchsorted(np.sort(s), s, side="left") * ECE_BINS // len(s)
    gaps = np.zeros((len(s), ECE_BINS))
    gaps[np.arange(len(s)), bins] = s - y
    return gaps


class _Measure:
    """One model's cases made ready to be measured under any patient weights [draws, patients]."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.size = self._per_patient(np.ones(len(cases.truth)))
        self.right = self._per_patient((cases.truth == cases.predicted).astype(float))
        self.tables = {c: self._table(c) for c in cases.rated()}

    def measure(self, weights: Floats) -> dict[Key, Floats]:
        """Return each metric for each draw; NaN where a draw lacks what it needs (ppv and npv are then 0)."""
        found: dict[Key, Floats] = {}
        total = weights @ self.size
        with np.errstate(divide="ignore", invalid="ignore"):
            for c, table in self.tables.items():
                sums = weights @ table
                hits, positives, called, negatives_right, error = sums[:, :5].T
                found |= {
                    (c, "accuracy"): (hits + negatives_right) / total,
                    (c, "sensitivity"): hits / positives,
                    (c, "specificity"): negatives_right / (total - positives),
                    (c, "ppv"): np.nan_to_num(hits / called),
                    (c, "npv"): np.nan_to_num(negatives_right / (total - called)),
                    (c, "brier"): error / total,
                    (c, "ece"): np.abs(sums[:, 5:]).sum(axis=1) / total,
                }
                found[(c, "auc")], found[(c, "average_precision")] = self._ranking(c, weights)
            return _macro(found, weights @ self.right / total, self.cases)

    def _table(self, c: int) -> Floats:
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


def _draw(patients: int, rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of patient weights [draws, patients]: how often each patient is drawn."""
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(rows, patients))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(patients, size=(count, patients)) + np.arange(count)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=count * patients).reshape(count, patients).astype(np.float64)


def resample(models: Sequence[Cases], resamples: int, seed: int) -> list[dict[Key, Floats]]:
    """Measure each model under the same draws of patients."""
    ready = [_Measure(cases) for cases in models]
    blocks: list[list[dict[Key, Floats]]] = [[] for _ in models]
    for weights in _draw(models[0].count, len(models[0].truth), resamples, seed):
        for found, model in zip(blocks, ready, strict=True):
            found.append(model.measure(weights))
    return [{key: np.concatenate([block[key] for block in found]) for key in found[0]} for found in blocks]


# --- intervals


def with_intervals(
    cases: Cases, draws: Mapping[Key, Floats]
) -> tuple[dict[str, Interval], dict[str, dict[str, Interval]]]:
    """Return each metric with its 95 % interval, and per class with more than two; undefined ones are absent."""
    points = cases.points
    rated = {c: {name: _interval(cases, c, name, points, draws) for name in METRICS} for c in cases.rated()}
    for found in rated.values():
        recalls = [found["sensitivity"], found["specificity"]]
        found["balanced_accuracy"] = _widened(found["balanced_accuracy"], recalls)
    everything = {name: _interval(cases, -1, name, points, draws) for name in METRICS}
    for name in PROPORTIONS[1:]:
        everything[name] = _widened(everything[name], _parts(name, rated))
    several = rated if len(rated) > 1 else {}
    return _defined(everything), {cases.classes[c]: _defined(found) for c, found in several.items()}


def _parts(name: str, rated: Mapping[int, Mapping[str, Interval]]) -> list[Interval]:
    """The proportions that one over all classes is the mean of."""
    if name == "balanced_accuracy":
        if len(rated) == 1:
            return [found[part] for found in rated.values() for part in ("sensitivity", "specificity")]
        name = "sensitivity"
    return [found[name] for found in rated.values()]


def _widened(whole: Interval, parts: Sequence[Interval]) -> Interval:
    """A mean of proportions of which one is exactly 0 or 1, and so has no spread: at least the mean of their bounds."""
    if not any(part.value in (0.0, 1.0) for part in parts):
        return whole
    low, high = (float(np.mean([getattr(part, end) for part in parts])) for end in ("low", "high"))
    return Interval(whole.value, min(whole.low, low), max(whole.high, high))


def _interval(cases: Cases, c: int, name: str, points: Mapping[Key, float], draws: Mapping[Key, Floats]) -> Interval:
    """The percentile interval, with two repairs where it is known to fail.

    A proportion of exactly 0 or 1 has no spread to resample: the bound is Clopper and Pearson's (1934) for as many
    trials as patients. The calibration error of a resample is biased upward by the resampling: its draws are moved by
    their mean's distance from the point.
    """
    value = np.minimum(points[(c, name)], 1.0)  # an average precision may be rounded to a little more
    low, high = _percentiles(draws[(c, name)])
    if name == "ece" and np.isfinite(value):
        shift = float(np.nanmean(draws[(c, name)])) - value
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


def differences(models: Sequence[Cases], draws: Sequence[Mapping[Key, Floats]]) -> dict[str, Interval]:
    """Return the first model's metric minus the second's, both under the same draws."""
    mine, other = (cases.points for cases in models)
    found = {}
    for name in METRICS:
        value = mine[(-1, name)] - other[(-1, name)]
        low, high = _percentiles(draws[0][(-1, name)] - draws[1][(-1, name)])
        found[name] = Interval(float(value), float(min(low, value)), float(max(high, value)))
    return _defined(found)


def _percentiles(draws: Floats) -> tuple[float, float]:
    kept = draws[np.isfinite(draws)]
    if len(kept) == 0:
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _defined(found: Mapping[str, Interval]) -> dict[str, Interval]:
    return {name: value for name, value in found.items() if np.isfinite([value.value, value.low, value.high]).all()}


def sign_flip_p(balance: Ints) -> float:
    """Return P(sum >= the one seen) when the sign of each patient's balance is a fair coin.

    Exact: the distribution is a convolution of one scaled binomial per magnitude. 1.0 when no patient differs.
    """
    magnitudes, counts = np.unique(np.abs(balance[balance != 0]), return_counts=True)
    tail = np.ones(1)  # distribution of the sum of the magnitudes whose coin is positive
    for magnitude, count in zip(magnitudes, counts, strict=True):
        spread = np.zeros(int(magnitude * count) + 1)
        spread[:: int(magnitude)] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        tail = np.convolve(tail, spread)
    reached = (int(balance.sum()) + int(np.abs(balance).sum())) // 2
    return float(min(1.0, tail[reached:].sum()))
