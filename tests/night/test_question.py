"""What an approver reads in the request, and the figures of a notice, from made-up evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xray_pipeline.evaluation.metric_table import NAMES, Interval
from xray_pipeline.evaluation.metrics import Comparison, Evaluation
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import decide, load_policy
from xray_pipeline.night.judging import in_short
from xray_pipeline.night.promotion import question


def model(accuracy: float) -> Evaluation:
    metrics = {name: Interval(accuracy, accuracy - 0.02, accuracy + 0.01) for name in NAMES}
    confusion = ((100, 50), (10, 440))
    return Evaluation("m", "s" * 64, 600, 400, ("NORMAL", "PNEUMONIA"), 0.5, confusion, metrics=metrics, rows="r" * 64)


AHEAD = {"accuracy": Interval(0.03, -0.001, 0.06)}
COMPARED = Comparison("new", "old", 600, 400, AHEAD, 25, 7, 1e-6, "r" * 64)
BESIDE = Evidence(model(0.93), model(0.9), True, COMPARED, "s" * 64, "approve", 0.0, (), (), (), ("recipe",))
FIRST = Evidence(model(0.93), None, False, None, "s" * 64, "approve", None, None, ())


def text(evidence: Evidence, champion: int | None = 1) -> str:
    return question(decide(evidence, load_policy("default")), 2, champion, evidence)


def test_each_headline_metric_has_its_difference_with_its_interval() -> None:
    row = "| Accuracy | 0.930 (0.910 to 0.940) | 0.900 (0.880 to 0.910) | +0.030 (-0.001 to +0.060) |"
    assert row in text(BESIDE)
    assert "| AUC | 0.930 (0.910 to 0.940) | 0.900 (0.880 to 0.910) | - |" in text(BESIDE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Different from the champion: recipe."),
        ({"changed": ()}, "Different from the champion: nothing."),
        ({"changed": None}, "What is different from the champion is not on record."),
        ({}, "No drift alarm stands."),
        ({"alarms": ("2026-03-03: pixels",)}, "**Drift alarm:** 2026-03-03: pixels."),
        ({"alarms": None}, "Drift was not measured."),
    ],
)
def test_what_changed_and_whether_an_alarm_stands_is_said(changes: dict[str, object], said: str) -> None:
    assert said in text(replace(BESIDE, **changes)).splitlines()  # type: ignore[arg-type]


def test_a_first_model_is_compared_with_nothing() -> None:
    said = text(FIRST, None)
    assert "| Accuracy | 0.930 (0.910 to 0.940) | - | - |" in said
    assert "champion:" not in said


def test_a_notice_gives_both_accuracies_and_the_difference() -> None:
    both = "accuracy 0.930 against version 1's 0.900: +0.030 (-0.001 to +0.060)"
    assert in_short(BESIDE, 1) == f"{both} on 600 held-out radiographs of 400 patients"
    assert in_short(FIRST, None) == "accuracy 0.930 on 600 held-out radiographs of 400 patients"
