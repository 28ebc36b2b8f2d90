"""What a night found, as gauges of Airflow's own metrics: nowhere unless an operator turned those on.

xray.accuracy, xray.auc         tags model (champion, candidate): held-out radiographs of this night
xray.accepted                   files that the night's deliveries brought
xray.quarantined                tag reason
xray.drift_p                    tag channel: the smallest p of the night's deliveries
xray.minutes                    tag task
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from airflow.sdk.observability import stats

SCORES = ("accuracy", "auc")


def send(said: Mapping[str, Any], minutes: Mapping[str, float]) -> None:
    """Send the figures of one night, from what `summary.conclude` said and the minutes of its tasks."""
    for model in ("champion", "candidate"):
        for name in SCORES:
            if measured := (said[model] or {}).get(name):
                stats.gauge(f"xray.{name}", measured["value"], tags={"model": model})
    arrivals = said["deliveries"]
    stats.gauge("xray.accepted", sum(arrival["accepted"] for arrival in arrivals))
    quarantined: Counter[str] = Counter()
    drift: dict[str, float] = {}
    for arrival in arrivals:
        quarantined.update(arrival["quarantined"])
        drift |= {channel: min(p, drift.get(channel, p)) for channel, p in arrival["drift"].items()}
    for reason, count in quarantined.items():
        stats.gauge("xray.quarantined", count, tags={"reason": reason})
    for channel, p in drift.items():
        stats.gauge("xray.drift_p", p, tags={"channel": channel})
    for task, spent in minutes.items():
        stats.gauge("xray.minutes", spent, tags={"task": task})
