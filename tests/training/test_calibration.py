from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_curve

from xray_pipeline.training.calibration import (
    balanced_threshold,
    operating_threshold,
    sensitivity_threshold,
    temperature,
)
from xray_pipeline.training.recipe import Recipe

RANDOM = np.random.default_rng(5)
TRUTH = np.repeat([0, 1], 400)
LOGIT = RANDOM.normal(np.where(TRUTH == 1, 1.5, -1.5), 1.5)
PROBABILITIES = expit(LOGIT)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_temperature_undoes_a_factor(factor: float) -> None:
    """For these two normal distributions the honest logit is 2 x 1.5 / 1.5^2 times the value."""
    logits = np.stack([np.zeros(800), LOGIT * 4 / 3 * factor], axis=1)
    assert temperature(logits, TRUTH) == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 0.999])
def test_a_fixed_sensitivity_is_reached_and_not_overshot(wanted: float) -> None:
    cut = sensitivity_threshold(PROBABILITIES, TRUTH, wanted)
    found = float((PROBABILITIES[TRUTH == 1] >= cut).mean())
    assert wanted <= found < wanted + 1 / 400 + 1e-9


def test_a_fixed_sensitivity_with_one_patient() -> None:
    assert sensitivity_threshold(np.array([0.8]), np.array([1]), 0.95) == pytest.approx(0.4)


def test_the_recipe_decides_the_threshold() -> None:
    balanced = operating_threshold(PROBABILITIES, TRUTH, Recipe(threshold="balanced"))
    fixed = operating_threshold(PROBABILITIES, TRUTH, Recipe(threshold="sensitivity", sensitivity=0.99))
    assert operating_threshold(PROBABILITIES, TRUTH, Recipe(threshold="half")) == 0.5
    assert balanced == pytest.approx(0.5, abs=0.15)
    assert fixed < balanced


@pytest.mark.parametrize(("spread", "expected"), [(1.0, 0.0), (2.0, 0.2376)])
def test_the_balanced_cut_is_where_the_densities_of_the_logits_cross(spread: float, expected: float) -> None:
    """Of N(-1, 1) and N(1, spread): a root of a quadratic, found by hand."""
    draw = np.random.default_rng(1)
    logits = np.r_[draw.normal(-1, 1, 20_000), draw.normal(1, spread, 20_000)]
    cut = balanced_threshold(expit(logits), np.repeat([0, 1], 20_000))
    assert logit(cut) == pytest.approx(expected, abs=0.04)


def test_the_balanced_cut_is_less_noisy_than_the_best_among_the_values() -> None:
    draw, truth = np.random.default_rng(2), np.repeat([0, 1], [60, 180])
    fitted, best = [], []
    for _ in range(100):
        p = expit(draw.normal(np.where(truth == 1, 1.5, -1.5), 1.5))
        fitted.append(logit(balanced_threshold(p, truth)))
        false_positive, true_positive, cuts = roc_curve(truth, p, drop_intermediate=False)
        best.append(logit(cuts[np.argmax(true_positive - false_positive)]))
    assert np.mean(fitted) == pytest.approx(0, abs=0.05)
    assert np.std(fitted) < 0.5 * np.std(best)


@pytest.mark.parametrize("p", [[0.2, 0.8], [0.0, 1.0], [0.5, 0.5], [0.8, 0.2]])
def test_a_balanced_cut_of_one_radiograph_a_class_is_a_probability(p: list[float]) -> None:
    cut = balanced_threshold(np.array(p), np.array([0, 1]))
    assert p[0] < cut < p[1] or cut == 0.5
    for only in (0, 1):
        assert balanced_threshold(np.array(p), np.array([only, only])) == 0.5


def test_few_radiographs_move_the_threshold_little() -> None:
    few = slice(395, 405)
    asked = Recipe(threshold="sensitivity", sensitivity=0.95, anchor=100)
    free = [
        operating_threshold(PROBABILITIES[s], TRUTH[s], asked.model_copy(update={"anchor": 0}))
        for s in (few, slice(None))
    ]
    held = [operating_threshold(PROBABILITIES[s], TRUTH[s], asked) for s in (few, slice(None))]
    shares = [float(logit(a) / logit(b)) for a, b in zip(held, free, strict=True)]
    assert shares == pytest.approx([5 / 105, 400 / 500])
