"""The prospective record as it reads today, and the alarm about the champion.

What models said is kept (`evaluation/prospective`); labels, patients and places are the dataset's of now, the promise
is the evidence that the champion was promoted on, and margin and rate of false alarms are the policy's. What comes of
it is derived, and kept until one of these changes, so that pages need not read ten years:

    prospective/watched/<candidate>.json

Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pandas as pd

from xray_pipeline.base import records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import (
    AccessDenied,
    ConfigError,
    DatasetError,
    EvaluationError,
    ObjectNotFound,
    TrainingError,
)
from xray_pipeline.base.storage import Store
from xray_pipeline.base.text import SHORTEST_REASON, several
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import answer_drift, predictions, prospective, watching
from xray_pipeline.evaluation.answer_drift import AnswerDrift, HeldOut
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.evaluation.cases import Answers, prepare
from xray_pipeline.evaluation.metric_table import HEADLINE, Interval
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.evaluation.prospective import Acknowledgement, Said
from xray_pipeline.evaluation.slices import measured_slice, slice_values
from xray_pipeline.evaluation.watching import Delivery, Fall, Promise, Strand, Terms, Watch
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import load_policy
from xray_pipeline.night.run import Run, kept_evidence
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.training.candidate import find_candidate

log = logging.getLogger(__name__)


By = Literal["delivery", "site", "scanner", "month"]


@dataclass(frozen=True)
class Group:
    """The champion on a part of its record: radiographs, patients, whether these are few, and the headline metrics that
    such a part can have."""

    value: str
    radiographs: int
    patients: int
    small: bool
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class Watched:
    """The champion's record: its version (None without one) and candidate; the alarm in a sentence, "" while none
    stands; all of it in words; the deliveries in the order of their commits; what was watched; who acknowledged what;
    and what is wrong with files that can't be believed. `raised_by` is the delivery that raised the alarm, `unlabelled`
    says what the answers alone tell, `inputs` is the digest of all that it follows from."""

    champion: int | None
    candidate: str
    alarm: str
    in_words: str
    promised: float | None
    deliveries: tuple[Delivery, ...] = ()
    found: tuple[Mapping[str, Any], ...] = ()
    acknowledged: tuple[Acknowledgement, ...] = ()
    damaged: tuple[str, ...] = ()
    raised_by: str = ""
    unlabelled: str = ""
    inputs: str = ""


def numbers(run: Run) -> Mapping[str, float]:
    """Return the numbers of clause `watched` of the policy in force, else of the default one. Raises ConfigError."""
    for policy in (load_policy(run.settings.policy), load_policy("default")):
        if clause := policy.clause("watched"):
            return clause.numbers
    raise ConfigError("the default policy has no clause `watched`; put back the file that came with this version")


def terms(run: Run) -> Terms:
    """Return what the policy asks of the watch. Raises ConfigError."""
    asked = numbers(run)
    return Terms(asked["margin"], asked["false_alarms"])


def watched(run: Run) -> Watched:
    """Return the record of today's champion, read anew where anything has changed since it was kept.

    Raises LedgerError, ConfigError, DatasetError, StorageUnavailable.
    """
    store, dataset = run.store(), Dataset(run.settings)
    ledger = Ledger(store)
    state = ledger.state()
    entry = state.registered.get(state.champion or 0)
    if entry is None:
        unknown = f"The training of version {state.champion} is not on record here."
        return Watched(state.champion, "", "", unknown if state.champion else "There is no champion to watch.", None)
    evidence = _promoted_on(ledger.entries(), entry)
    key, inputs = f"prospective/watched/{entry.candidate}.json", _inputs(run, dataset, entry.candidate, evidence)
    before: dict[str, AnswerDrift | None] = {}
    try:
        if (kept := records.read(store, key, Watched)).inputs == inputs and kept.champion == state.champion:
            return kept
        before = {one.key: one.drift for one in kept.deliveries}
    except ObjectNotFound:
        pass
    except DatasetError as error:
        log.warning("%s; it is made anew", error)
    found = _watched(run, dataset, state.champion or 0, entry.candidate, evidence, before)
    found = replace(found, inputs=inputs)
    if not found.damaged:  # else it changes when a file is put back
        try:
            records.write(store, key, asdict(found))
        except AccessDenied as error:  # Airflow's API server may only read
            log.info("the record is read anew each time: %s", error)
    return found


def untold(run: Run, found: Watched) -> bool:
    """Return whether an alarm stands that nobody was told of. Raises StorageUnavailable."""
    return bool(found.alarm) and not prospective.told(run.store(), found.candidate, found.raised_by)


def told(run: Run) -> None:
    """Keep that people were told of the alarm that stands. Raises as `watched` does."""
    if (found := watched(run)).alarm:
        prospective.tell(run.store(), found.candidate, found.raised_by)


def figures(run: Run, found: Watched, by: By, since: datetime | None = None) -> list[Group]:
    """Measure the champion on its record, part by part, from an aware time on: all of it, then each part of it.

    Raises as `watched` does.
    """
    said, _ = prospective.read(run.store(), found.candidate)
    said = [one for one in said if since is None or datetime.fromisoformat(one.at) >= since]
    rows = answered(Dataset(run.settings), said)
    if rows.empty:
        return []
    parts = {"delivery": rows["delivery"], "month": rows["at"].str[:7]}
    named = {"site": "source", "scanner": "scanner"}
    values = np.asarray(parts[by] if by in parts else slice_values(rows)[named[by]])
    table = rows[[f"p_{name}" for name in said[0].classes]].to_numpy()
    answers = Answers(table, said[0].threshold, said[0].model)
    (cases,) = prepare([answers], rows["label"], rows["patient"], said[0].classes)
    resampling, groups = Resampling(run.settings.bootstrap), []
    for value in ("", *dict.fromkeys(sorted(values.tolist()) if by != "delivery" else values.tolist())):
        part = measured_slice(
            by, value or "all", [cases.at(np.flatnonzero(values == value)) if value else cases], resampling
        )
        shown = {name: part.candidate[name] for name in HEADLINE if name in part.candidate}
        groups.append(Group(part.value, part.n, part.patients, part.small, shown))
    return groups


def acknowledge(run: Run, why: str) -> Acknowledgement:
    """Acknowledge the alarm about the champion: the test begins anew with the next delivery.

    Raises ConfigError without a reason, EvaluationError when none stands, and as `watched` does.
    """
    if len(why.strip()) < SHORTEST_REASON:
        raise ConfigError(f"reason {why!r}: say why the alarm about the champion may go, in some words")
    now = watched(run)
    if not now.alarm:
        raise EvaluationError("no alarm about the champion stands; there is nothing to acknowledge")
    given = Acknowledgement(now.deliveries[-1].key, now.alarm, run.who, records.moment(), why)
    prospective.acknowledge(run.store(), now.candidate, given)
    return given


def answered(dataset: Dataset, said: list[Said]) -> pd.DataFrame:
    """Return the rows of a record that the dataset still holds, with its labels of today, in the order of the commits.

    Columns: those of `Dataset.rows`, and order, at, truth and named (classes by number), and p_ of each class.
    """
    snapshot = dataset.snapshot()
    if not said or snapshot is None:
        return pd.DataFrame()
    order = _places(dataset)
    parts = sorted((part for part in said if part.delivery in order), key=lambda part: order[part.delivery])
    if not parts:
        return pd.DataFrame()
    places = {part.delivery: place for place, part in enumerate(parts)}
    rows = prospective.answered(parts).merge(dataset.rows(snapshot).drop(columns="delivery"), on="digest")
    classes = {name: number for number, name in enumerate(dataset.settings.classes)}
    return rows.assign(order=rows["delivery"].map(places), truth=rows["label"].map(classes))


def _places(dataset: Dataset) -> dict[str, int]:
    """Return the place of each delivery in the order of the commits."""
    return {commit.manifest: place for place, commit in enumerate(dataset.commits.manifests())}


def _watched(
    run: Run, dataset: Dataset, version: int, candidate: str, evidence: str, before: Mapping[str, AnswerDrift | None]
) -> Watched:
    """Read the record; `before` is how unlike the answers on each delivery were found when it was read last."""
    store = run.store()
    said, damaged = prospective.read(store, candidate)
    acknowledged, unread = prospective.acknowledgements(store, candidate)
    rows = answered(dataset, said)
    about: dict[str, Any] = {"acknowledged": tuple(acknowledged), "damaged": (*damaged, *unread)}
    try:
        measured, promise = _promise(dataset, store, evidence)
    except (EvaluationError, DatasetError, ObjectNotFound) as error:
        return Watched(version, candidate, "", f"Version {version} is not watched: {error}.", None, **about)
    if rows.empty:
        words = f"Version {version} has been asked about no delivery yet."
        return Watched(version, candidate, "", words, promise.accuracy, **about)
    asked = rows.groupby("order").agg(delivery=("delivery", "first"), at=("at", "first"), n=("digest", "size"))
    asked = asked.assign(patients=rows.groupby("order")["patient"].nunique()).reset_index()
    rows["order"] = rows["order"].map({place: number for number, place in enumerate(asked["order"])})
    places = _places(dataset)
    settled = max((places.get(one.delivery, -1) for one in acknowledged), default=-1)
    since = sum(places[key] <= settled for key in asked["delivery"])
    found = watching.watch(rows, len(asked), promise, terms(run), since)
    unlike = _unlike(dataset, store, measured, rows, before)
    deliveries = tuple(
        Delivery(one.delivery, one.at, int(one.n), int(one.patients), None if math.isnan(accuracy) else accuracy, *more)
        for one, accuracy, *more in zip(
            asked.itertuples(), found.accuracy, found.low, found.high, found.wealth, unlike, strict=True
        )
    )
    strands = tuple({**asdict(strand), "wealth": strand.wealth[-1]} for strand in found.strands)
    alarm = _alarm(version, found, deliveries)
    about["unlabelled"] = answer_drift.in_words(list(zip(asked["delivery"], unlike, strict=True)))
    words = " ".join(filter(None, (alarm or f"No alarm about version {version}.", _figures(found, deliveries))))
    about["raised_by"] = deliveries[found.fall.raised].key if found.fall else ""
    return Watched(version, candidate, alarm, words, promise.accuracy, deliveries, strands, **about)


def _unlike(
    dataset: Dataset, store: Store, measured: Evaluation, rows: pd.DataFrame, before: Mapping[str, AnswerDrift | None]
) -> list[AnswerDrift]:
    """Compare the answers on each delivery of the record, in its order, with those on the held-out radiographs."""
    rules, parts = dataset.settings.rules, [part for _, part in rows.groupby("order", sort=True)]
    try:
        held_out = HeldOut(_held_out(dataset, store, measured), measured.classes)
        return [answer_drift.compare(part, held_out, rules, before.get(part["delivery"].iloc[0])) for part in parts]
    except (EvaluationError, DatasetError, ObjectNotFound, AccessDenied) as error:
        return [answer_drift.unmeasured(str(error), rules)] * len(parts)


def _alarm(version: int, found: Watch, deliveries: tuple[Delivery, ...]) -> str:
    if (fall := found.fall) is None:
        return ""
    first, last = deliveries[fall.begins].at[:10], deliveries[fall.raised].at[:10]
    when = f"from {first} to {last}" if first != last else f"on {first}"
    return f"Version {version} is no longer as good as it was when held out: {when}, {_figure(fall)}."


def _figures(found: Watch, deliveries: tuple[Delivery, ...]) -> str:
    said = "; ".join(_figure(strand) for strand in found.strands if strand.patients)
    asked = several(len(deliveries), "delivery", "deliveries")
    return f"Asked about {asked} before any model had learned: {said or 'no patient was new'}."


def _figure(strand: Strand | Fall) -> str:
    return (
        f"{strand.name} {strand.found:.3f} on {several(strand.patients, 'new patient')}, when held out "
        f"{strand.held_out:.3f}, at least {strand.promised:.3f}"
    )


def _promoted_on(entries: list[Entry], registered: Entry) -> str:
    """Return the key of the evidence that a version was promoted on last, else registered on; "" for none."""
    keys = [
        str(entry.decision["evidence"])
        for entry in entries
        if entry.version == registered.version
        and entry.kind in ("registered", "promoted")
        and entry.decision.get("evidence")
    ]
    return keys[-1] if keys else ""


def _promise(dataset: Dataset, store: Store, evidence: str) -> tuple[Evaluation, Promise]:
    """Return what was measured of a model, and what that promises; evidence may be older than promises."""
    kept = Evidence.from_dict(kept_evidence(store, evidence)) if evidence else None
    if kept is None or kept.candidate is None or kept.candidate.classes != dataset.settings.classes:
        raise EvaluationError("its held-out figures are not on record, or are of other classes")
    measured = kept.candidate
    if kept.promise:
        return measured, kept.promise
    rows = _held_out(dataset, store, measured)
    answers = Answers(rows[_columns(measured)].to_numpy(), measured.threshold, measured.model_digest)
    return measured, Promise.of(prepare([answers], rows["label"], rows["patient"], measured.classes)[0])


def _held_out(dataset: Dataset, store: Store, measured: Evaluation) -> pd.DataFrame:
    """Return the held-out radiographs that a model was measured on, with p_ of each class as it is on record."""
    rows = dataset.rows(dataset.open_snapshot(measured.snapshot))
    rows = rows[rows["side"] == "held-out"]
    said = predictions.recorded(measured.model_digest, measured.classes, rows, store)
    if said is None:
        raise EvaluationError("what it said of the held-out radiographs is not on record")
    return rows.assign(**dict(zip(_columns(measured), said.T, strict=True)))


def _columns(measured: Evaluation) -> list[str]:
    return [f"p_{name}" for name in measured.classes]


def _inputs(run: Run, dataset: Dataset, candidate: str, evidence: str) -> str:
    """Return the digest of all that the reading of a record follows from."""
    store, commits = run.store(), dataset.commits
    folders = [f"{folder}/{candidate}" for folder in (prospective.ROWS, prospective.ACKNOWLEDGED)]
    with contextlib.suppress(TrainingError, DatasetError):  # else nothing that it said of the held-out side is known
        folders.append(f"predictions/{find_candidate(store, candidate).model_digest}")
    files = sorted((entry.key, entry.size, entry.version) for folder in folders for entry in store.list(folder))
    head = commits.digest(len(commits.read()))
    code = code_digest("evaluation", "night/watching.py", "intake/drift.py")
    content = [head, evidence, files, asdict(terms(run)), run.settings.rules.digest(), code]
    return records.digest_of(records.canonical(content))
