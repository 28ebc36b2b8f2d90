"""The prospective record on a real installation: kept once, read with the labels of today, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phantom
import pytest
from new_patients import deliver
from two_nights import SETTINGS
from typer.testing import CliRunner

from xray_pipeline.base import records
from xray_pipeline.base.errors import AccessDenied, ConfigError, Damaged, EvaluationError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import answer_drift, prospective
from xray_pipeline.night import amend, damage, health, look_ahead, nights, versions, watching, whole
from xray_pipeline.night.amend import Named
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions
from xray_pipeline.registry.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_pause")


@pytest.fixture
def run(two_nights: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    two_nights(tmp_path)
    for name, value in {**SETTINGS, "home": tmp_path}.items():
        monkeypatch.setenv(f"XRAY_{name.upper()}", str(value))
    return Run(Settings(), who="a test")


def xray(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["watch", *arguments])


def champion(run: Run) -> str:
    state = Ledger(run.store()).state()
    return state.registered[state.champion or 0].candidate


def crown(run: Run) -> None:
    """Make version 2 the champion: it was trained well, and version 1 was not."""
    said: dict[str, Any] = {"who": "a test", "why": "a test", "expected_champion": 1}
    decision = {"verdict": "registered", "may_promote": True, "automatic": True}
    decisions.promote(run.registry(), 2, **said, decision=decision)


def test_a_night_has_asked_the_champion_about_what_was_new_to_it(run: Run) -> None:
    """The second night of the installation did."""
    store, dataset = run.store(), Dataset(run.settings)
    (said,), damaged = prospective.read(store, champion(run))
    assert not damaged
    second = dataset.commits.manifests()[1].manifest
    table = dataset.manifest(second)
    assert (said.delivery, said.candidate) == (second, champion(run))
    assert set(said.digests) == set(table.loc[table["verdict"] == "accepted", "digest"])
    found = watching.watched(run)
    assert found.champion == 1
    assert (found.deliveries[0].radiographs, found.alarm) == (len(said.digests), "")
    assert len(found.found) == 2
    assert damage.damaged(store) == []
    answered = xray("--json")
    assert answered.exit_code == 0, answered.output
    told = json.loads(answered.output)
    assert (told["alarm"], told["champion"]) == (False, 1)
    assert told["record"]["groups"][0]["radiographs"] == len(said.digests)
    assert set(told["record"]["groups"][0]["figures"]) == {"accuracy", "auc", "sensitivity", "specificity"}
    for by in ("delivery", "site", "scanner", "month"):
        parts = json.loads(xray("--json", "--by", by).output)["record"]["groups"]
        assert sum(part["radiographs"] for part in parts[1:]) == parts[0]["radiographs"], by
    assert json.loads(xray("--json", "--since", "2999-01-01").output)["record"]["groups"] == []
    assert xray("--since", "yesterday").exit_code == 1


def test_evidence_older_than_promises_is_watched_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    promised = watching.watched(run)
    kept = watching.kept_evidence
    monkeypatch.setattr(watching, "kept_evidence", lambda *key: {**kept(*key), "promise": None})
    for entry in run.store().list("prospective/watched"):
        run.store().delete(entry.key)
    assert watching.watched(run) == promised
    assert promised.promised
    for entry in run.store().list("prospective/watched"):
        run.store().delete(entry.key)
    for entry in run.store().list("predictions"):
        run.store().delete(entry.key)
    assert "of the held-out radiographs is not on record" in watching.watched(run).in_words


def test_who_may_only_read_the_store_reads_the_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Airflow's API server, whose pages show it."""
    found = watching.watched(run)
    for entry in run.store().list("prospective/watched"):
        run.store().delete(entry.key)

    monkeypatch.setattr(type(run.store()), "write", denied)
    assert watching.watched(run) == found


