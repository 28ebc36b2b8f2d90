"""What is said of a night at its end, and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xray_pipeline.base.errors import (
    DatasetError,
    EvaluationError,
    LedgerError,
    ObjectNotFound,
    RegistryUnavailable,
    XrayError,
)
from xray_pipeline.base.text import BARRED, shortened, without_names
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.night import newest, nights
from xray_pipeline.night.identity import compare
from xray_pipeline.night.nights import Arrival, Model, Night
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger

log = logging.getLogger(__name__)

Returned = Mapping[str, Any] | None
CHARTED = ("accuracy", "auc")
"""The metrics that a night's record keeps."""
LONGEST = 500  # characters of a sentence in a record


@dataclass(frozen=True)
class Steps:
    """What each step of a night returned, as JSON-able values; None for one that had nothing to do, or failed."""

    deliveries: Sequence[str] = ()
    committed: Returned = None
    looked: Returned = None
    trained: Returned = None
    evaluated: Returned = None
    decided: Returned = None
    registered: Returned = None
    promoted: Returned = None


@dataclass
class Course:
    """How a night went: when it began (ISO 8601), minutes by task, what is known of each task that failed, and why the
    look ahead did, which stops no night."""

    started: str
    minutes: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unwatched: str = ""


def conclude(run: Run, steps: Steps, course: Course) -> dict[str, Any]:
    """Say what the night did, and keep its record, and what it measured of those in charge.

    Keys: deliveries, unchecked, snapshot, images, patients, held_out, candidate, champion, decision, version,
    alias, message and in_words. Raises RegistryError and DatasetError where nothing may be written, StorageError.
    """
    store, committed, evaluated, decided = run.store(), steps.committed or {}, steps.evaluated, steps.decided
    arrivals = _arrivals(run, steps.deliveries)
    ours, theirs = _measured(run, evaluated["evidence"]) if evaluated else (None, None)
    pair = evaluated or {"candidate": "", "champion": None, "models": {}}
    learnt = pair["models"].get(str(pair["champion"]), ("",))[0]
    summary: dict[str, Any] = {
        "deliveries": [
            {**asdict(arrival), "alarms": list(arrival.alarms)} for arrival in arrivals if arrival.state != "unchecked"
        ],
        "unchecked": [arrival.name for arrival in arrivals if arrival.state == "unchecked"],
        "snapshot": committed.get("snapshot", ""),
        **{name: committed.get(name, 0) for name in ("images", "patients")},
        "held_out": {name: committed.get(f"held_out_{name}", 0) for name in ("images", "patients")},
        "candidate": _scores(ours, digest=pair["candidate"]),
        "champion": _scores(theirs, version=pair["champion"], digest=learnt),
        "decision": decided
        and {"verdict": decided["verdict"], "promoted": bool(steps.promoted), "reasons": list(decided["reasons"])},
        "version": steps.registered["version"] if steps.registered else None,
        "alias": "champion" if steps.promoted else "challenger" if steps.registered else "",
    }
    summary["message"] = _message(summary, steps, course)
    log.info("%s", summary["message"])
    record = _record(run, summary, steps, course, arrivals, (ours, theirs))
    kind, words = nights.outcome(record), nights.in_words(record)
    summary["in_words"] = words if words.startswith(kind) else f"{kind}: {words}"
    _before_writing(run, course)
    nights.keep(store, record)
    if evaluated and not course.failed:
        _keep_measured(run, evaluated)
    log.info("%s", summary["in_words"])
    return summary


def _keep_measured(run: Run, evaluated: Mapping[str, Any]) -> None:
    """Keep what the night measured of those in charge; the figures are for reading, nothing rests on them."""
    try:
        newest.take_over(run, run.evidence(evaluated["evidence"]), evaluated["candidate"], evaluated["champion"])
    except XrayError as error:
        log.warning("what the night measured is not kept as figures of those in charge: %s", error)


def _before_writing(run: Run, course: Course) -> None:
    """Compare store and registry. A night that failed is recorded without a registry that answers, if the store is one.

    Raises as `identity.compare` does.
    """
    try:
        compare(run)
    except RegistryUnavailable:
        if not (course.failed and Dataset(run.settings).begun()):
            raise


