"""Bets on a mean: how often they win by luck, how soon they win where the mean fell, and how wide the interval is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xray_pipeline.evaluation import betting
from xray_pipeline.evaluation.betting import Values, count, intervals, log_wealth

RIGHT = 0.92
LIMIT = math.log(20)


def coins(rng: np.random.Generator, hospitals: int, mean: float, nights: int, patients: int = 50) -> Values:
    right = rng.binomial(patients, mean, (hospitals, nights))
    return Values(np.array([0.0, 1.0]), np.stack([patients - right, right], axis=-1).astype(float), 0.0, 1.0)


def test_a_bet_on_a_fall_that_never_came_wins_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    nights = 1500
    wealth = log_wealth(coins(rng, 400, RIGHT, nights), RIGHT, RIGHT * (1 - RIGHT))
    assert (wealth.max(axis=1) >= LIMIT).mean() <= 0.05 + 0.011  # one standard error of 400 draws
    assert np.exp(wealth[:, -1]).mean() <= 1.2  # expected to be at most 1: it is a martingale
    varying = [coins(rng, 400, mean, 1) for mean in RIGHT + 0.06 * rng.random(nights // 5)]
    together = Values(varying[0].values, np.concatenate([one.counts for one in varying], axis=1), 0.0, 1.0)
    assert (log_wealth(together, RIGHT, 0.07).max(axis=1) >= LIMIT).mean() <= 0.05


@pytest.mark.parametrize(("good", "most"), [(0, 9), (365, 30)])
def test_a_fall_of_five_points_is_seen_soon_also_after_a_good_year(good: int, most: int) -> None:
    rng = np.random.default_rng(1)
    before, after = coins(rng, 100, 0.93, good), coins(rng, 100, 0.88, 60)
    seen = Values(before.values, np.concatenate([before.counts, after.counts], axis=1), 0.0, 1.0)
    rich = log_wealth(seen, RIGHT, 0.07)[:, good:] >= LIMIT
    assert rich.any(axis=1).all()
    assert np.median(rich.argmax(axis=1) + 1) <= most


def test_the_stake_is_spent_once() -> None:
    begins = betting.beginnings(200_000)
    assert begins[0] > 0.45
    assert 0.9 < begins.sum() < 1
    nothing = Values(np.array([0.0]), np.zeros((3, 1)), 0.0, 1.0)
    assert log_wealth(nothing, 0.9, 0.09) == pytest.approx(0, abs=1e-9)


def test_an_average_wins_where_one_of_two_wins_by_twice_as_much() -> None:
    logs = np.log([[1.0, 40.0, 0.0 + 1e-300], [1.0, 1e-300, 30.0]])
    assert np.exp(betting.averaged(logs, [0.5, 0.5])) == pytest.approx([1, 20, 15])
    assert np.exp(betting.averaged(logs, [3, 1])) == pytest.approx([1, 30, 7.5])


def test_the_interval_holds_the_mean_on_every_night_and_narrows() -> None:
    rng = np.random.default_rng(2)
    missed, last = 0, []
    for _ in range(100):
        found = intervals(Values(*_fields(coins(rng, 1, 0.9, 60))), 0.09, 0.05)
        missed += bool(((found[:, 0] > 0.9) | (found[:, 1] < 0.9)).any())
        last.append(found[-1, 1] - found[-1, 0])
    assert missed <= 5
    assert np.median(last) < 0.06  # 3,000 patients; an interval that may be looked at once is 0.021 wide
    assert (found[0, 1] - found[0, 0]) > (found[-1, 1] - found[-1, 0])


def _fields(values: Values) -> tuple[np.ndarray, np.ndarray, float, float]:
    return values.values, values.counts[0], values.low, values.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_extremes_and_nothing_are_taken(value: float) -> None:
    found = count([value] * 40, [0] * 20 + [1] * 20, 3, 0.0, 1.0)
    assert found.total == 40
    wealth, ends = log_wealth(found, 0.9, 0.09), intervals(found, 0.09, 0.05)
    assert np.isfinite(wealth).all()
    assert (wealth[-1] > LIMIT) == (value == 0)
    assert ends[-1, 0] <= value <= ends[-1, 1]
    empty = count([], [], 2, 0.0, 1.0)
    assert log_wealth(empty, 0.9, 0.0) == pytest.approx(0, abs=1e-9)
    assert (intervals(empty, 0.0, 0.05) == [0, 1]).all()
    assert log_wealth(count([], [], 0, 0.0, 1.0), 0.9, 0.1).shape == (0,)


def test_ten_years_of_nights_take_a_second() -> None:
    rng = np.random.default_rng(3)
    night = np.repeat(np.arange(3650), 50)
    values = rng.choice([0.07, -0.93, -0.43], len(night), p=[0.92, 0.06, 0.02])
    seen = count(values, night, 3650, -0.93, 0.07)
    assert len(intervals(seen, 0.07, 0.05)) == len(log_wealth(seen, -0.01, 0.07)) == 3650
