"""Answers on a delivery against held-out ones: false alarms at the stated rate, what is seen, and what is not told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.evaluation.answer_drift import AnswerDrift, HeldOut, compare, in_words, unmeasured

CLASSES = ("NORMAL", "PNEUMONIA")
RULES = IntakeRules(drift_false_alarms=0.2, drift_min_dataset=60)


def answers(
    patients: int, seed: int, ill: float = 0.6, sure: float = 2.0, classes: tuple[str, ...] = CLASSES
) -> pd.DataFrame:
    """Make the answers of a model on patients, a fifth of whom has five radiographs that are alike."""
    rng, made = np.random.default_rng(seed), []
    for number in range(patients):
        truth = int(rng.random() < ill)
        for image in range(5 if number % 5 == 0 else 1):
            score = np.full(len(classes), -sure / 2) + rng.normal(0, 0.1, len(classes))
            score[truth] += sure + (rng.normal() if image == 0 else 0.0)
            made.append((f"{seed}-{number}-{image}", f"{seed}-{number}", *(np.exp(score) / np.exp(score).sum())))
    return pd.DataFrame(made, columns=["digest", "patient", *(f"p_{name}" for name in classes)])


def held_out(patients: int = 150, seed: int = 10_000, **more: float) -> HeldOut:
    return HeldOut(answers(patients, seed, **more), CLASSES)


def test_of_deliveries_like_the_held_out_side_no_more_than_the_stated_share_raises_an_alarm() -> None:
    found = [compare(answers(30, n), held_out(80, 10_000 + n), RULES) for n in range(200)]
    level = RULES.drift_false_alarms / 3  # that of a channel of the intake
    assert {one.level for one in found} == {level}
    alarms = sum(one.alarm for one in found)
    assert alarms <= stats.binom.ppf(0.999, 200, level)
    assert 0 < alarms == sum(one.p is not None and one.p <= level for one in found)
    halves = sum(one.p is not None and one.p <= 0.5 for one in found)
    assert stats.binom.ppf(0.001, 200, 0.5) <= halves <= stats.binom.ppf(0.999, 200, 0.5)


@pytest.mark.parametrize(("shift", "told"), [({"sure": 0.6}, "0.5"), ({"ill": 0.0}, "0.1"), ({"ill": 1.0}, "0.8")])
def test_a_model_that_is_less_sure_and_another_mix_of_classes_are_seen(shift: dict[str, float], told: str) -> None:
    found = compare(answers(40, 1, **shift), held_out(), IntakeRules())
    assert (found.alarm, found.level) == (True, pytest.approx(0.01 / 3))
    assert f"mean probability of PNEUMONIA {told}" in found.text
    assert "NORMAL" not in found.text
    assert not compare(answers(40, 2), held_out(), IntakeRules()).alarm


def test_several_classes_are_compared_at_once() -> None:
    three = ("A", "B", "C")
    known = HeldOut(answers(150, 3, classes=three), three)
    found = compare(answers(40, 4, ill=0.0, classes=three), known, RULES)
    assert found.alarm
    assert [name in found.text for name in ("of A ", "of B ", "of C ")] == [True] * 3


@pytest.mark.parametrize(
    ("new", "known", "why"),
    [(9, 60, "the delivery has 9 patients, 10"), (0, 60, "the delivery has 0"), (40, 59, "held-out side has 59")],
)
def test_of_few_patients_nothing_is_said(new: int, known: int, why: str) -> None:
    found = compare(answers(new, 5, ill=0.0), held_out(known), RULES)
    assert (found.p, found.alarm) == (None, False)
    assert why in found.text


def test_answers_that_are_all_the_same_differ_in_nothing() -> None:
    same = answers(40, 6).assign(p_NORMAL=0.25, p_PNEUMONIA=0.75)
    known = HeldOut(answers(80, 7).assign(p_NORMAL=0.25, p_PNEUMONIA=0.75), CLASSES)
    assert compare(same, known, RULES).p == 1


def test_what_was_measured_is_measured_anew_only_where_something_changed() -> None:
    new, known = answers(40, 8), held_out()
    found = compare(new, known, RULES)
    marked = replace(found, text="as it was")
    assert compare(new.sample(frac=1, random_state=0), known, RULES, marked) is marked
    assert compare(new.iloc[1:], known, RULES, marked).text != "as it was"
    assert compare(new, HeldOut(known.rows.iloc[1:], CLASSES), RULES, marked).text != "as it was"
    assert compare(new, known, RULES.model_copy(update={"drift_false_alarms": 0.1}), marked).text != "as it was"
    assert compare(new, known, RULES) == found  # nothing is drawn by luck


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop(columns="p_PNEUMONIA"),
        lambda rows: rows.drop(columns="patient"),
        lambda rows: rows.assign(p_PNEUMONIA=np.nan),
        lambda rows: rows.assign(p_PNEUMONIA=7.0),
    ],
    ids=["another class", "no patients", "missing", "no probability"],
)
def test_anything_but_probabilities_of_the_classes_is_refused(change: object) -> None:
    bad = change(answers(40, 9))  # type: ignore[operator]
    with pytest.raises(EvaluationError):
        compare(bad, held_out(), RULES)
    with pytest.raises(EvaluationError):
        HeldOut(bad, CLASSES)


def test_the_record_is_told_in_words() -> None:
    calm, loud = AnswerDrift(0.4, 0.01, False, "m"), AnswerDrift(0.0003, 0.01, True, "mean probability of X 0.9 here")
    few = unmeasured("the delivery has 3 patients", RULES)
    assert in_words([]) == ""
    assert in_words([("a", few)]).endswith("not measured: the delivery has 3 patients.")
    assert "of 1 delivery compared, none" in in_words([("a", calm), ("b", few)])
    told = in_words([("a", loud), ("b", loud), ("c", calm), ("d", few)])
    assert "of 3 deliveries compared, 2 had" in told
    assert "b last (p = 0.0003; mean probability of X 0.9 here)" in told
    assert "another mix of classes" in told
