"""The rows of a report's tables: numbers beside their intervals, and where they lie on a common axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xray_pipeline.evaluation import stress
from xray_pipeline.evaluation.metric_table import METRICS
from xray_pipeline.evaluation.slices import Slice
from xray_pipeline.evaluation.watching import Delivery
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.report.wording import Cell, candidate_of, cell, difference

LISTED = 12  # slices of one dimension shown without unfolding, and deliveries of the record


@dataclass(frozen=True)
class Axis:
    """The axis that the dots of one table share: from `low` to 1. What lies below it is drawn at its edge."""

    low: float

    @classmethod
    def of(cls, parts: Sequence[Slice], metric: str) -> Axis:
        """Take the axis that shows every interval of parts with enough patients."""
        shown = [
            measured[metric].low
            for part in parts
            if not part.small
            for measured in (part.candidate, part.champion)
            if metric in measured
        ]
        return cls(math.floor(10 * min(0.9, *shown)) / 10 if shown else 0.0)

    def dots(self, part: Slice, metric: str) -> list[tuple[str, float, float, float]]:
        """Return for candidate and champion: who, and low end, value and high end in percent of the axis."""
        return [
            (who, self._at(interval.low), self._at(interval.value), self._at(interval.high))
            for who, measured in (("first", part.candidate), ("second", part.champion))
            if (interval := measured.get(metric)) is not None
        ]

    def _at(self, value: float) -> float:
        return 100 * max(0.0, (value - self.low) / (1 - self.low))


def metrics(evidence: Evidence) -> list[dict[str, Any]]:
    """Every metric: candidate beside champion, with the difference."""
    ours, theirs = candidate_of(evidence), evidence.champion
    differences = evidence.comparison.differences if evidence.comparison else {}
    return [
        {
            "name": metric.title,
            "explained": metric.words,
            "candidate": cell(ours.metrics.get(metric.name)),
            "champion": cell(theirs.metrics.get(metric.name) if theirs else None),
            "difference": difference(differences.get(metric.name), metric.higher_is_better),
        }
        for metric in METRICS
    ]


def by_class(evidence: Evidence) -> list[dict[str, Any]]:
    """Each class of more than two against the rest: every metric, candidate beside champion."""
    ours, theirs = candidate_of(evidence), evidence.champion
    return [
        {
            "class": label,
            "rows": [
                {
                    "name": metric.title,
                    "candidate": cell(measured.get(metric.name)),
                    "champion": cell(theirs.by_class.get(label, {}).get(metric.name) if theirs else None),
                }
                for metric in METRICS
            ],
        }
        for label, measured in ours.by_class.items()
    ]


def dimensions(slices: Sequence[Slice]) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Each dimension with the slices shown at once (the worst, of many) and those to unfold."""
    axis, shown = Axis.of(slices, "accuracy"), []
    for dimension in dict.fromkeys(part.dimension for part in slices):
        parts = [part for part in slices if part.dimension == dimension]
        if [part.value for part in parts] == ["unknown"]:
            continue
        if len(parts) > LISTED:
            parts.sort(key=lambda part: part.candidate["accuracy"].value)
        rows = [_slice(part, axis, "accuracy") for part in parts]
        shown.append((dimension, rows[:LISTED], rows[LISTED:]))
    return shown


def unknown(slices: Sequence[Slice]) -> list[str]:
    """The dimensions that are not known of any radiograph."""
    known = {part.dimension for part in slices if part.value != "unknown"}
    return [d for d in dict.fromkeys(part.dimension for part in slices) if d not in known]


def _slice(part: Slice, axis: Axis, metric: str) -> dict[str, Any]:
    return {
        "value": part.value,
        "dots": axis.dots(part, metric),
        "n": part.n,
        "patients": part.patients,
        "small": part.small,
        **{name: cell(part.candidate.get(name)) for name in ("accuracy", "auc")},
        **{name: cell(part.candidate.get(name)).value for name in ("sensitivity", "specificity")},
        "ece": cell(part.candidate.get("ece")).value,
        "champion": cell(part.champion.get("accuracy")).value,
        "champion_auc": cell(part.champion.get("auc")).value,
        "difference": difference(part.difference.get("accuracy")),
    }


def recorded(deliveries: Sequence[Delivery]) -> list[dict[str, Any]]:
    """The newest deliveries of the champion's record, the newest first."""
    return [
        {
            "name": one.key,
            "at": one.at[:10],
            "radiographs": one.radiographs,
            "patients": one.patients,
            "accuracy": Cell(
                "-" if one.accuracy is None else f"{one.accuracy:.3f}", f"{one.low:.3f} to {one.high:.3f}"
            ),
            "p": "-" if one.drift is None or one.drift.p is None else f"{one.drift.p:.4f}",
            "unlike": one.drift is not None and one.drift.alarm,
            "text": one.drift.text if one.drift and (one.drift.alarm or one.drift.p is None) else "",
        }
        for one in reversed(deliveries[-LISTED:])
    ]


def stressed(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    """Each perturbation, with what it changes of the AUC."""
    untouched = {part.value: part for part in slices}.get(stress.UNTOUCHED)
    axis, rows = Axis.of(slices, "auc"), []
    for part in slices:
        row = _slice(part, axis, "auc")
        row["change"] = "-"
        if untouched and part is not untouched and "auc" in part.candidate and "auc" in untouched.candidate:
            row["change"] = f"{part.candidate['auc'].value - untouched.candidate['auc'].value:+z.3f}"
        row["baseline"] = part.value == stress.BASELINE
        rows.append(row)
    return rows
