"""A version beside the champion on new patients: what counts, and how often luck is taken for skill."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from xray_pipeline.evaluation.shadow import Shadow, contest


def record(order: list[int], patient: list[str], named: list[int]) -> pd.DataFrame:
    """Of one radiograph a row, all of class 1."""
    digests = [f"{number:03d}" for number in range(len(order))]
    return pd.DataFrame({"digest": digests, "order": order, "patient": patient, "truth": 1, "named": named})


def test_a_patient_counts_once_with_the_delivery_that_came_first() -> None:
    order, patient = [0, 0, 1, 1, 2], ["a", "a", "a", "b", "c"]
    ours, theirs = record(order, patient, [1, 1, 0, 1, 0]), record(order, patient, [0, 1, 1, 0, 0])
    found = contest(3, ours, theirs)
    assert (found.turn, found.deliveries, found.patients) == (3, 3, 3)
    assert found.difference == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.wealth > 0
    assert contest(3, theirs, ours).difference == pytest.approx(-0.5)


def test_what_one_alone_was_asked_about_does_not_count() -> None:
    ours, theirs = record([0, 1], ["a", "b"], [1, 1]), record([0, 1], ["a", "b"], [0, 0])
    assert contest(1, ours, theirs[:1]).patients == 1
    nothing = Shadow(1, 0, 0, None, 0.0)
    assert contest(1, ours[:1], theirs[1:]) == nothing
    assert contest(1, pd.DataFrame(), theirs) == nothing
    assert contest(1, ours, pd.DataFrame()) == nothing


def test_equals_are_rarely_told_apart_at_any_time_and_a_better_one_soon() -> None:
    """At a level of .05, looked at each of 40 nights, patients of one to three radiographs that share their luck."""
    rng = np.random.default_rng(7)

    def ever(gain: float) -> float:
        rich = 0
        for _ in range(150):
            sizes = rng.integers(1, 4, 40 * 30)
            night = np.repeat(np.repeat(np.arange(40), 30), sizes)
            owner = np.repeat(np.arange(len(sizes)), sizes)
            luck = rng.random((2, len(sizes)))[:, owner]  # one for all of a patient's
            right = luck < np.array([[0.9 + gain], [0.9]])
            tables = [record(night.tolist(), [f"p{n}" for n in owner], one.astype(int).tolist()) for one in right]
            rich += any(
                contest(1, *(table[table["order"] <= last] for table in tables)).wealth > math.log(20)
                for last in range(3, 40, 6)
            )
        return rich / 150

    assert ever(0.0) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    assert ever(0.06) > 0.8
