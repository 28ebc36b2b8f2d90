"""The night as a whole: all steps in one call, and what is said of them at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xray_pipeline.base.progress import Progress
from xray_pipeline.base.storage import Store
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.intake.verdicts import Checked
from xray_pipeline.night import health
from xray_pipeline.night import steps as night
from xray_pipeline.night.run import Run, Trained, kept_evidence

log = logging.getLogger(__name__)

Returned = Mapping[str, Any] | None


@dataclass(frozen=True)
class Steps:
    """What each step of a night returned, as JSON-able values; None for a step that had nothing to do."""

    deliveries: Sequence[str]
    committed: Mapping[str, Any]
    trained: Returned = None
    evaluated: Returned = None
    decided: Returned = None
    registered: Returned = None
    promoted: Returned = None


def whole(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Run the whole night and return what `conclude` says. Raises what its steps raise."""
    health.before_night(run)
    deliveries = night.find_deliveries(run)
    night.check_deliveries(run, deliveries, progress)
    committed = night.commit_deliveries(run, deliveries, progress)
    returned: dict[str, Mapping[str, Any]] = {}
    if committed.snapshot:
        trained = night.train(run, committed.snapshot, progress)
        returned["trained"] = trained.to_dict()
        if not trained.concluded:
            returned |= _after_training(run, trained, progress)
    return conclude(run, Steps(deliveries, committed.to_dict(), **returned))


def _after_training(run: Run, trained: Trained, progress: Progress | None) -> dict[str, Mapping[str, Any]]:
    evaluated = night.evaluate(run, trained, progress)
    decided = night.decide(run, evaluated)
    returned: dict[str, Mapping[str, Any]] = {"evaluated": evaluated.to_dict(), "decided": decided.to_dict()}
    if decided.verdict == "registered":
        registered = night.register(run, decided)
        returned["registered"] = registered.to_dict()
        if not registered.waits:
            returned["promoted"] = night.promote(run, registered).to_dict()
    return returned


def conclude(run: Run, steps: Steps) -> dict[str, Any]:
    """Say what the night did.

    Keys: deliveries, unchecked, snapshot, images, patients, held_out, candidate, champion, decision, version, alias and
    message. Raises StorageError.
    """
    store, committed, evaluated, decided = run.store(), steps.committed, steps.evaluated, steps.decided
    judged = {key: verdicts.checked(store, key) for key in steps.deliveries}
    evidence = kept_evidence(store, evaluated["evidence"]) if evaluated else {}
    champion = _metrics_of(evidence.get("champion"))
    summary: dict[str, Any] = {
        "deliveries": [_delivery(store, verdict) for verdict in judged.values() if verdict],
        "unchecked": [key for key, verdict in judged.items() if verdict is None],
        **{name: committed[name] for name in ("snapshot", "images", "patients")},
        "held_out": {"images": committed["held_out_images"], "patients": committed["held_out_patients"]},
        "candidate": _metrics_of(evidence.get("candidate")),
        "champion": {"version": evaluated["champion"], **champion} if evaluated and champion else None,
        "decision": _decision(decided, steps.promoted) if decided else None,
        "version": steps.registered["version"] if steps.registered else None,
        "alias": "champion" if steps.promoted else "challenger" if steps.registered else "",
    }
    summary["message"] = _message(summary, steps.trained, steps.registered)
    log.info("%s", summary["message"])
    return summary


def _delivery(store: Store, verdict: Checked) -> dict[str, Any]:
    return {
        "name": verdict.key,
        "state": "ingested" if verdict.fit else "rejected",
        "accepted": verdict.accepted if verdict.fit else 0,
        "quarantined": dict(verdict.quarantined),
        "why": verdict.why,
        "alarms": list(alarms.of_delivery(store, verdict.key)),
    }


def _decision(decided: Mapping[str, Any], promoted: Returned) -> dict[str, Any]:
    return {"verdict": decided["verdict"], "promoted": bool(promoted), "reasons": list(decided["reasons"])}


def _message(summary: Mapping[str, Any], trained: Returned, registered: Returned) -> str:
    parts = [
        f"Delivery {d['name']} {d['state']}: {d['accepted']} accepted, {sum(d['quarantined'].values())} quarantined."
        + (f" {d['why']}" if d["why"] else "")
        + (f" Drift alarm: {' and '.join(d['alarms'])}." if d["alarms"] else "")
        for d in summary["deliveries"]
    ]
    parts += [f"Delivery {key} not taken: not checked, or changed since." for key in summary["unchecked"]]
    parts = parts or ["No new deliveries."]
    if not summary["snapshot"]:
        parts.append("Nothing to train on: no delivery was ever accepted.")
    elif trained and trained["concluded"]:
        parts.append(f"Nothing new to decide: {trained['concluded']}.")
    elif summary["decision"]:
        parts += summary["decision"]["reasons"]
    if registered:
        parts.append(f"Version {summary['version']} is {summary['alias']}.")
    return " ".join(parts)


def _metrics_of(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not evaluation:
        return None
    metrics = {name: evaluation["metrics"].get(name) for name in HEADLINE}
    return {"digest": evaluation["model_digest"], "threshold": evaluation["threshold"], **metrics}
