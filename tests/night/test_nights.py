"""A night's record: written once, checked when it is read, told in words."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3Server
from samples import jpeg, lay_files

from xray_pipeline.base import records
from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import BARRED
from xray_pipeline.evaluation.metric_table import HEADLINE, Interval
from xray_pipeline.evaluation.metrics import Evaluation
from xray_pipeline.gate.evidence import FORMAT, Evidence, evidence_key
from xray_pipeline.night import intake_steps, nights, summary, whole
from xray_pipeline.night.nights import Arrival, Model, Night
from xray_pipeline.night.run import Run

ACCURACY = Interval(0.9, 0.8, 1.0)
AT = "2026-03-05T02:00:00+00:00"
QUIET = Night("run 1", "schedule", AT, AT, why="nothing new to decide", in_production=7, since="2026-03-03T02:40:00Z")
TAKEN = (Arrival("a", "ingested", 400, {"truncated": 9}), Arrival("b", "ingested", 12), Arrival("c", "ingested"))


def model(version: int | None, accuracy: float) -> Model:
    return Model(version, 1200, {"accuracy": Interval(accuracy, accuracy - 0.01, accuracy + 0.01)})


JUDGED = replace(QUIET, deliveries=TAKEN, candidate=model(None, 0.961), champion=model(7, 0.967), verdict="refused")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def on_day(day: int, month: int = 3) -> Night:
    at = f"2026-{month:02d}-{day:02d}T02:00:00+00:00"
    return replace(QUIET, run=f"run of {at}", started=at, ended=at)


@pytest.mark.parametrize(
    ("night", "kind", "words"),
    [
        (QUIET, "quiet", "no deliveries; nothing new to decide; champion 7 since 3 March"),
        (
            JUDGED,
            "refused",
            "3 deliveries, 412 accepted, 9 quarantined; candidate .961 refused against .967; champion 7 since 3 March",
        ),
        (
            replace(QUIET, deliveries=(Arrival("a", "ingested", 5, labelled="ris.csv (SHA-256 abc), 5 of 6 by name"),)),
            "ingested",
            "1 delivery, 5 accepted, 0 quarantined; labels of a: ris.csv (SHA-256 abc), 5 of 6 by name; "
            "nothing new to decide; champion 7 since 3 March",
        ),
        (
            replace(QUIET, deliveries=tuple(Arrival(name, "ingested", labelled="ris.csv") for name in "abcde")),
            "ingested",
            "5 deliveries, 0 accepted, 0 quarantined; labels of a: ris.csv; labels of b: ris.csv; "
            "labels of c: ris.csv; labels of 2 more by tables; nothing new to decide; champion 7 since 3 March",
        ),
        (
            replace(QUIET, deliveries=(Arrival("misspelt", "rejected", why="an unknown class"),)),
            "rejected",
            "1 delivery, 0 accepted, 0 quarantined; rejected: misspelt; nothing new to decide; "
            "champion 7 since 3 March",
        ),
        (
            replace(QUIET, deliveries=(Arrival("a", "ingested", 5, alarms=("pixels", "labels")),)),
            "ingested",
            "1 delivery, 5 accepted, 0 quarantined; drift alarm: a (pixels, labels); nothing new to decide; "
            "champion 7 since 3 March",
        ),
        (
            replace(QUIET, failed={"train": "no batch size fits the device"}, why=""),
            "failed",
            "failed in train: no batch size fits the device; no deliveries; champion 7 since 3 March",
        ),
        (
            replace(JUDGED, verdict="registered", version=8, alias="challenger", candidate=model(8, 0.97)),
            "registered",
            "3 deliveries, 412 accepted, 9 quarantined; candidate .970 against .967, registered as version 8, waits; "
            "champion 7 since 3 March",
        ),
        (
            replace(QUIET, verdict="registered", version=8, alias="challenger", candidate=model(8, 0.97), barred=True),
            "registered",
            "no deliveries; candidate .970, registered as version 8, not to be promoted; champion 7 since 3 March",
        ),
        (
            replace(
                QUIET, verdict="registered", version=8, candidate=model(8, 0.97), why=f"Registered. {BARRED} It is."
            ),
            "registered",
            "no deliveries; candidate .970, registered as version 8, not to be promoted; champion 7 since 3 March",
        ),
        (
            replace(QUIET, candidate=model(1, 0.9), verdict="registered", version=1, alias="champion", in_production=1),
            "promoted",
            "no deliveries; candidate .900, registered as version 1, is the champion; champion 1 since 3 March",
        ),
        (
            replace(QUIET, why="nothing to train on", in_production=None, since=""),
            "quiet",
            "no deliveries; nothing to train on; no champion yet",
        ),
        (
            replace(QUIET, since="2025-12-24T02:00:00+00:00"),
            "quiet",
            "no deliveries; nothing new to decide; champion 7 since 24 December 2025",
        ),
    ],
)
def test_a_night_is_told_in_words(night: Night, kind: str, words: str) -> None:
    assert nights.outcome(night) == kind
    assert nights.in_words(night) == words


def test_nights_are_read_newest_first(store: Store) -> None:
    for night in (on_day(5), on_day(28, month=2), on_day(6)):
        nights.keep(store, night)
    assert [night.started[:10] for night in nights.read(store).nights] == ["2026-03-06", "2026-03-05", "2026-02-28"]


def test_a_record_is_read_as_it_was_written(store: Store) -> None:
    nights.keep(store, JUDGED)
    assert nights.read(store).nights == (JUDGED,)


def test_concluding_again_with_nothing_else_to_say_adds_nothing(store: Store) -> None:
    nights.keep(store, JUDGED)
    nights.keep(store, replace(JUDGED, ended="2026-03-05T03:00:00+00:00"))
    assert nights.read(store).nights == (JUDGED,)
    assert len(list(store.list(nights.RECORDS))) == 1


def test_of_a_night_that_failed_and_was_cleared_the_last_record_counts(store: Store) -> None:
    nights.keep(store, replace(QUIET, failed={"train": ""}))
    nights.keep(store, JUDGED)
    nights.keep(store, replace(JUDGED, run="run 1", started="2026-03-05T09:00:00+00:00"))  # Airflow starts it anew
    assert [night.started for night in nights.read(store).nights] == ["2026-03-05T09:00:00+00:00"]
    assert len(list(store.list(nights.RECORDS))) == 3


def test_the_months_files_may_be_deleted(store: Store) -> None:
    for day in (5, 6):
        nights.keep(store, on_day(day))
    before = nights.read(store)
    [month] = store.list(nights.MONTHS)
    store.delete(month.key)
    assert nights.read(store) == before
    nights.keep(store, on_day(7))
    assert len(list(store.list(nights.MONTHS))) == 1
    assert len(nights.read(store).nights) == 3


def test_a_changed_months_file_is_not_believed(store: Store) -> None:
    nights.keep(store, JUDGED)
    [month] = store.list(nights.MONTHS)
    store.write(month.key, store.read(month.key).replace(b'"refused"', b'"allowed"'))
    assert nights.read(store).nights == (JUDGED,)


def test_a_damaged_record_is_named_and_hides_no_other(store: Store) -> None:
    nights.keep(store, on_day(5))
    [record] = store.list(nights.RECORDS)
    store.write(record.key, store.read(record.key).replace(b"nothing new", b"something new"))
    [month] = store.list(nights.MONTHS)
    store.delete(month.key)
    nights.keep(store, on_day(6))
    past = nights.read(store)
    assert [night.started[:10] for night in past.nights] == ["2026-03-06"]
    [said] = past.damaged
    assert record.key in said


def test_a_damaged_record_of_this_run_does_not_stop_the_next(store: Store) -> None:
    nights.keep(store, QUIET)
    for entry in [*store.list(nights.RECORDS), *store.list(nights.MONTHS)]:
        store.write(entry.key, store.read(entry.key).replace(b"nothing new", b"something new"))
    nights.keep(store, JUDGED)
    assert nights.read(store).nights == (JUDGED,)
    assert len(nights.read(store).damaged) == 1


def test_nights_are_kept_on_s3(s3: S3Server) -> None:
    store = open_store(f"s3://{BUCKET}/nights-of-a-test", Settings(s3_endpoint=s3.endpoint))
    for day in range(1, 13):
        nights.keep(store, on_day(day))
    assert [night.started[8:10] for night in nights.read(store).nights][:2] == ["12", "11"]
    assert len(list(store.list(nights.MONTHS))) == 1


def test_a_night_that_fails_leaves_its_record(settings: Settings) -> None:
    with pytest.raises(StorageUnavailable, match="no folder"):
        whole.whole(Run(settings, who="alice"))  # nobody made the incoming folder
    [night] = nights.read(open_store(settings.store)).nights
    assert (night.who, list(night.failed), night.in_production) == ("alice", ["find_deliveries"], None)
    assert nights.in_words(night).startswith("failed in find_deliveries: ")


def test_a_candidate_is_named_by_the_digest_that_the_ledger_has(settings: Settings) -> None:
    run, evaluated = Run(settings), evaluated_in(Run(settings).store())
    said = summary.conclude(run, summary.Steps(evaluated=evaluated), summary.Course(AT, {}))
    assert (said["candidate"]["digest"], said["candidate"]["accuracy"]) == ("c" * 64, asdict(ACCURACY))
    assert (said["champion"]["version"], said["champion"]["digest"]) == (7, "d" * 64)
    assert said["candidate"].keys() == {"digest", "threshold", *HEADLINE}


def evaluated_in(store: Store) -> dict[str, Any]:
    """Keep evidence and return what `evaluate` returns of it."""
    classes, confusion = ("NORMAL", "PNEUMONIA"), ((27, 3), (3, 27))
    measured = Evaluation("f" * 64, "s" * 64, 60, 50, classes, 0.5, confusion, {"accuracy": ACCURACY})
    found = Evidence(measured, measured, True, None, "s" * 64, "approve")
    data = records.canonical({"format": FORMAT, **found.to_dict()})
    key = evidence_key("c" * 64, records.digest_of(data))
    store.write(key, data)
    return {"candidate": "c" * 64, "evidence": key, "champion": 7, "models": {"7": ["d" * 64, "a" * 64]}}


@pytest.mark.parametrize("content", [b"", None])
def test_a_night_whose_evidence_is_damaged_is_recorded_without_figures(
    settings: Settings, content: bytes | None
) -> None:
    run = Run(settings)
    evaluated = evaluated_in(run.store())
    if content is None:
        run.store().delete(evaluated["evidence"])
    else:
        run.store().write(evaluated["evidence"], content)
    said = summary.conclude(run, summary.Steps(evaluated=evaluated), summary.Course(AT, {}))
    assert (said["candidate"], said["champion"]) == (None, None)
    assert len(nights.read(run.store()).nights) == 1


def test_a_delivery_that_was_not_committed_is_no_part_of_the_dataset(settings: Settings) -> None:
    run = Run(settings)
    for name in ("a", "b"):
        lay_files(
            Path(settings.incoming, name),
            {f"NORMAL/{name}{n}_1.jpg": jpeg(seed=n + 10 * (name == "b")) for n in range(3)},
        )
        intake_steps.check_delivery(run, name)
    intake_steps.commit_deliveries(run, ["a"])
    said = summary.conclude(run, summary.Steps(["a", "b"]), summary.Course(AT, {}, {"commit_deliveries": "died"}))
    assert [(one["name"], one["state"], one["accepted"]) for one in said["deliveries"]] == [("a", "ingested", 3)]
    assert said["unchecked"] == ["b"]
    (kept,) = nights.read(run.store()).nights
    assert (kept.accepted, [arrival.state for arrival in kept.deliveries]) == (3, ["ingested", "unchecked"])
