"""Every metric there is, once: its name, its words, its direction, and where it shows; and the shape of its value.

Evaluation, gate, report and faces read this table; it imports nothing, so that pages and commands may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Interval:
    """A value and its two-sided 95 % interval; `low <= value <= high` holds for all but resampling noise."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """One metric. `proportion`: a share of radiographs, whose interval at 0 and 1 is that of a binomial.

    `headline`: shown where there is room for a few; `needed`: a decision is not made without it.
    """

    name: str
    title: str
    words: str
    higher_is_better: bool = True
    proportion: bool = False
    headline: bool = False
    needed: bool = False


METRICS: Final = (
    Metric(
        "accuracy",
        "Accuracy",
        "share of radiographs that the model names right",
        proportion=True,
        headline=True,
        needed=True,
    ),
    Metric(
        "balanced_accuracy",
        "Balanced accuracy",
        "mean of the shares named right in each class",
        proportion=True,
        needed=True,
    ),
    Metric(
        "auc",
        "AUC",
        "how often a radiograph with the finding gets the higher score of a pair; .5 is chance",
        headline=True,
        needed=True,
    ),
    Metric("average_precision", "Average precision", "area under the precision-recall curve"),
    Metric(
        "sensitivity",
        "Sensitivity",
        "share of radiographs with the finding that are called",
        proportion=True,
        headline=True,
        needed=True,
    ),
    Metric(
        "specificity",
        "Specificity",
        "share of radiographs without the finding that are cleared",
        proportion=True,
        headline=True,
        needed=True,
    ),
    Metric(
        "ppv",
        "Predictive value, positive",
        "share of the called that have the finding, at this mix of classes",
        proportion=True,
    ),
    Metric(
        "npv",
        "Predictive value, negative",
        "share of the cleared that don't have it, at this mix of classes",
        proportion=True,
    ),
    Metric("brier", "Brier score", "mean squared error of the probability; lower is better", higher_is_better=False),
    Metric(
        "ece",
        "Calibration error",
        "mean distance of probability and frequency, 15 bins of equal mass; lower is better",
        higher_is_better=False,
        needed=True,
    ),
)
NAMES: Final = tuple(metric.name for metric in METRICS)
HEADLINE: Final = tuple(metric.name for metric in METRICS if metric.headline)
NEEDED: Final = tuple(metric.name for metric in METRICS if metric.needed)
PROPORTIONS: Final = tuple(metric.name for metric in METRICS if metric.proportion)
BY_NAME: Final = {metric.name: metric for metric in METRICS}