def test_flipped_labels_raise_the_alarm_until_they_are_right_or_it_is_acknowledged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(run)
    store = run.store()
    snapshot = deliver(run, 31, flipped=1)
    looked = look_ahead.look_ahead(run, snapshot)
    assert looked.champion == 2
    assert looked.raised, watching.watched(run).in_words
    assert "Version 2 is no longer as good" in looked.alarm
    again = look_ahead.look_ahead(run, snapshot)
    assert (again.radiographs, again.alarm, again.raised) == (0, looked.alarm, True)  # nobody was told of it yet
    watching.told(run)
    assert not look_ahead.look_ahead(run, snapshot).raised
    assert xray("--json").exit_code == 3
    keys = prospective.recorded(store, champion(run))
    assert len(keys) == 1  # version 2 learned from the second delivery: it is no news to it

    monkeypatch.setenv("XRAY_POLICY", "default")
    judged = Run(Settings())
    compared = versions.compare(judged, 1, 2)
    clause = next(c for c in compared.decision.clauses if c.number == "4.13")
    assert not clause.passed  # version 1 does no better
    assert looked.alarm in clause.why
    shown = store.read(compared.report).decode().partition('id="record"')[2].partition("<h2 ")[0]
    assert f'<p class="warning">{looked.alarm}' in shown
    assert ("new-31" in shown, "<svg" in shown) == (True, True)
    assert 'id="record"' not in store.read(versions.compare(judged, 2, 1).report).decode()  # 1 is not in production
    with monkeypatch.context() as patched:  # nobody knows whether an alarm stands: no night fails, nothing is promoted
        patched.setattr(watching, "watched", unreadable)
        compared = versions.compare(judged, 1, 2)
    assert not next(c for c in compared.decision.clauses if c.number == "4.13").passed
    assert 'id="record"' not in store.read(compared.report).decode()
    (part,) = [part for part in health.check(judged.settings) if part.part == "champion"]
    assert (part.well, looked.alarm in part.text) == (False, True)

    # Labels are read as they are today: once they are put right, there is no alarm.
    rows = Dataset(run.settings).manifest("new-31")
    wrong = rows[rows["digest"] != ""]
    other = dict(zip(phantom.CLASSES, reversed(phantom.CLASSES), strict=True))
    named = [Named("relabel", "radiograph", row.digest, other[row.label]) for row in wrong.itertuples()]
    amended = amend.amend(run, named, "they were flipped")["number"]
    assert watching.watched(run).alarm == ""
    assert xray().exit_code == 0
    with pytest.raises(EvaluationError, match="no alarm"):
        watching.acknowledge(run, "there is none")
    with pytest.raises(ConfigError, match="say why"):
        watching.acknowledge(run, " \n ")
    amend.amend(run, [Named("undo", "amendment", str(amended))], "they were not")
    assert watching.watched(run).alarm == looked.alarm
    look_ahead.look_ahead(run, deliver(run, 32, patients=20))
    done = xray("--acknowledge", "the labels of that night were a trainee's")
    assert done.exit_code == 0, done.output
    assert "acknowledged by" in done.output

    # It stays acknowledged when the delivery that this names has no row left, and no night fails of a broken file.
    amend.amend(run, [Named("withdraw", "delivery", "new-32")], "it was another hospital's")
    found = watching.watched(run)
    assert ([one.key for one in found.deliveries], found.alarm) == (["new-31"], "")
    (key,) = [entry.key for entry in store.list(f"{prospective.ACKNOWLEDGED}/{found.candidate}")]
    whole = store.read(key)
    store.write(key, whole[:-9])
    found = watching.watched(run)
    assert (found.alarm, found.acknowledged, len(found.damaged)) == (looked.alarm, (), 1)
    store.write(key, whole)
    found = watching.watched(run)
    assert (found.alarm, found.damaged) == ("", ())
    store.write(min(keys.values()), b"")
    found = watching.watched(run)
    assert (found.alarm, found.deliveries, len(found.damaged)) == ("", (), 1)


def test_a_night_killed_on_its_way_goes_on_where_it_was_and_a_broken_file_is_made_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(run)
    store = run.store()
    deliver(run, 33, patients=30)
    snapshot = deliver(run, 34, patients=30)

    def dies(store: object, said: prospective.Said) -> None:
        if said.delivery == "new-34":
            raise EvaluationError("killed")
        keep(store, said)  # type: ignore[arg-type]

    keep = prospective.keep
    monkeypatch.setattr(prospective, "keep", dies)
    with pytest.raises(EvaluationError, match="killed"):
        look_ahead.look_ahead(run, snapshot)
    monkeypatch.undo()
    first = prospective.recorded(store, champion(run))
    assert list(first) == ["new-33"]
    look_ahead.look_ahead(run, snapshot)
    both = prospective.recorded(store, champion(run))
    assert both.items() > first.items()
    before = watching.watched(run)

    store.write(both["new-34"], store.read(both["new-34"])[:-9])
    assert len(damage.damaged(store)) == 1
    assert xray().exit_code == 0
    look_ahead.look_ahead(run, snapshot)
    assert damage.damaged(store) == []
    again = watching.watched(run)
    assert [(one.key, one.radiographs, one.accuracy) for one in again.deliveries] == [
        (one.key, one.radiographs, one.accuracy) for one in before.deliveries
    ]
    assert [one.key for one in again.deliveries] == ["new-33", "new-34"]

    for folder in ("prospective/watched", f"evidence/{champion(run)}"):
        for entry in store.list(folder):
            store.delete(entry.key)
    found = watching.watched(run)
    assert "is not watched" in found.in_words
    assert found.alarm == ""


