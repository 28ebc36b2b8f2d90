"""The night's way with deliveries: which it takes, when it judges one anew, and what it leaves of a rejected one."""

from __future__ import annotations

import codecs
import html
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import jpeg, lay_files
from typer.testing import CliRunner

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.command import deliveries as delivery_verbs
from xray_pipeline.command import main as cli
from xray_pipeline.command import models as model_verbs
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import books as bookkeeping
from xray_pipeline.intake import check as intake
from xray_pipeline.intake import deliveries, expectations, verdicts
from xray_pipeline.intake.deliveries import Delivery
from xray_pipeline.intake.rules import judging_digest
from xray_pipeline.intake.verdicts import Checked
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

GOOD = {
    f"{c}/patient{n}{c}_1.jpg": jpeg(seed=n + 50 * (c == "NORMAL")) for n in range(4) for c in ("NORMAL", "PNEUMONIA")
}
DAYS = 86_400.0


def lay(settings: Settings, name: str, files: dict[str, bytes]) -> Path:
    return lay_files(Path(settings.incoming, name), files)


def changed(run: Run, **values: Any) -> Run:
    return Run(run.settings.model_copy(update=values))


def ingest(run: Run) -> list[Checked]:
    keys = intake_steps.find_deliveries(run)
    found = [intake_steps.check_delivery(run, key) for key in keys]
    intake_steps.commit_deliveries(run, keys)
    return found


# beside another process


