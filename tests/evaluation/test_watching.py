"""The watch: what counts for the alarm about a champion, and what must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.watching import Promise, Terms, watch

CLASSES = ("NORMAL", "PNEUMONIA")
PROMISE = Promise(CLASSES, 0.91, (0.85, 0.97), (0.9, 0.84, 0.96))
TERMS = Terms(0.01, 0.05)


def rows(nights: int, patients: int, right: tuple[float, float] = (0.85, 0.97), ill: float = 0.5, seed: int = 0):
    """Make a record: one radiograph of most patients, three of every fifth, alike."""
    rng = np.random.default_rng(seed)
    made = []
    for night in range(nights):
        for number in range(patients):
            truth = int(rng.random() < ill)
            correct = rng.random() < right[truth]
            for _ in range(3 if number % 5 == 0 else 1):
                made.append((night, f"p{night}-{number}", truth, truth if correct else 1 - truth))
    return pd.DataFrame(made, columns=["order", "patient", "truth", "named"])


def test_a_champion_as_good_as_promised_raises_no_alarm_and_one_that_fell_does() -> None:
    calm = watch(rows(60, 50), 60, PROMISE, TERMS)
    assert calm.raised is None
    assert [strand.name for strand in calm.strands] == ["accuracy", "sensitivity"]
    assert calm.strands[0].patients == 3000
    assert calm.strands[0].found == pytest.approx(0.91, abs=0.02)
    assert calm.low[-1] < 0.91 < calm.high[-1]
    fell = watch(rows(60, 50, right=(0.70, 0.85)), 60, PROMISE, TERMS)
    assert fell.raised is not None
    assert fell.raised < 10
    assert fell.high[-1] < 0.91


def test_sensitivity_alone_raises_the_alarm() -> None:
    found = watch(rows(80, 50, right=(0.99, 0.85)), 80, PROMISE, TERMS)
    assert found.strands[0].found > 0.91
    assert found.raised is not None


@pytest.mark.parametrize("ill", [0.1, 0.9])
def test_another_mix_of_classes_is_no_fall(ill: float) -> None:
    right = (0.70, 0.99)
    promise = Promise(CLASSES, 0.845, right, (0.8, 0.65, 0.97))
    record = rows(120, 50, right, ill)
    assert (record["truth"] == record["named"]).mean() == pytest.approx(0.99 * ill + 0.70 * (1 - ill), abs=0.02)
    assert watch(record, 120, promise, TERMS).raised is None


def test_a_patient_counts_once_however_often_he_comes_back() -> None:
    record = rows(1, 40, right=(0.0, 0.0), seed=3)
    again = pd.concat([record.assign(order=night) for night in range(30)], ignore_index=True)
    once, often = watch(record, 1, PROMISE, TERMS), watch(again, 30, PROMISE, TERMS)
    assert once.strands[0].patients == often.strands[0].patients == 40
    assert often.wealth[-1] == pytest.approx(once.wealth[-1], abs=0.01)
    assert np.isnan(often.accuracy[1])


def test_what_was_acknowledged_counts_no_more_and_what_comes_then_does() -> None:
    bad = rows(40, 50, right=(0.6, 0.6))
    assert watch(bad, 40, PROMISE, TERMS, since=40).raised is None
    later = watch(bad, 40, PROMISE, TERMS, since=20)
    assert later.raised is not None
    assert later.raised >= 20
    assert later.accuracy[0] == pytest.approx(0.6, abs=0.15)  # it is still shown


def test_no_rows_one_class_and_all_right_or_wrong_are_taken() -> None:
    nothing = watch(rows(1, 5).iloc[:0], 0, PROMISE, TERMS)
    assert (nothing.raised, nothing.wealth, nothing.strands[0].patients) == (None, (), 0)
    assert np.isnan(nothing.strands[0].found)
    normal = watch(rows(5, 20, ill=0.0), 5, PROMISE, TERMS)
    assert [strand.patients for strand in normal.strands] == [100, 0]
    perfect = Promise(CLASSES, 1.0, (1.0, 1.0), (0.99, 0.98, 0.98))
    assert watch(rows(40, 50, (1.0, 1.0)), 40, perfect, TERMS).raised is None
    assert watch(rows(2, 50, (0.0, 0.0)), 2, perfect, TERMS).raised == 0
    hopeless = Promise(CLASSES, 0.0, (0.0, 0.0), (0.0, 0.0, 0.0))
    assert watch(rows(20, 50, (0.0, 0.0)), 20, hopeless, TERMS).raised is None


def test_several_classes_are_watched_one_by_one() -> None:
    promise = Promise(("A", "B", "C"), 0.9, (0.9, 0.9, 0.9), (0.88, 0.85, 0.85, 0.85))
    record = rows(20, 50, (0.9, 0.9))
    found = watch(record, 20, promise, TERMS)
    assert [strand.name for strand in found.strands] == [
        "accuracy",
        "sensitivity to A",
        "sensitivity to B",
        "sensitivity to C",
    ]
    with pytest.raises(EvaluationError, match="none of"):
        watch(record.assign(truth=7), 20, promise, TERMS)


def test_a_promise_is_what_was_right_when_held_out() -> None:
    figures = {
        "accuracy": Interval(0.91, 0.85, 0.96),
        "specificity": Interval(0.85, 0.73, 0.95),
        "sensitivity": Interval(0.95, 0.89, 1.0),
    }
    evaluation = Evaluation("m" * 64, "", 100, 90, CLASSES, 0.5, ((34, 6), (3, 57)), figures)
    found = Promise.of(evaluation)
    assert (found.classes, found.accuracy, found.recalls) == (CLASSES, 0.91, (0.85, 0.95))
    assert found.least == pytest.approx((0.841, 0.713, 0.881), abs=0.001)  # 2.24 standard errors instead of 1.96
    with pytest.raises(EvaluationError, match="every class"):
        Promise.of(replace(evaluation, confusion=((40, 0), (0, 0))))


def test_a_promise_on_few_patients_is_kept_by_its_lower_end() -> None:
    """The held-out accuracy of .91 came out too high by luck: it is .88."""
    record = rows(400, 50, right=(0.82, 0.94), seed=7)
    unsure = Promise(CLASSES, 0.91, (0.85, 0.97), (0.86, 0.76, 0.90))
    assert watch(record, 400, PROMISE, TERMS).raised is not None
    found = watch(record, 400, unsure, TERMS)
    assert found.raised is None
    assert [(strand.held_out, strand.promised) for strand in found.strands] == [(0.91, 0.86), (0.97, 0.90)]
