"""Is the champion still as good as it was? The prospective record against the held-out figures it was promoted on.

Its unit is the patient, held out as later: what was promised of a class is the mean over held-out patients of the
share of a patient's radiographs that was right, so patients of many radiographs, easier or harder than others, weigh in
the promise as they do in the test. A value is the mean, over a patient's radiographs, of right (1) or wrong (0) less
the least promised of that class. So a night with more ill patients promises another accuracy and not another value, and
a mix of classes that wanders raises no alarm. A patient counts once, with the delivery that showed the patient first:
who comes back is likely to be judged as before, so what is expected of a second visit depends on the first, and the
test may not. Accuracy gets one half of the stake, the classes that have a sensitivity share the other.

The least promised of a class is what was held out, less the policy's margin, or the lower end of the held-out figure's
interval where that is lower still; the intervals are of 95 % for all classes together (Bonferroni). A held-out share is
an estimate, and one that came out too high by luck would otherwise be found out in time, as a fall that never was. So
the rate of false alarms holds for champions whose true shares lie above these ends, where each night, given all before
it, is expected to keep the promise: nights that are worse than promised for a while, and better later, are a fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.records import Plain
from xray_pipeline.evaluation import betting
from xray_pipeline.evaluation.answer_drift import AnswerDrift
from xray_pipeline.evaluation.cases import Cases, require_every_class
from xray_pipeline.evaluation.slices import Slice

Floats = npt.NDArray[np.float64]

LEVEL: Final = 0.95  # of the confidence sequence that is drawn


@dataclass(frozen=True)
class Promise:
    """What a model had right when it was held out, of each class in the order of `classes`: a mean over patients, and
    the lower end of its interval; `shares` [C] are those of the classes among held-out patients, summing to 1."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]
    recalls: tuple[float, ...]
    lows: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The mean over held-out patients of what was right."""
        return float(np.dot(self.shares, self.recalls))

    @classmethod
    def of(cls, cases: Cases) -> Promise:
        """Take it from a model's answers on held-out radiographs. Raises EvaluationError for a class without any.

        The lower ends are Clopper and Pearson's (1934) with patients for trials: a mean of values from 0 to 1 varies
        no more than one of zeros and ones, so a patient's radiographs may be as alike as they are.
        """
        require_every_class(cases)
        rows = pd.DataFrame({"truth": cases.truth, "patient": cases.patient, "right": cases.predicted == cases.truth})
        by_class = rows.groupby(["truth", "patient"])["right"].mean().groupby("truth")
        right, patients = by_class.sum().to_numpy(np.float64), by_class.size().to_numpy(np.float64)
        weights = 1 / rows.groupby("patient")["truth"].transform("size")
        shares = weights.groupby(rows["truth"]).sum() / weights.sum()
        ends = special.betaincinv(np.maximum(right, 1e-9), patients - right + 1, (1 - LEVEL) / len(cases.classes))
        recalls = right / patients
        return cls(cases.classes, *(tuple(one.tolist()) for one in (shares, recalls, ends)))

    def least(self, margin: float) -> Floats:
        """Return what is promised of each class at least [C], `margin` below what was held out."""
        return np.clip(np.minimum(np.array(self.recalls) - margin, self.lows), 0, 1)


@dataclass(frozen=True)
class Terms:
    """What the policy asks of the watch: how far below its held-out figures a model may be, and how likely a false
    alarm is at most, over all time."""

    margin: float
    false_alarms: float


@dataclass(frozen=True)
class Strand:
    """One figure that is watched: what it was when held out, the least that was promised, what was found, of how many
    patients, and the wealth (its logarithm) of who bet on a fall, by delivery."""

    name: str
    held_out: float
    promised: float
    found: float
    patients: int
    wealth: tuple[float, ...]


@dataclass(frozen=True)
class Fall:
    """What raised the alarm: the place of the delivery that did and of the one since when most was earned, and the
    figure that this was earned on: what it was from the one to the other, of how many patients."""

    begins: int
    raised: int
    name: str
    held_out: float
    promised: float
    found: float
    patients: int


@dataclass(frozen=True)
class Watch:
    """What all deliveries say together: `wealth` (logarithm) after each, the fall that raised the alarm (None without
    one), and accuracy at the held-out mix of classes: of each delivery, and a confidence sequence of it."""

    strands: tuple[Strand, ...]
    wealth: tuple[float, ...]
    fall: Fall | None
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Delivery:
    """One delivery of the record: when the champion was asked, of how many radiographs and patients that it had never
    seen; accuracy at the held-out mix of classes (None without a patient that is new) and its confidence sequence, all
    deliveries so far together; the wealth (logarithm) of who bets on a fall; and how unlike the held-out ones the
    answers are, without labels."""

    key: str
    at: str
    radiographs: int
    patients: int
    accuracy: float | None
    low: float
    high: float
    wealth: float
    drift: AnswerDrift | None = None


@dataclass(frozen=True)
class Standing(Plain):
    """The alarm about the champion that a candidate would replace, "" while none stands; and both of them on the newest
    `deliveries` of the record, by the patients that neither learned from: None without any."""

    alarm: str
    deliveries: int = 0
    recent: Slice | None = None


def watch(rows: pd.DataFrame, deliveries: int, promise: Promise, terms: Terms, since: int = 0) -> Watch:
    """Test the promise of a model on the rows of its record.

    `rows` has the columns order (place of the delivery, 0 ... deliveries - 1), patient, truth and named (classes by
    number). Deliveries before `since` are shown and not tested, and whom they showed counts no more. Raises
    EvaluationError for a class that was never promised anything.
    """
    if not rows["truth"].between(0, len(promise.classes) - 1).all():
        raise EvaluationError(f"a radiograph of the record has a class that is none of {promise.classes}")
    first = first_seen(rows)
    tested = first[first["order"] >= since]
    strands = tuple(
        _strand(name, tested, deliveries, classes, promise, terms) for name, classes in _strands(promise.classes)
    )
    shares = [0.5, *[0.5 / (len(strands) - 1)] * (len(strands) - 1)]
    wealth = betting.averaged(np.array([strand.wealth for strand in strands]), shares) if deliveries else np.zeros(0)
    rich = np.flatnonzero(wealth >= -math.log(terms.false_alarms))
    fall = None
    if len(rich):
        earned = [math.log(share) + strand.wealth[rich[0]] for share, strand in zip(shares, strands, strict=True)]
        most = int(np.argmax(earned))
        classes = _strands(promise.classes)[most][1]
        fall = _fall(strands[most], _values(tested, deliveries, classes, promise.least(terms.margin)), int(rich[0]))
    values = _values(first, deliveries, range(len(promise.classes)), np.array(promise.recalls))
    # At the held-out mix a value of 0 is the held-out accuracy.
    variance = promise.accuracy * (1 - promise.accuracy)
    ends = np.clip(betting.intervals(values, variance, 1 - LEVEL) + promise.accuracy, 0, 1)
    counts = values.counts.sum(axis=1)
    shifts = np.divide(values.counts @ values.values, counts, out=np.full(deliveries, np.nan), where=counts > 0)
    return Watch(
        strands,
        tuple(wealth.tolist()),
        fall,
        tuple((shifts + promise.accuracy).tolist()),
        tuple(ends[:, 0].tolist()),
        tuple(ends[:, 1].tolist()),
    )


def _strands(classes: Sequence[str]) -> list[tuple[str, Sequence[int]]]:
    """Return what is watched: accuracy over all classes, and sensitivity to each class that has one."""
    every = range(len(classes))
    if len(classes) == 2:
        return [("accuracy", every), ("sensitivity", [1])]
    return [("accuracy", every), *((f"sensitivity to {name}", [number]) for number, name in enumerate(classes))]


def _strand(
    name: str, first: pd.DataFrame, deliveries: int, classes: Sequence[int], promise: Promise, terms: Terms
) -> Strand:
    recalls, least = np.array(promise.recalls), promise.least(terms.margin)
    shares = np.array(promise.shares)[list(classes)]
    held_out, promised = (float(np.average(of[list(classes)], weights=shares)) for of in (recalls, least))
    wealth = betting.log_wealth(_values(first, deliveries, classes, least), 0.0, promised * (1 - promised))
    seen = _values(first, deliveries, classes, recalls)
    shift = float((seen.counts @ seen.values).sum() / seen.total) if seen.total else math.nan
    return Strand(name, held_out, promised, held_out + shift, seen.total, tuple(wealth.tolist()))


def _fall(strand: Strand, values: betting.Values, raised: int) -> Fall:
    """Return the fall that a strand tells of; `values` are less what is promised at least."""
    begins = betting.best_beginning(values, 0.0, strand.promised * (1 - strand.promised), raised)
    begins += int(values.counts[begins:].any(axis=1).argmax())  # nights without a patient tell of nothing
    counts = values.counts[begins : raised + 1].sum(axis=0)
    found = strand.promised + float(counts @ values.values / counts.sum())
    return Fall(begins, raised, strand.name, strand.held_out, strand.promised, found, int(counts.sum()))


def _values(first: pd.DataFrame, deliveries: int, classes: Sequence[int], less: Floats) -> betting.Values:
    """Count patients by their mean of what was right `less` something of each class [C]."""
    part = first[first["truth"].isin(list(classes))]
    surplus = (part["named"] == part["truth"]).to_numpy(np.float64) - less[part["truth"].to_numpy(np.int64)]
    means = part.assign(surplus=surplus).groupby(["order", "patient"], sort=True)["surplus"].mean()
    some = less[list(classes)]
    order = means.index.get_level_values("order")
    return betting.count(means.to_numpy(), order, deliveries, -float(some.max()), 1 - float(some.min()))


def first_seen(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows (columns order, patient) of each patient's first delivery: the one of the lowest order."""
    return rows[rows["order"] == rows.groupby("patient")["order"].transform("min")]