def test_answers_unlike_the_held_out_ones_are_told_without_a_label(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery of normal radiographs alone: no label is looked at, and there is no alarm about the champion."""
    monkeypatch.setenv("XRAY_RULES__DRIFT_MIN_DATASET", "10")
    run = Run(Settings(), who="a test")
    crown(run)
    look_ahead.look_ahead(run, deliver(run, 36, patients=40))
    look_ahead.look_ahead(run, deliver(run, 37, patients=40, only="NORMAL"))
    found = watching.watched(run)
    like, unlike = (one.drift for one in found.deliveries)
    assert like is not None
    assert unlike is not None
    assert (like.alarm, unlike.alarm, found.alarm) == (False, True, "")
    assert "of 2 deliveries compared, 1 had" in found.unlabelled
    assert f"new-37 last (p = {unlike.p:.4f}" in found.unlabelled
    told = json.loads(xray("--json").output)["record"]
    assert (told["deliveries"][1]["drift"]["alarm"], told["unlabelled"]) == (True, found.unlabelled)
    assert found.unlabelled in " ".join(xray().output.split())

    # Labels change nothing of it, and what was measured is not measured anew.
    measured: list[str] = []
    monkeypatch.setattr(answer_drift.drift, "drawn", lambda *_: measured.append("anew"))
    rows = Dataset(run.settings).manifest("new-36")
    ill = rows.loc[rows["label"] == "PNEUMONIA", "digest"].iloc[0]
    amend.amend(run, [Named("relabel", "radiograph", ill, "NORMAL")], "it was wrong")
    again = watching.watched(run)
    assert ([one.drift for one in again.deliveries], measured) == ([like, unlike], [])
    assert again.inputs != found.inputs

    # Airflow's API server, which may only read, can't drop a broken file of predictions: its pages open all the same.
    (model,) = {one.model for one in prospective.read(run.store(), champion(run))[0]}
    for entry in run.store().list(f"predictions/{model}"):
        run.store().write(entry.key, run.store().read(entry.key)[:-9])
    with monkeypatch.context() as patched:
        patched.setattr(type(run.store()), "delete", denied)
        assert "it may not be written to" in watching.watched(run).unlabelled

    for entry in run.store().list("predictions"):
        run.store().delete(entry.key)
    lost = watching.watched(run)
    assert [one.drift.p for one in lost.deliveries if one.drift] == [None, None]
    assert "what it said of the held-out radiographs is not on record" in lost.unlabelled
    assert (lost.alarm, lost.deliveries[1].accuracy) == ("", found.deliveries[1].accuracy)


def denied(*_: object) -> None:
    raise AccessDenied("it may not be written to")


def unreadable(*_: object) -> None:
    raise Damaged("the record can't be read")


def test_a_challenger_that_cannot_be_asked_hides_nothing_of_the_champion(run: Run) -> None:
    state = Ledger(run.store()).state()
    challenger = state.registered[state.challenger or 0].candidate
    snapshot = deliver(run, 35, patients=20)
    run.store().write(f"candidates/{challenger}/candidate.json", b"{")
    looked = look_ahead.look_ahead(run, snapshot)
    assert (looked.champion, looked.radiographs > 0) == (1, True)
    assert "new-35" not in prospective.recorded(run.store(), challenger)
    newest = Dataset(run.settings).commits.manifests()[-1]
    (written,) = [entry.modified for entry in Dataset(run.settings).store.list("commits") if entry.key == newest.place]
    found = watching.watched(run).deliveries[-1]
    assert (found.key, found.at) == ("new-35", records.moment(written))


def test_a_look_ahead_that_fails_stops_no_night_and_the_night_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise EvaluationError("the network is gone")

    monkeypatch.setattr(look_ahead, "look_ahead", fails)
    said = whole.whole(Run(Settings(), who="schedule"))
    assert "The champion was not watched: the network is gone." in said["message"]
    newest = nights.read(run.store()).nights[0]
    assert (newest.failed, newest.unwatched) == ({}, "the network is gone")
    assert "the champion was not watched" in nights.in_words(newest)


def test_without_a_champion_there_is_nothing_to_watch(grown: Settings) -> None:
    run = Run(grown)
    snapshot = Dataset(grown).snapshot()
    assert snapshot
    looked = look_ahead.look_ahead(run, snapshot.digest)
    assert (looked.champion, looked.radiographs, looked.alarm) == (None, 0, "")
    found = watching.watched(run)
    assert (found.champion, found.in_words) == (None, "There is no champion to watch.")