def _arrivals(run: Run, keys: Sequence[str]) -> list[Arrival]:
    """Return what became of the night's deliveries; one that is fit and yet not in the dataset counts as unchecked."""
    store, committed = run.store(), Dataset(run.settings).manifests() if keys else []
    arrivals = []
    for key in keys:
        verdict = verdicts.checked(store, key)
        if verdict is None or (verdict.fit and key not in committed):
            arrivals.append(Arrival(key, "unchecked"))
            continue
        state, accepted = ("ingested", verdict.accepted) if verdict.fit else ("rejected", 0)
        told = (dict(verdict.quarantined), without_names(verdict.why), alarms.of_delivery(store, key))
        arrivals.append(Arrival(key, state, accepted, *told, alarms.p_values(store, key), verdict.labelled))
    return arrivals


def _measured(run: Run, key: str) -> tuple[Evaluation | None, Evaluation | None]:
    """Return what evidence says of candidate and champion; nothing where it is damaged, as the night is over."""
    try:
        evidence = run.evidence(key)
    except (DatasetError, EvaluationError, ObjectNotFound) as error:
        log.warning("the night's record has no figures of its models: %s", error)
        return None, None
    return evidence.candidate, evidence.champion


def _record(
    run: Run,
    summary: Mapping[str, Any],
    steps: Steps,
    course: Course,
    arrivals: Sequence[Arrival],
    measured: tuple[Evaluation | None, Evaluation | None],
) -> Night:
    try:
        state = Ledger(run.store()).state()
        in_production, since = state.champion, state.since.at if state.since else ""
    except LedgerError as error:  # the night failed by it
        log.warning("the night's record names no champion: %s", error)
        in_production, since = None, ""
    return Night(
        run=run.name,
        who=run.who,
        started=course.started,
        ended=nights.moment(),
        deliveries=tuple(replace(arrival, why=shortened(arrival.why, LONGEST)) for arrival in arrivals),
        radiographs=summary["images"],
        patients=summary["patients"],
        candidate=_model(measured[0], summary["version"]),
        champion=_model(measured[1], steps.evaluated["champion"] if steps.evaluated else None),
        verdict=steps.decided["verdict"] if steps.decided else "",
        version=summary["version"],
        alias=summary["alias"],
        why=shortened(_why(summary, steps), LONGEST),
        in_production=in_production,
        since=since,
        failed={task: shortened(why, LONGEST) for task, why in course.failed.items()},
        minutes=course.minutes,
        alarm=shortened((steps.looked or {}).get("alarm", ""), LONGEST),
        unwatched=shortened(course.unwatched, LONGEST),
        barred=BARRED in (steps.decided["reasons"] if steps.decided else ()),
    )


def _model(evaluation: Evaluation | None, version: int | None) -> Model | None:
    if not evaluation:
        return None
    figures = {name: evaluation.metrics[name] for name in CHARTED if name in evaluation.metrics}
    return Model(version, evaluation.n, figures)


def _why(summary: Mapping[str, Any], steps: Steps) -> str:
    """Say why the night decided as it did, or why there was nothing to decide."""
    if steps.decided:
        return " ".join(steps.decided["reasons"])
    if steps.trained:
        return f"nothing new to decide: {steps.trained['concluded']}" if steps.trained["concluded"] else ""
    empty = steps.committed is not None and not summary["snapshot"]
    return "nothing to train on: no delivery was ever accepted" if empty else ""


def _message(summary: Mapping[str, Any], steps: Steps, course: Course) -> str:
    alarm = (steps.looked or {}).get("alarm", "")
    parts = [f"ALARM: {alarm}"] if alarm else []
    parts += [
        f"The night failed in {task}{f': {why}' if why else '; see its log'}." for task, why in course.failed.items()
    ]
    parts += [
        f"Delivery {d['name']} {d['state']}: {d['accepted']} accepted, {sum(d['quarantined'].values())} quarantined."
        + (f" {d['why']}" if d["why"] else "")
        + (f" Drift alarm: {' and '.join(d['alarms'])}." if d["alarms"] else "")
        for d in summary["deliveries"]
    ]
    parts += [f"The champion was not watched: {course.unwatched}."] if course.unwatched else []
    parts += [f"Delivery {key} not taken: not checked, or changed since." for key in summary["unchecked"]]
    parts = parts or ["No new deliveries."]
    if why := _why(summary, steps):
        parts.append(why if steps.decided else f"{why[0].upper()}{why[1:]}.")
    if steps.registered:
        parts.append(f"Version {summary['version']} is {summary['alias']}.")
    return " ".join(parts)


def _scores(evaluation: Evaluation | None, **model: object) -> dict[str, Any] | None:
    """What was measured of a model, after which one it is: the digest that names a candidate everywhere."""
    if not evaluation:
        return None
    measured = {name: asdict(metric) for name, metric in evaluation.metrics.items()}
    return {**model, "threshold": evaluation.threshold, **{name: measured.get(name) for name in HEADLINE}}
