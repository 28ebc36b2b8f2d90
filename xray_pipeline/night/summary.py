"""The night as a whole: all steps in one call, and what is said of them at the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from xray_pipeline.base.progress import Progress
from xray_pipeline.base.records import Outcome
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.night import health
from xray_pipeline.night import steps as night
from xray_pipeline.night.run import Run, kept_evidence

log = logging.getLogger(__name__)

_T = TypeVar("_T", bound=Outcome)


def whole(run: Run, progress: Progress | None = None) -> dict[str, Any]:
    """Run the whole night and return what `conclude` says. Raises what its steps raise."""
    health.before_night(run)
    found = night.find_deliveries(run)
    night.check_deliveries(run, found, progress)
    committed = night.commit_deliveries(run, found, progress)
    outcomes: dict[str, Mapping[str, Any] | None] = {}

    def keep(name: str, outcome: _T) -> _T:
        outcomes[name] = outcome.to_dict()
        return outcome

    if committed.snapshot:
        trained = keep("trained", night.train(run, committed.snapshot, progress))
        if not trained.settled:
            decided = keep("decided", night.decide(run, keep("evaluated", night.evaluate(run, trained, progress))))
            if decided.verdict == "registered":
                registered = keep("registered", night.register(run, decided))
                if not registered.waits:
                    keep("promoted", night.promote(run, registered))
    return conclude(run, found, committed.to_dict(), **outcomes)


def conclude(
    run: Run,
    found: list[str],
    committed: Mapping[str, Any],
    trained: Mapping[str, Any] | None = None,
    evaluated: Mapping[str, Any] | None = None,
    decided: Mapping[str, Any] | None = None,
    registered: Mapping[str, Any] | None = None,
    promoted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Say what the night did; steps that had nothing to do are None.

    Keys: deliveries, unchecked, snapshot, images, patients, held_out, candidate, champion, decision, version, alias and
    message. Raises StorageError.
    """
    store = run.store()
    deliveries, unchecked = [], []
    for key in found:
        verdict = verdicts.checked(store, key)
        if verdict is None:
            unchecked.append(key)
            continue
        deliveries.append(
            {
                "name": key,
                "state": "ingested" if verdict.fit else "rejected",
                "accepted": verdict.accepted if verdict.fit else 0,
                "quarantined": dict(verdict.quarantined),
                "why": verdict.why,
                "alarms": list(alarms.of_delivery(store, key)),
            }
        )
    evidence = kept_evidence(store, evaluated["evidence"]) if evaluated else {}
    champion = _metrics_of(evidence.get("champion"))
    version = registered["version"] if registered else None
    summary: dict[str, Any] = {
        "deliveries": deliveries,
        "unchecked": unchecked,
        **{name: committed[name] for name in ("snapshot", "images", "patients")},
        "held_out": {"images": committed["held_out_images"], "patients": committed["held_out_patients"]},
        "candidate": _metrics_of(evidence.get("candidate")),
        "champion": {"version": evaluated["champion"], **champion} if evaluated and champion else None,
        "decision": {
            "verdict": decided["verdict"],
            "promoted": bool(promoted),
            "reasons": list(decided["reasons"]),
        }
        if decided
        else None,
        "version": version,
        "alias": "champion" if promoted else "challenger" if registered else "",
    }
    summary["message"] = _message(summary, trained, registered)
    log.info("%s", summary["message"])
    return summary


def _message(
    summary: Mapping[str, Any], trained: Mapping[str, Any] | None, registered: Mapping[str, Any] | None
) -> str:
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
    elif trained and trained["settled"]:
        parts.append(f"Nothing new to decide: {trained['settled']}.")
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
