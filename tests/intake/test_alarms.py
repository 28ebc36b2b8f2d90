"""Drift alarms stand until a person acknowledges exactly them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from phantoms import deliver
from samples import jpeg

from xray_pipeline.base import records
from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.intake import alarms, verdicts
from xray_pipeline.intake.drift import Channel, Drift
from xray_pipeline.night import health, intake_steps
from xray_pipeline.night.run import Run


def found(*raised: str, names: tuple[str, ...] = ("pixels", "labels")) -> Drift:
    return Drift(20, 200, tuple(Channel(n, 0.0001 if n in raised else 0.5, 0.003, "text") for n in names))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def features(store: DirectoryStore, *raised: str) -> None:
    alarms.keep(store, "a", "f", found(*raised, names=("features",)), alarms.FEATURES)


def test_an_alarm_stands_until_it_is_acknowledged(store: DirectoryStore) -> None:
    alarms.keep(store, "a", "f", found("pixels"))
    features(store)
    assert alarms.standing(store, ["a"]) == ("a: pixels",)
    said = alarms.acknowledge(store, "a", "alice", "a new detector, checked")
    assert (said["alarms"], said["who"], said["why"]) == (["pixels"], "alice", "a new detector, checked")
    assert alarms.standing(store, ["a"]) == ()
    on = said["at"][:10]
    assert alarms.acknowledgements(store, ["a", "b"]) == (
        f"a: pixels, acknowledged by alice on {on}: a new detector, checked",
    )
    with pytest.raises(DeliveryError, match="takes a reason"):
        alarms.acknowledge(store, "a", "alice", " ")
    with pytest.raises(DeliveryError, match="nothing to acknowledge"):
        alarms.acknowledge(store, "a", "alice", "again")


def test_an_alarm_that_comes_later_stands_again(store: DirectoryStore) -> None:
    alarms.keep(store, "a", "f", found("pixels"))
    alarms.acknowledge(store, "a", "alice", "looked")
    features(store, "features")
    assert alarms.standing(store, ["a"]) == ("a: features",)
    alarms.acknowledge(store, "a", "bob", "looked too")
    assert alarms.standing(store, ["a"]) == ()


def test_one_acknowledgement_settles_alarms_measured_of_different_listings(store: DirectoryStore) -> None:
    alarms.keep(store, "a", "g", found("pixels"))  # of files that grew while it was committed
    features(store, "features")
    assert alarms.acknowledge(store, "a", "alice", "looked")["alarms"] == ["features", "pixels"]
    assert alarms.of_delivery(store, "a") == ()


def test_an_acknowledgement_is_for_exactly_those_files(store: DirectoryStore) -> None:
    alarms.keep(store, "a", "f", found("pixels"))
    alarms.acknowledge(store, "a", "alice", "looked")
    alarms.keep(store, "a", "g", found("pixels"))
    assert alarms.of_delivery(store, "a") == ("pixels",)
    assert alarms.acknowledged(store, "a", "f") == ("pixels",)
    assert alarms.acknowledged(store, "a", "g") == ()
    alarms.keep(store, "a", "g", found())
    assert alarms.acknowledgements(store, ["a"]) == ()


def test_what_was_never_compared_is_not_no_alarm(store: DirectoryStore) -> None:
    alarms.keep(store, "a", "f", found())
    assert alarms.standing(store, ["a"]) is None
    features(store)
    assert alarms.standing(store, ["a"]) == ()
    assert alarms.standing(store, ["a", "b"]) is None


def test_a_fit_delivery_keeps_its_verdict_and_a_rejected_one_is_judged_anew(store: DirectoryStore) -> None:
    for key, fit in (("a", True), ("b", False)):
        alarms.keep(store, key, "f", found("pixels"))
        records.write(store, f"intake/{key}/checked.json", {"fit": fit})
        alarms.acknowledge(store, key, "alice", "looked")
    assert store.exists("intake/a/checked.json")
    assert not store.exists("intake/b/checked.json")


def test_features_are_compared_once(store: DirectoryStore) -> None:
    features(store, "features")
    features(store)  # of a run that looked at another snapshot at the same time
    assert alarms.of_delivery(store, "a") == ("features",)


def test_two_who_acknowledge_at_once_are_told(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms.keep(store, "a", "f", found("pixels"))
    store.write("intake/a/acknowledged-1.json", b"{}")
    monkeypatch.setattr(alarms, "_given", lambda *_: [])
    with pytest.raises(DeliveryError, match="at this moment"):
        alarms.acknowledge(store, "a", "alice", "looked")


# the same through the night


def judged(settings: Settings, **rules: Any) -> tuple[Run, verdicts.Checked]:
    asked = {"drift_min_dataset": 60, **rules}
    run = Run(settings.model_copy(update={"rules": IntakeRules(**asked)}))
    (key,) = intake_steps.find_deliveries(run)
    return run, intake_steps.check_delivery(run, key)


@pytest.fixture
def grown(settings: Settings) -> Settings:
    """A dataset of 70 patients."""
    deliver(settings, "first", range(70))
    run, checked = judged(settings)
    assert checked.warnings == ()
    intake_steps.commit_deliveries(run, ["first"])
    return settings


def test_an_inverted_scanner_is_warned_of_and_still_taken(grown: Settings) -> None:
    deliver(grown, "second", range(100, 125), inverted=True)
    run, checked = judged(grown)
    assert checked.fit
    assert "Pixels do not look like the dataset's: p = 0.000" in checked.warnings[0]
    assert alarms.of_delivery(run.store(), "second") == ("pixels",)
    page = run.store().read("intake/second/page.html").decode()
    assert "Drift alarm:" in page
    assert "nothing trained on it is promoted" in page
    assert "! warns" in page


def test_a_drift_alarm_is_a_warning_of_its_own_and_the_verdict_the_last_line(
    grown: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(grown, "second", range(100, 125), inverted=True)
    with caplog.at_level("INFO", "xray_pipeline"):
        judged(grown)
    (alarm,) = [record for record in caplog.records if record.message.startswith("Drift alarm:")]
    last = caplog.records[-1].message
    assert alarm.levelname == "WARNING"
    assert "second differs from the dataset in pixels" in alarm.message
    assert last == "Delivery second is fit: 25 files accepted, 0 quarantined."
    assert max(len(alarm.message), len(last)) <= 120


def test_a_promise_is_made_only_by_a_policy_that_keeps_it(grown: Settings, tmp_path: Path) -> None:
    """A site whose policy has no clause on drift is not told that promotion is held up."""
    shipped = files("xray_pipeline.gate").joinpath("policies", "default.toml").read_text(encoding="utf-8")
    clauses = shipped.split("[[clause]]")
    (tmp_path / "own.toml").write_text("[[clause]]".join(one for one in clauses if '"no-drift"' not in one))
    deliver(grown, "second", range(100, 125), inverted=True)
    own = grown.model_copy(update={"policy": str(tmp_path / "own.toml")})
    run, _ = judged(own)
    page = run.store().read("intake/second/page.html").decode()
    assert "Drift alarm:" in page
    assert "promoted" not in page
    intake_steps.commit_deliveries(run, ["second"])
    (said,) = [part for part in health.check(own) if part.part == "drift"]
    assert not said.well
    assert said.text == "Drift alarm: second differs from the dataset in pixels; nobody has acknowledged it."
    (said,) = [part for part in health.check(grown) if part.part == "drift"]
    assert said.text.endswith("; it holds up promotion until acknowledged.")
    alarms.acknowledge(run.store(), "second", "alice", "a new detector")
    (said,) = [part for part in health.check(grown) if part.part == "drift"]
    assert (said.well, said.text) == (True, "no drift alarm of 2 committed deliveries stands")


def test_a_policy_may_stop_it_until_a_person_lets_it_in(grown: Settings) -> None:
    deliver(grown, "second", range(100, 125), inverted=True)
    run, checked = judged(grown, drift="stop")
    assert not checked.fit
    assert "Pixels do not look like the dataset's" in checked.why
    intake_steps.commit_deliveries(run, ["second"])
    assert intake_steps.find_deliveries(run) == ["second"]
    alarms.acknowledge(run.store(), "second", "alice", "a new detector")
    again = intake_steps.check_delivery(run, "second")
    assert (again.fit, again.warnings) == (True, ())
    assert "the alarm is acknowledged" in run.store().read("intake/second/page.html").decode()


def test_files_judged_anew_are_compared_too(grown: Settings) -> None:
    deliver(grown, "second", range(100, 130))
    deliver(grown, "second", range(200, 225), inverted=True, side=200)
    run, checked = judged(grown, drift="stop", min_side=220, max_quarantined_share=1.0)
    assert (checked.fit, checked.accepted) == (True, 30)
    intake_steps.commit_deliveries(run, ["second"])
    rules = IntakeRules(drift_min_dataset=60, drift="stop")
    run = Run(grown.model_copy(update={"rules": rules}))
    refused = intake_steps.rejudge(run, "second")
    assert not refused["fit"]
    assert "Pixels do not look like the dataset's" in refused["why"]
    assert alarms.of_delivery(run.store(), "second+2") == ("pixels",)
    alarms.acknowledge(run.store(), "second+2", "alice", "an older detector")
    assert intake_steps.rejudge(run, "second")["accepted"] == 25


def test_more_of_the_same_raises_nothing(grown: Settings) -> None:
    deliver(grown, "second", range(100, 125))
    run, checked = judged(grown, drift="stop")
    assert (checked.fit, checked.warnings) == (True, ())
    assert alarms.of_delivery(run.store(), "second") == ()


def test_a_small_dataset_never_raises_an_alarm(settings: Settings) -> None:
    deliver(settings, "first", range(20))
    run, _ = judged(settings, drift="stop")
    intake_steps.commit_deliveries(run, ["first"])
    folder = Path(settings.incoming, "second", "NORMAL")
    folder.mkdir(parents=True)
    for seed in range(30):
        (folder / f"patient{seed + 500}_1.jpeg").write_bytes(jpeg(seed=seed))
    run, checked = judged(settings, drift="stop")
    assert checked.fit
    assert "not enough to say" in run.store().read("intake/second/page.html").decode()


def test_deliveries_that_ever_raised_an_alarm_are_remembered(store: DirectoryStore) -> None:
    seen: dict[tuple[str, str], bool] = {}
    alarms.keep(store, "a", "f", found("pixels"))
    alarms.keep(store, "b", "f", found())
    assert alarms.raised(store, seen) == ["a"]
    alarms.acknowledge(store, "a", "alice", "a new detector, checked")
    assert alarms.raised(store, seen) == ["a"]
    assert alarms.p_values(store, "a") == {"pixels": 0.0001, "labels": 0.5}
