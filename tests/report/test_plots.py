"""Plots are drawn where the action is, and the dots beside a table lie where its numbers are."""

from __future__ import annotations

import re

import numpy as np
import pytest

from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.evaluation.slices import Slice
from xray_pipeline.report import figures
from xray_pipeline.report.figures import Curve
from xray_pipeline.report.tables import Axis


def curve(apart: float, threshold: float | None = 0.5, n: int = 400) -> Curve:
    """Scores of n radiographs, those with the class so many standard deviations above those without."""
    rng, truth = np.random.default_rng(0), np.arange(n) % 2 == 0
    return Curve(
        "candidate", truth, 1 / (1 + np.exp(-(rng.normal(0, 1, n) + np.where(truth, apart, -apart)))), threshold
    )


def words(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
@pytest.mark.parametrize(
    ("drawn", "enlarged"), [(curve(2.5), True), (curve(2.5, None), True), (curve(0.1), False)], ids=str
)
def test_a_corner_is_enlarged_where_the_points_lie_in_one(draw: object, drawn: Curve, enlarged: bool) -> None:
    svg = draw([drawn], "PNEUMONIA")  # type: ignore[operator]
    assert (len(words(svg)) > 16) == enlarged
    assert "PNEUMONIA" in svg


@pytest.mark.parametrize(("n", "shown"), [(20, {"1", "2"}), (400, {"1", "10", "20"}), (60_000, {"1", "100", "1,000"})])
def test_histograms_count_on_a_logarithmic_axis(n: int, shown: set[str]) -> None:
    told = words(figures.histogram(curve(2.0, n=n), "PNEUMONIA"))
    assert shown <= set(told)
    assert not any("$" in word for word in told)
    assert len(told) < 28


def test_the_cut_of_a_model_that_calls_nothing_is_drawn() -> None:
    never = curve(2.0, 1.0)
    assert "candidate, cut 1.000" in words(figures.by_cut([never], "PNEUMONIA")[0])
    assert figures.precision_recall([never], "PNEUMONIA").startswith("<svg")


def part(value: float, low: float, small: bool = False) -> Slice:
    found = {"accuracy": Interval(value, low, 1.0)}
    return Slice("label", "NORMAL", 10, 5, small, found, {"accuracy": Interval(0.5, 0.4, 0.6)} if small else {})


def test_dots_lie_on_an_axis_that_shows_all_parts_of_enough_patients() -> None:
    axis = Axis.of([part(0.95, 0.87), part(0.6, 0.1, small=True)], "accuracy")
    assert axis.low == 0.8
    assert axis.dots(part(0.95, 0.87), "accuracy") == [("first", *map(pytest.approx, (35.0, 75.0, 100.0)))]
    small = axis.dots(part(0.6, 0.1, small=True), "accuracy")
    assert small == [("first", 0.0, 0.0, 100.0), ("second", 0.0, 0.0, 0.0)]  # at the edge, not beyond it
    assert axis.dots(part(0.9, 0.8), "auc") == []


@pytest.mark.parametrize(("parts", "low"), [([], 0.0), ([part(0.6, 0.1, small=True)], 0.0), ([part(1.0, 1.0)], 0.9)])
def test_an_axis_has_a_length_whatever_there_is(parts: list[Slice], low: float) -> None:
    assert Axis.of(parts, "accuracy").low == low
