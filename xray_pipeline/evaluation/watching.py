"""Is the champion still as good as it was? The prospective record against the held-out figures it was promoted on.

Its unit is the patient: a value is the mean, over a patient's radiographs, of right (1) or wrong (0) less the share of
that class that it had right when it was held out. So a night with more ill patients promises another accuracy and not
another value, and a mix of classes that wanders raises no alarm. A patient counts once, with the delivery that showed
the patient first: who comes back is likely to be judged as before, so what is expected of a second visit depends on the
first, and the test may not. Accuracy gets one half of the stake, the classes that have a sensitivity share the other.

What is tested is the promise: no less than held out, less the policy's margin, or than the lower end of the held-out
figure's interval where that is lower still; the interval is one of 95 % for all figures together (Bonferroni). A held-
out share is an estimate, and one that came out too high by luck would otherwise be found out in time, as a fall that
never was.
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
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.slices import Slice

Floats = npt.NDArray[np.float64]

LEVEL: Final = 0.95  # of the confidence sequence that is drawn


@dataclass(frozen=True)
class Promise:
    """What a model had right when it was held out: of all radiographs, and of each class in the order of `classes`;
    `least` is what is promised of each at least, of accuracy first."""

    classes: tuple[str, ...]
    accuracy: float
    recalls: tuple[float, ...]
    least: tuple[float, ...]

    @classmethod
    def of(cls, evaluation: Evaluation) -> Promise:
        """Take it from an evaluation. Raises EvaluationError where a class was never measured."""
        confusion = np.array(evaluation.confusion, np.float64)
        totals = confusion.sum(axis=1)
        if confusion.shape != (len(evaluation.classes),) * 2 or not (totals > 0).all():
            raise EvaluationError(f"model {evaluation.model_digest[:12]} was not measured on every class when held out")
        right = np.diag(confusion)
        whole, by_class = evaluation.metrics, evaluation.by_class
        names = ("specificity", "sensitivity")
        parts = (
            [by_class[name]["sensitivity"] for name in evaluation.classes] if by_class else [whole[n] for n in names]
        )
        wider = float(special.ndtri(1 - 0.025 / len(_strands(evaluation.classes))) / special.ndtri(0.975))
        least = tuple(one.value - wider * (one.value - one.low) for one in (whole["accuracy"], *parts))
        return cls(evaluation.classes, float(right.sum() / totals.sum()), tuple((right / totals).tolist()), least)


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
class Watch:
    """What all deliveries say together: `wealth` (logarithm) after each, the one that raised the alarm (its place; None
    without one), and accuracy at the held-out mix of classes: of each delivery, and a confidence sequence of it."""

    strands: tuple[Strand, ...]
    wealth: tuple[float, ...]
    raised: int | None
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


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
    first = _first_seen(rows, promise)
    tested = first[first["order"] >= since]
    strands = tuple(
        _strand(name, tested, deliveries, classes, promise, terms) for name, classes in _strands(promise.classes)
    )
    shares = [0.5, *[0.5 / (len(strands) - 1)] * (len(strands) - 1)]
    wealth = betting.averaged(np.array([strand.wealth for strand in strands]), shares) if deliveries else np.zeros(0)
    rich = np.flatnonzero(wealth >= -math.log(terms.false_alarms))
    values = _values(first, deliveries, range(len(promise.classes)), promise)
    # At the held-out mix a value of 0 is the held-out accuracy.
    variance = promise.accuracy * (1 - promise.accuracy)
    ends = np.clip(betting.intervals(values, variance, 1 - LEVEL) + promise.accuracy, 0, 1)
    counts = values.counts.sum(axis=1)
    shifts = np.divide(values.counts @ values.values, counts, out=np.full(deliveries, np.nan), where=counts > 0)
    return Watch(
        strands,
        tuple(wealth.tolist()),
        int(rich[0]) if len(rich) else None,
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
    values = _values(first, deliveries, classes, promise)
    whole = len(classes) > 1
    held_out = promise.accuracy if whole else promise.recalls[classes[0]]
    least = min(held_out - terms.margin, promise.least[0 if whole else 1 + classes[0]])
    wealth = betting.log_wealth(values, least - held_out, least * (1 - least))
    shift = float((values.counts @ values.values).sum() / values.total) if values.total else math.nan
    return Strand(name, held_out, least, held_out + shift, values.total, tuple(wealth.tolist()))


def _values(first: pd.DataFrame, deliveries: int, classes: Sequence[int], promise: Promise) -> betting.Values:
    recalls = np.array(promise.recalls)
    part = first[first["truth"].isin(list(classes))]
    surplus = (part["named"] == part["truth"]).to_numpy(np.float64) - recalls[part["truth"].to_numpy(np.int64)]
    means = part.assign(surplus=surplus).groupby(["order", "patient"], sort=True)["surplus"].mean()
    some = recalls[list(classes)]
    order = means.index.get_level_values("order")
    return betting.count(means.to_numpy(), order, deliveries, -float(some.max()), 1 - float(some.min()))


def _first_seen(rows: pd.DataFrame, promise: Promise) -> pd.DataFrame:
    """Return the rows of each patient's first delivery."""
    if not rows["truth"].between(0, len(promise.classes) - 1).all():
        raise EvaluationError(f"a radiograph of the record has a class that is none of {promise.classes}")
    return rows[rows["order"] == rows.groupby("patient")["order"].transform("min")]
