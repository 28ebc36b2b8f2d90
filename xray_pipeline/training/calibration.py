"""From a network's logits to honest probabilities and a label, both learned from validation patients only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit
from scipy.stats import norm

from xray_pipeline.training.recipe import Recipe

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def temperature(logits: Floats, truth: Ints) -> float:
    """Return the T that makes softmax(logits [N, C] / T) most likely for the classes `truth` [N] (Guo et al. 2017).

    Between 0.05 and 20.
    """

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(truth)), truth].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def operating_threshold(probabilities: Floats, truth: Ints, recipe: Recipe) -> float:
    """Return the cut in 0..1 on `probabilities` [N] of class 1 that the recipe asks for.

    With n radiographs of the smaller class its logit is n / (n + `recipe.anchor`) of the one found on them: few
    patients say little about where to cut, and 0.5, the cut of the class-balanced loss, comes from all of training.
    """
    if recipe.threshold == "half":
        return 0.5
    if recipe.threshold == "balanced":
        found = balanced_threshold(probabilities, truth)
    else:
        found = sensitivity_threshold(probabilities, truth, recipe.sensitivity)
    smaller = min(np.count_nonzero(truth == 1), np.count_nonzero(truth != 1))
    return float(expit(logit(found) * smaller / (smaller + recipe.anchor))) if recipe.anchor else found


def balanced_threshold(probabilities: Floats, truth: Ints) -> float:
    """Return the cut in 0..1 on `probabilities` [N] of class 1 with the best balanced accuracy for `truth` [N].

    It is the best if the logits of each class are normal: it maximises Youden's (1950) J of the two fitted
    distributions, between their means. Fluss, Faraggi and Reiser (2005, "Estimation of the Youden Index and its
    associated cutoff point") find this binormal estimate far less noisy than the best cut among the values themselves.
    The trade-off: it trusts the shape. 0.5 where class 1 does not have the larger logits, or a class is absent.
    """
    logits = logit(np.clip(probabilities, 1e-6, 1 - 1e-6))
    well, ill = logits[truth != 1], logits[truth == 1]
    if not len(well) or not len(ill):
        return 0.5
    low, low_spread = float(well.mean()), max(float(well.std()), 1e-3)
    high, high_spread = float(ill.mean()), max(float(ill.std()), 1e-3)
    if high <= low:
        return 0.5

    def negative_j(cut: float) -> float:
        return float(norm.cdf(cut, high, high_spread) - norm.cdf(cut, low, low_spread))

    return float(expit(minimize_scalar(negative_j, bounds=(low, high), method="bounded").x))


def sensitivity_threshold(probabilities: Floats, truth: Ints, sensitivity: float) -> float:
    """Return the highest cut in 0..1 on `probabilities` [N] of class 1 that finds that share of class 1 in `truth` [N].

    It lies half-way to the highest probability that it leaves out.
    """
    ill = np.sort(probabilities[truth == 1])
    first = int(np.floor((1 - sensitivity) * len(ill) + 1e-9))
    high = float(ill[first])
    below = probabilities[probabilities < high]
    return (high + float(below.max())) / 2 if len(below) else high / 2