def commit_meanwhile(settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another run commit a delivery once this one asks for it."""
    check = intake_steps.check_delivery

    def first_the_other(run: Run, asked: str, *rest: Any, **named: Any) -> Checked:
        if asked == key:
            check(Run(settings), key)
            intake_steps.commit_deliveries(Run(settings), [key])
        return check(run, asked, *rest, **named)

    monkeypatch.setattr(intake_steps, "check_delivery", first_the_other)


@pytest.mark.parametrize("named", [(), ("a", "b", "c")])
def test_a_delivery_that_another_run_commits_meanwhile_stops_no_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...]
) -> None:
    for number, name in enumerate("abc"):
        lay(settings, name, {f"NORMAL/patient{number}_{n}.jpg": jpeg(seed=10 * number + n) for n in range(3)})
    commit_meanwhile(settings, "b", monkeypatch)
    monkeypatch.setattr(delivery_verbs, "this_run", lambda *_: Run(settings))
    said = CliRunner().invoke(cli.app, ["ingest", *named, "--json"])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)["deliveries"]
    assert [(one["key"], one["fit"], one["accepted"], one["accounting"]["holds"]) for one in told] == [
        (name, True, 3, True) for name in "abc"
    ]
    assert told[1]["warnings"] == ["It was committed by another run meanwhile."]
    assert Dataset(settings).manifests() == ["a", "b", "c"]
    assert CliRunner().invoke(cli.app, ["ingest", "b"]).exit_code == 1  # it is no more what waits


def test_a_delivery_judged_anew_by_another_run_while_it_is_committed_stops_no_other(settings: Settings) -> None:
    run = Run(settings)
    for number, name in enumerate("ab"):
        lay(settings, name, {f"NORMAL/patient{number}_{n}.jpg": jpeg(seed=10 * number + n) for n in range(3)})
        intake_steps.check_delivery(run, name)
    run.store().delete("intake/a/table.parquet")  # as the other run does before it keeps its own
    assert intake_steps.commit_deliveries(run, ["a", "b"]).changed == ("a",)
    assert Dataset(settings).manifests() == ["b"]


# settled


def test_a_delivery_that_still_changes_is_refused_by_name_and_says_why(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=600)
    lay(settings, "day", GOOD)
    assert intake_steps.find_deliveries(run) == []
    with pytest.raises(DeliveryError, match=r"day changed \d s ago .* 600 s \(XRAY_SETTLE_SECONDS\).*_SUCCESS"):
        intake_steps.check_delivery(run, "day", named=True)
    assert not run.store().exists("intake/day/checked.json")
    lay(settings, "day", {"_SUCCESS": b""})
    assert intake_steps.check_delivery(run, "day", named=True).fit


def test_a_check_lists_its_own_delivery_and_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(settings, "a day 100%", GOOD)
    lay(settings, "other", GOOD)
    run, listed = Run(settings), set[str]()
    keys = intake_steps.find_deliveries(run)
    listing = DirectoryStore.list

    def noted(self: DirectoryStore, *given: Any, **named: Any) -> Any:
        listed.add(str(self.root))
        return listing(self, *given, **named)

    monkeypatch.setattr(DirectoryStore, "list", noted)
    assert intake_steps.check_delivery(run, keys[0]).fit
    assert {root for root in listed if root.startswith(settings.incoming)} == {f"{settings.incoming}/a day 100%"}


def test_a_check_of_what_is_committed_meanwhile_takes_nothing_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`xray ingest day` beside the night that commits it."""
    run = Run(settings)
    lay(settings, "day", GOOD)
    intake_steps.check_delivery(run, "day")
    at = deliveries.at

    def meanwhile(*given: Any, **named: Any) -> Delivery:
        found = at(*given, **named)
        intake_steps.commit_deliveries(Run(settings), ["day"])
        return found

    monkeypatch.setattr(deliveries, "at", meanwhile)
    before = run.store().read("intake/day/table.parquet")
    assert intake_steps.check_delivery(run, "day", named=True).fit
    assert run.store().read("intake/day/table.parquet") == before
    with pytest.raises(DeliveryError, match="no delivery day waits"):
        intake_steps.check_delivery(run, "day", named=True)


def test_a_committed_delivery_that_changes_while_it_is_checked_keeps_its_record(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    folder = lay(settings, "day", GOOD)
    intake_steps.check_delivery(run, "day")
    at = deliveries.at

    def meanwhile(*given: Any, **named: Any) -> Delivery:
        found = at(*given, **named)
        intake_steps.commit_deliveries(Run(settings), ["day"])
        (folder / "NORMAL" / "late.jpg").write_bytes(jpeg(seed=99))
        return found

    monkeypatch.setattr(deliveries, "at", meanwhile)
    with pytest.raises(DeliveryError, match="day was committed by another run meanwhile"):
        intake_steps.check_delivery(run, "day", named=True)
    assert run.store().exists("intake/day/table.parquet")
    kept = verdicts.checked(run.store(), "day")
    assert kept is not None
    assert kept.fit


def test_a_delivery_that_changed_before_its_commit_is_no_success(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, check = Run(settings), intake_steps.check_delivery
    folder = lay(settings, "day", GOOD)

    def then_changed(*given: Any, **named: Any) -> Checked:
        checked = check(*given, **named)
        next(folder.rglob("*.jpg")).write_bytes(jpeg(seed=900 + time.monotonic_ns() % 90))
        return checked

    monkeypatch.setattr(intake_steps, "check_delivery", then_changed)
    monkeypatch.setattr(delivery_verbs, "this_run", lambda *_: run)
    monkeypatch.setattr(model_verbs, "this_run", lambda *_: run)
    said = CliRunner().invoke(cli.app, ["ingest"])
    assert said.exit_code == 3
    assert "delivery day changed between its check and its commit: not taken" in said.stdout
    said = CliRunner().invoke(cli.app, ["retrain"])
    assert said.exit_code == 3
    assert "Delivery day not taken" in said.stdout


def test_a_delivery_that_grows_after_it_was_found_is_judged_when_it_has_settled(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=3)
    folder = lay(settings, "day", GOOD)
    time.sleep(3.1)
    assert intake_steps.find_deliveries(run) == ["day"]
    (folder / "NORMAL" / "late.jpg").write_bytes(jpeg(seed=99))
    caught = intake_steps.check_delivery(run, "day")
    assert not caught.fit
    assert "still be arriving" in caught.why
    time.sleep(3.1)
    assert [verdict.accepted for verdict in ingest(run)] == [len(GOOD) + 1]


def test_a_file_dated_ahead_does_not_hide_that_others_are_still_copied(settings: Settings) -> None:
    run = changed(Run(settings), settle_seconds=600)
    folder = lay(settings, "day", GOOD)
    ahead = time.time() + 3 * DAYS
    os.utime(folder / next(iter(GOOD)), (ahead, ahead))
    assert intake_steps.find_deliveries(run) == []


# a verdict that stands


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The deliveries that are judged from now on."""
    judged: list[str] = []
    check = intake.check

    def counting(delivery: Delivery, *rest: Any) -> Any:
        judged.append(delivery.key)
        return check(delivery, *rest)

    monkeypatch.setattr(intake, "check", counting)
    return judged


def test_a_rejected_delivery_is_judged_once_while_nothing_changes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(settings)
    lay(settings, "day", GOOD | {"COVID/x.jpg": jpeg(seed=500)})
    judged = counted(monkeypatch)
    assert [verdict.fit for verdict in ingest(run) + ingest(run)] == [False, False]
    assert judged == ["day"]
    assert not intake_steps.check_delivery(run, "day", named=True).fit
    assert judged == ["day", "day"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"classes": ("NORMAL", "PNEUMONIA", "COVID")}),
        ({"split_mode": "given", "classes": ("NORMAL", "PNEUMONIA", "COVID")}, {"split_mode": "patient"}),
        ({"rules": IntakeRules(min_files=100), "classes": ("NORMAL", "PNEUMONIA", "COVID")}, {"rules": IntakeRules()}),
    ],
    ids=["classes", "split mode", "rules"],
)
def test_a_verdict_falls_with_what_it_depended_on(
    settings: Settings, before: dict[str, Any], after: dict[str, Any]
) -> None:
    lay(settings, "day", GOOD | {"COVID/x.jpg": jpeg(seed=500)})
    run = changed(Run(settings), **before)
    assert [verdict.fit for verdict in ingest(run)] == [False]
    assert [verdict.fit for verdict in ingest(changed(run, **after))] == [True]


@pytest.mark.parametrize("value", [{"split_held_out": 0.3}, {"split_validation": 0.3}])
def test_a_verdict_depends_on_the_shares_of_the_split(settings: Settings, value: dict[str, float]) -> None:
    assert judging_digest(settings, b"k") != judging_digest(settings.model_copy(update=value), b"k")
    assert judging_digest(settings, b"k") != judging_digest(settings, b"another key")


@pytest.fixture
def as_nobody() -> Iterator[Settings]:
    """Settings in a folder of somebody without root's right to read everything, who the test runs as."""
    me = os.geteuid()
    codecs.lookup("utf-8-sig")
    expectations.version()  # both while their modules may be read
    if me == 0:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as home:
            yield Settings(home=Path(home), settle_seconds=0)
    finally:
        os.seteuid(me)


def test_a_delivery_whose_files_were_made_readable_is_taken_the_next_night(as_nobody: Settings) -> None:
    run = Run(as_nobody)
    folder = lay(as_nobody, "day", GOOD)
    locked = [folder / name for name in list(GOOD)[:3]]
    for path in locked:
        path.chmod(0)
    (rejected,) = ingest(run)
    assert rejected.quarantined == {"unreadable": 3}
    for path in locked:
        path.chmod(0o644)
    assert [verdict.accepted for verdict in ingest(run)] == [len(GOOD)]


# additions


def test_a_list_that_was_made_readable_is_read_the_next_night(as_nobody: Settings) -> None:
    run = Run(as_nobody)
    files = {f"patient{n}_1.jpg": jpeg(seed=n) for n in range(4)}
    text = "file,label\n" + "".join(f"{name},NORMAL\n" for name in files)
    labels = lay(as_nobody, "day", {**files, "labels.csv": text.encode()}) / "labels.csv"
    labels.chmod(0)
    (refused,) = ingest(run)
    assert "no permission to read labels.csv" in refused.why
    labels.chmod(0o644)
    assert ingest(run)[0].fit


def test_files_that_lists_put_out_unread_stop_no_later_delivery(settings: Settings) -> None:
    run = Run(settings)
    for name, labels in (("first", ("NORMAL", "PNEUMONIA")), ("second", ("PNEUMONIA", "NORMAL"))):
        files = {f"{name}{n}_1.jpg": jpeg(seed=hash_of(name, n)) for n in range(9)}
        lines = [f"{file},NORMAL" for file in files] + [f"twice_1.jpg,{label}" for label in labels]
        text = "\n".join(["file,label", *lines]).encode()
        lay(settings, name, {**files, "twice_1.jpg": jpeg(seed=hash_of(name, 10)), "labels.csv": text})
        assert ingest(run)[0].quarantined == {"label-conflict": 1}
    lay(settings, "third", GOOD)
    assert ingest(run)[0].fit
    assert bookkeeping.verify(run.settings)[0]


def test_a_rejected_delivery_that_became_a_file_is_there_no_more(settings: Settings) -> None:
    run = Run(settings)
    folder = lay(settings, "day", {"NORMAL/a.jpg": b""})
    assert [verdict.key for verdict in (ingest(run), verdicts.rejected(run.settings))[1]] == ["day"]
    shutil.rmtree(folder)
    folder.write_bytes(b"")
    assert verdicts.rejected(run.settings) == []


def hash_of(name: str, number: int) -> int:
    return 100 * len(name) + number


def snapshot(run: Run) -> str:
    found = Dataset(run.settings).snapshot()
    return found.digest if found else ""


@pytest.mark.parametrize("litter", [".DS_Store", "NORMAL/.DS_Store", "NORMAL/Thumbs.db", "__MACOSX/NORMAL/x.jpg"])
def test_litter_alone_is_no_addition(settings: Settings, litter: str) -> None:
    run = Run(settings)
    lay(settings, "day", GOOD)
    ingest(run)
    lay(settings, "day", {litter: b"x"})
    assert intake_steps.find_deliveries(run) == []
    lay(settings, "day", {"NORMAL/patient90_1.jpg": jpeg(seed=90)})
    (added,) = ingest(run)
    assert (added.key, added.accepted, dict(added.quarantined)) == ("day+2", 1, {"system-file": 1})


@pytest.mark.parametrize("how", ["touched", "copied", "one late duplicate", "quarantined ones too"])
def test_an_addition_of_which_nothing_is_new_is_settled_once_and_trains_nothing(settings: Settings, how: str) -> None:
    run = Run(settings)
    files = GOOD | ({"NORMAL/empty.jpg": b""} if how == "quarantined ones too" else {})
    folder = lay(settings, "day", files)
    ingest(run)
    before = snapshot(run)
    if how == "one late duplicate":
        lay(settings, "day", {"NORMAL/again.jpg": next(d for f, d in GOOD.items() if f.startswith("NORMAL"))})
    elif how == "copied":
        folder.rename(folder.parent / "old")
        shutil.copytree(folder.parent / "old", folder)
        shutil.rmtree(folder.parent / "old")
    else:
        for path in folder.rglob("*.jpg"):
            os.utime(path)
    (settled,) = ingest(run)
    assert (settled.key, settled.fit, settled.accepted) == ("day+2", True, 0)
    assert "Nothing is new" in " ".join(settled.warnings)
    assert len(Dataset(run.settings).manifest("day+2")) == sum(settled.quarantined.values())
    assert intake_steps.find_deliveries(run) == []
    assert snapshot(run) == before  # and so the candidate, which is found trained
    assert bookkeeping.verify(run.settings)[0]


def test_a_first_delivery_of_copies_and_an_addition_of_something_bad_are_rejected(settings: Settings) -> None:
    run = Run(settings)
    lay(settings, "day", GOOD)
    ingest(run)
    lay(settings, "day", {"NORMAL/late.jpg": b""})
    lay(settings, "other", GOOD)
    assert [(verdict.key, verdict.fit) for verdict in ingest(run)] == [("day+2", False), ("other", False)]


def test_an_addition_that_can_not_be_read_is_not_settled(as_nobody: Settings) -> None:
    run = Run(as_nobody)
    folder = lay(as_nobody, "day", GOOD)
    ingest(run)
    again = folder / next(iter(GOOD))
    os.utime(again)
    again.chmod(0)
    assert [verdict.fit for verdict in ingest(run)] == [False]
    again.chmod(0o644)
    assert [dict(verdict.quarantined) for verdict in ingest(run)] == [{"duplicate": 1}]


def test_files_that_are_still_missing_are_counted_once(settings: Settings) -> None:
    run = Run(settings)
    listed = "".join(f"{n}.jpg,{('NORMAL', 'PNEUMONIA')[n % 2]}\n" for n in range(20))
    lay(
        settings,
        "day",
        {f"{n}.jpg": jpeg(seed=n) for n in range(16)} | {"labels.csv": f"file,label\n{listed}".encode()},
    )
    assert [dict(verdict.quarantined) for verdict in ingest(run)] == [{"missing": 4}]
    lay(settings, "day", {"16.jpg": jpeg(seed=16)})
    (added,) = ingest(run)
    assert (added.fit, added.accepted, dict(added.quarantined)) == (True, 1, {})
    assert bookkeeping.verify(run.settings)[0]


# what lies in the incoming folder


@pytest.mark.parametrize(
    ("stray", "said"),
    [
        ("DOE_JANE.jpg", "1 files lie beside the deliveries and are left out"),
        ("labels.csv", "1 files lie beside the deliveries and are left out"),
        ("_SUCCESS", "1 files lie beside the deliveries and are left out"),
        ("DOE_JANE.ZIP", "1 archives are left out"),
        ("test/NORMAL/1.jpg", "the folder 'test' is named like a part of a delivery and is left out"),
        ("Normal/1.jpg", "the folder 'Normal' is named like a part of a delivery and is left out"),
        ("DAY2/labels.csv", "delivery DAY2 holds no file to check"),
        ("DAY2/_SUCCESS", "delivery DAY2 holds no file to check"),
        ("DAY2/.DS_Store", "delivery DAY2 holds no file to check"),
    ],
)
def test_what_is_no_delivery_is_left_out_beside_real_ones_and_told(
    settings: Settings, caplog: pytest.LogCaptureFixture, stray: str, said: str
) -> None:
    run = Run(settings)
    lay(settings, "day", GOOD)
    lay(settings, "", {stray: b"x"})
    assert [verdict.accepted for verdict in ingest(run)] == [len(GOOD)]
    assert caplog.text.count(said) == 1
    assert "JANE" not in caplog.text


@pytest.mark.parametrize("stray", ["a.jpg", "labels.csv", "NORMAL/a.jpg", "normal/a.jpg", "test/NORMAL/a.jpg"])
def test_incoming_that_is_a_delivery_stops_beside_folders_that_are_none(settings: Settings, stray: str) -> None:
    lay(settings, "", {stray: b"x", "notes/readme.txt": b"x", "sub/b.jpg": b"x"})
    with pytest.raises(DeliveryError, match="looks like a delivery itself; point at its parent"):
        intake_steps.find_deliveries(Run(settings))


def test_rejected_deliveries_keep_no_other_out(settings: Settings) -> None:
    run = changed(Run(settings), max_deliveries=2)
    for name in "abd":
        lay(settings, name, {"NORMAL/x.jpg": b""})
    lay(settings, "c", GOOD)
    assert [[verdict.key for verdict in ingest(run)] for _ in range(3)] == [["a", "b"], ["c", "d"], ["a", "b"]]
    anew = changed(run, rules=IntakeRules(min_files=2))
    assert [[verdict.key for verdict in ingest(anew)] for _ in range(2)] == [["a", "b"], ["a", "d"]]


# a delivery that can't be judged as a whole


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"PNEUMONA/x.jpg": b"x"}, "did you mean PNEUMONIA?"),
        ({"labels.csv": b"file,label\na.jpg,HERNIA\n"}, "line 2 of labels.csv"),
    ],
    ids=["unknown class", "bad labels.csv"],
)
def test_there_is_a_page_that_says_why_and_nothing_of_an_earlier_check(
    settings: Settings, more: dict[str, bytes], why: str
) -> None:
    run = Run(settings)
    lay(settings, "day", {"NORMAL/a.jpg": jpeg(seed=1), "NORMAL/b.jpg": b"", "NORMAL/c.jpg": b"x"})
    assert not ingest(run)[0].fit
    assert bookkeeping.of_delivery(run.settings, "day")
    lay(settings, "day", more)
    assert why in ingest(run)[0].why
    assert bookkeeping.of_delivery(run.settings, "day") is None
    kept = sorted(entry.key for entry in run.store().list("intake/day"))
    assert kept == ["intake/day/checked.json", "intake/day/page.html"]
    page = html.unescape(run.store().read("intake/day/page.html").decode())
    assert why in page
    assert "Rejected: nothing of it enters the dataset" in page
    assert "All" not in page
    assert f"{3 + ('labels.csv' not in more)} files, 0.0 megabytes" in page
