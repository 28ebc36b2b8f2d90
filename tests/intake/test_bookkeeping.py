"""Every file of every delivery ends once; the quarantine can be listed and judged anew."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from laid import lay
from samples import jpeg, picture, png

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import books as bookkeeping
from xray_pipeline.intake import rules_page
from xray_pipeline.intake.books import balance, quarantine, verify
from xray_pipeline.intake.rules import judging_digest
from xray_pipeline.night import intake_steps
from xray_pipeline.night.intake_steps import rejudge
from xray_pipeline.night.run import Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = picture(77, 48, 48)


def run_of(settings: Settings, **rules: Any) -> Run:
    return Run(settings.model_copy(update={"rules": IntakeRules(max_quarantined_share=0.9, **rules)}))


def ingest(run: Run) -> None:
    keys = intake_steps.find_deliveries(run)
    for key in keys:
        intake_steps.check_delivery(run, key)
    intake_steps.commit_deliveries(run, keys)


@pytest.fixture
def committed(settings: Settings) -> Run:
    """A delivery of two good files, a small one, an empty one, a copy and a text file."""
    lay(
        settings,
        "first",
        {
            "NORMAL/patient1_1.jpg": jpeg(seed=1),
            "NORMAL/patient2_1.png": png(SMALL),
            "NORMAL/patient3_1.jpg": b"",
            "PNEUMONIA/patient4_1.jpg": jpeg(seed=4),
            "PNEUMONIA/patient5_1.txt": b"a note",
            "PNEUMONIA/patient4_2.jpg": jpeg(seed=4),
        },
    )
    run = run_of(settings)
    ingest(run)
    return run


def manifests(run: Run) -> dict[str, str]:
    folder = Path(run.settings.store, "dataset", "manifests")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# counting


def test_a_delivery_adds_up_by_count_and_digest(committed: Run) -> None:
    found = bookkeeping.of_delivery(committed.settings, "first")
    assert found is not None
    assert (found["files"], found["accepted"], found["quarantined"], found["holds"]) == (6, 2, 4, True)
    table = Dataset(committed.settings).manifest("first")
    assert balance(table, 6).digest == found["digest"]
    shuffled = table.sample(frac=1, random_state=0)
    assert balance(shuffled, 6).digest == found["digest"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda table: table.iloc[1:],
        lambda table: table.assign(file=[table["file"].iloc[0], *table["file"].iloc[:-1]]),
        lambda table: table.assign(verdict="lost"),
        lambda table: table.assign(reason=""),
    ],
    ids=["a row is gone", "a file twice", "no verdict", "no reason"],
)
def test_books_that_do_not_add_up_are_told(committed: Run, broken: Any) -> None:
    table = Dataset(committed.settings).manifest("first")
    assert not balance(broken(table), 6).holds


def test_any_change_of_a_verdict_changes_the_digest(committed: Run) -> None:
    table = Dataset(committed.settings).manifest("first")
    other = table.assign(reason=table["reason"].replace("empty", "truncated"))
    assert balance(other, 6).digest != balance(table, 6).digest


def test_files_that_are_only_named_are_counted_apart(settings: Settings) -> None:
    lay(settings, "listed", {"a.jpg": jpeg(seed=1), "labels.csv": b"file,label\na.jpg,NORMAL\nb.jpg,NORMAL\n"})
    run = run_of(settings)
    ingest(run)
    found = bookkeeping.of_delivery(run.settings, "listed")
    assert found is not None
    assert (found["files"], found["missing"], found["holds"]) == (1, 1, True)


def test_a_rejected_delivery_is_counted_from_its_check(settings: Settings) -> None:
    lay(settings, "first", {"NORMAL/a.jpg": b"", "NORMAL/b.jpg": jpeg(seed=1)})
    run = Run(settings)
    intake_steps.check_delivery(run, "first")
    found = bookkeeping.of_delivery(run.settings, "first")
    assert found is not None
    assert (found["accepted"], found["quarantined"], found["holds"]) == (1, 1, True)
    assert bookkeeping.of_delivery(run.settings, "never") is None


# the quarantine


def test_the_quarantine_is_listed_without_paths_unless_asked(committed: Run) -> None:
    found = quarantine(committed.settings)
    assert [(row["delivery"], row["reason"]) for row in found] == [
        ("first", "too-small"),
        ("first", "empty"),
        ("first", "duplicate"),
        ("first", "not-an-image"),
    ]
    assert "patient" not in str(found)
    assert [row["file"] for row in quarantine(committed.settings, paths=True)][1] == "NORMAL/patient3_1.jpg"
    assert found[1]["source_digest"] == hashlib.sha256(b"").hexdigest()


def test_the_quarantine_is_narrowed_by_delivery_and_reason(committed: Run) -> None:
    lay(committed.settings, "second", {"NORMAL/patient9_1.jpg": b"", "NORMAL/patient8_1.jpg": jpeg(seed=8)})
    ingest(committed)
    assert [row["delivery"] for row in quarantine(committed.settings, reason="empty")] == ["first", "second"]
    assert len(quarantine(committed.settings, "second")) == 1
    with pytest.raises(DeliveryError, match="no delivery third"):
        quarantine(committed.settings, "third")


def test_the_files_of_a_rejected_delivery_are_listed_when_it_is_named(committed: Run) -> None:
    lay(committed.settings, "second", {"NORMAL/patient9_1.jpg": b"", "NORMAL/patient8_1.jpg": jpeg(seed=8)[:500]})
    ingest(committed)
    found = quarantine(committed.settings, "second", paths=True)
    assert [(row["delivery"], row["reason"], row["file"], row["committed"]) for row in found] == [
        ("second", "truncated", "NORMAL/patient8_1.jpg", False),
        ("second", "empty", "NORMAL/patient9_1.jpg", False),
    ]
    assert {row["delivery"] for row in quarantine(committed.settings)} == {"first"}
    assert all(row["committed"] for row in quarantine(committed.settings, "first"))
    lay(committed.settings, "second", {"PNEUMONA/patient9_1.jpg": b""})
    ingest(committed)
    with pytest.raises(DeliveryError, match=r"second is rejected as a whole, no file was judged: .*PNEUMONIA"):
        quarantine(committed.settings, "second")


# judging anew


def test_a_changed_rule_adds_a_part_and_leaves_the_old_manifest_alone(committed: Run) -> None:
    before = manifests(committed)
    run = run_of(committed.settings, min_side=32)
    found = rejudge(run, "first")
    assert (found["key"], found["judged"], found["accepted"]) == ("first+2", 4, 1)
    assert found["quarantined"] == {"duplicate": 1, "empty": 1, "not-an-image": 1}
    after = manifests(run)
    assert after["first.parquet"] == before["first.parquet"]
    assert set(after) == {"first.parquet", "first+2.parquet"}
    assert len(Dataset(run.settings).manifest("first+2")) == 1
    snapshot = Dataset(run.settings).snapshot()
    assert snapshot is not None
    assert snapshot.images == 3
    assert [row["reason"] for row in quarantine(run.settings)] == ["empty", "duplicate", "not-an-image"]
    assert verify(run.settings) == (True, "6 files of 1 deliveries, each accepted or quarantined once")


def test_judging_twice_changes_nothing_more(committed: Run) -> None:
    run = run_of(committed.settings, min_side=32)
    rejudge(run, "first")
    before = manifests(run)
    again = rejudge(run, "first")
    assert (again["key"], again["accepted"]) == ("", 0)
    assert manifests(run) == before
    assert intake_steps.find_deliveries(run) == []


def test_without_a_changed_rule_nothing_is_added(committed: Run) -> None:
    before = manifests(committed)
    assert rejudge(committed, "first")["why"] == "every one of them is quarantined again"
    assert manifests(committed) == before


def test_new_files_are_left_to_the_next_night(committed: Run) -> None:
    lay(committed.settings, "first", {"NORMAL/patient20_1.jpg": jpeg(seed=20)})
    run = run_of(committed.settings, min_side=32)
    found = rejudge(run, "first")
    assert found["accepted"] == 1
    assert intake_steps.find_deliveries(run) == ["first+3"]
    ingest(run)
    assert verify(run.settings)[0]
    snapshot = Dataset(run.settings).snapshot()
    assert snapshot is not None
    assert snapshot.images == 4


def test_what_is_gone_or_was_never_committed_is_said(committed: Run) -> None:
    with pytest.raises(DeliveryError, match="no delivery second"):
        rejudge(committed, "second")
    for path in Path(committed.settings.incoming, "first").rglob("*.*"):
        path.unlink()
    assert "nothing in delivery first" in rejudge(committed, "first")["why"]


def test_a_killed_rejudging_is_repeated_to_the_same_end(committed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(committed.settings, min_side=32)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("xray_pipeline.intake.commit._store_radiographs", killed)
        with pytest.raises(KeyboardInterrupt):
            rejudge(run, "first")
    assert set(manifests(run)) == {"first.parquet"}
    assert rejudge(run, "first")["accepted"] == 1


# a label conflict that a person settles

X = picture(90, 200, 180)
SAME = png(X)
NEAR = jpeg(X, quality=60)


def conflict(settings: Settings, wrong: bytes, more: dict[str, bytes] | None = None) -> Run:
    """A delivery in which an image, or its near copy, is under both labels, and two others."""
    files = {"NORMAL/a.png": SAME, "PNEUMONIA/b.img": wrong, "NORMAL/c.jpg": jpeg(seed=1)}
    lay(settings, "first", files | {"PNEUMONIA/d.jpg": jpeg(seed=4)} | (more or {}))
    run = run_of(settings)
    ingest(run)
    assert {row["reason"] for row in quarantine(run.settings)} == {"label-conflict"}
    return run


def labels(run: Run) -> list[str]:
    """The labels of what a night would train on, sorted; the snapshot can be opened again with the same rows."""
    dataset = Dataset(run.settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    again = Dataset(run.settings)
    assert again.rows(again.open_snapshot(snapshot.digest)).equals(dataset.rows(snapshot))
    return sorted(dataset.rows(snapshot)["label"])


@pytest.mark.parametrize("wrong", [SAME, NEAR], ids=["the same image", "a near copy"])
def test_a_label_conflict_that_is_settled_gives_the_radiograph_back(settings: Settings, wrong: bytes) -> None:
    run = conflict(settings, wrong)
    assert labels(run) == ["NORMAL", "PNEUMONIA"]
    before = Dataset(settings).snapshot()
    Path(settings.incoming, "first", "PNEUMONIA", "b.img").unlink()
    found = rejudge(run, "first")
    assert (found["key"], found["accepted"], found["gone"]) == ("first+2", 1, 1)
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]
    assert [(row["delivery"], row["reason"]) for row in quarantine(run.settings)] == [("first+2", "vanished")]
    assert verify(run.settings) == (True, "4 files of 1 deliveries, each accepted or quarantined once")
    assert bookkeeping.of_delivery(run.settings, "first+2")["holds"]  # type: ignore[index]
    assert before is not None
    assert len(Dataset(settings).rows(before)) == 2
    assert rejudge(run, "first")["key"] == ""
    assert intake_steps.find_deliveries(run) == []


@pytest.mark.parametrize("wrong", [SAME, NEAR], ids=["the same image", "a near copy"])
def test_a_conflict_with_another_delivery_is_settled_where_the_wrong_copy_was(settings: Settings, wrong: bytes) -> None:
    lay(settings, "first", {"NORMAL/a.png": SAME, "NORMAL/c.jpg": jpeg(seed=1)})
    run = run_of(settings)
    ingest(run)
    lay(settings, "second", {"PNEUMONIA/b.img": wrong, "PNEUMONIA/d.jpg": jpeg(seed=4)})
    ingest(run)
    assert labels(run) == ["NORMAL", "PNEUMONIA"]
    assert rejudge(run, "second")["key"] == ""
    Path(settings.incoming, "second", "PNEUMONIA", "b.img").unlink()
    assert rejudge(run, "second")["key"] == "second+2"
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]
    lay(settings, "third", {"PNEUMONIA/e.img": wrong, "PNEUMONIA/f.jpg": jpeg(seed=5)})
    ingest(run)
    assert labels(run) == ["NORMAL", "PNEUMONIA", "PNEUMONIA"]


def test_a_corrected_list_settles_a_label_conflict(settings: Settings) -> None:
    said = "file,label,patient_id\na.png,NORMAL,1\nb.png,{},1\nc.jpg,NORMAL,2\nd.png,NORMAL,1\n"
    files = {"a.png": SAME, "b.png": SAME, "c.jpg": jpeg(seed=1), "d.png": NEAR}
    lay(settings, "first", {**files, "labels.csv": said.format("PNEUMONIA").encode()})
    run = run_of(settings)
    ingest(run)
    assert labels(run) == ["NORMAL"]
    lay(settings, "first", {"labels.csv": said.format("NORMAL").encode()})
    rejudge(run, "first")
    assert labels(run) == ["NORMAL"] * 3
    assert [row["reason"] for row in quarantine(run.settings)] == ["duplicate"]


def test_a_conflict_is_not_settled_by_what_is_still_there(settings: Settings) -> None:
    run = conflict(settings, NEAR, {"PNEUMONIA/e.img": jpeg(X[3:-3, 2:-2])})
    Path(settings.incoming, "first", "PNEUMONIA", "b.img").unlink()
    rejudge(run, "first")
    assert labels(run) == ["NORMAL", "PNEUMONIA"]
    assert sorted(row["reason"] for row in quarantine(run.settings)) == ["label-conflict", "label-conflict", "vanished"]


def test_a_delivery_that_was_cleared_away_settles_nothing(settings: Settings) -> None:
    run = conflict(settings, SAME)
    for path in Path(settings.incoming, "first").rglob("*.*"):
        path.unlink()
    assert rejudge(run, "first")["key"] == ""
    assert labels(run) == ["NORMAL", "PNEUMONIA"]


def copy_anew(settings: Settings, name: str) -> None:
    for path in Path(settings.incoming, name).rglob("*.*"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        os.utime(path, (1_700_000_000, 1_700_000_000))


def test_a_conflict_is_settled_in_a_delivery_that_was_copied_anew(settings: Settings) -> None:
    run = conflict(settings, SAME)
    copy_anew(settings, "first")
    ingest(run)
    Path(settings.incoming, "first", "PNEUMONIA", "b.img").unlink()
    found = rejudge(run, "first")
    assert (found["key"], found["accepted"], found["gone"]) == ("first+3", 1, 1)
    assert verify(run.settings)[0]
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]
    assert sorted(row["reason"] for row in quarantine(run.settings)) == ["duplicate", "duplicate", "vanished"]
    assert rejudge(run, "first")["key"] == ""


def test_a_file_that_was_copied_anew_is_not_gone(settings: Settings) -> None:
    run = conflict(settings, SAME)
    Path(settings.incoming, "first", "PNEUMONIA", "b.img").unlink()
    copy_anew(settings, "first")
    assert rejudge(run, "first")["gone"] == 1
    assert Dataset(settings).manifest("first+2")["file"].tolist() == ["PNEUMONIA/b.img"]
    ingest(run)
    assert verify(run.settings)[0]
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]
    assert "label-conflict" not in {row["reason"] for row in quarantine(run.settings)}


def test_a_wrong_copy_that_is_overwritten_is_settled(settings: Settings) -> None:
    run = conflict(settings, SAME)
    lay(settings, "first", {"PNEUMONIA/b.img": jpeg(seed=9)})
    ingest(run)
    assert rejudge(run, "first")["accepted"] == 1
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA", "PNEUMONIA"]
    assert verify(run.settings)[0]


def test_a_conflict_is_settled_where_only_litter_is_left(settings: Settings) -> None:
    lay(settings, "first", {"NORMAL/a.png": SAME, "NORMAL/c.jpg": jpeg(seed=1)})
    run = run_of(settings)
    ingest(run)
    lay(settings, "second", {"PNEUMONIA/b.img": SAME, "PNEUMONIA/d.jpg": jpeg(seed=4), "PNEUMONIA/Thumbs.db": b"x"})
    ingest(run)
    Path(settings.incoming, "second", "PNEUMONIA", "b.img").unlink()
    assert rejudge(run, "second")["gone"] == 1
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]


def test_a_new_file_decides_nothing_about_those_that_wait(settings: Settings) -> None:
    """The wrong copy is moved to the right folder, under a name that comes first."""
    run = conflict(settings, SAME)
    folder = Path(settings.incoming, "first")
    (folder / "PNEUMONIA" / "b.img").rename(folder / "NORMAL" / "0.img")
    found = rejudge(run, "first")
    assert (found["judged"], found["accepted"], found["gone"]) == (1, 1, 1)
    assert labels(run) == ["NORMAL", "NORMAL", "PNEUMONIA"]
    ingest(run)
    assert sorted(row["reason"] for row in quarantine(run.settings)) == ["duplicate", "vanished"]


@pytest.mark.parametrize("taken", [False, True], ids=["only gone", "one is taken"])
def test_nothing_of_another_check_is_left_beside_an_addition(settings: Settings, taken: bool) -> None:
    if taken:
        run, name = conflict(settings, SAME), "first"
    else:
        lay(settings, "other", {"NORMAL/a.png": SAME, "NORMAL/e.jpg": jpeg(seed=5)})
        ingest(run_of(settings))
        run, name = conflict(settings, SAME), "first"
        Path(settings.incoming, name, "NORMAL", "a.png").unlink()
    Path(settings.incoming, name, "PNEUMONIA", "b.img").unlink()
    lay(settings, name, {"PNEUMONIA/bad.jpg": b"nothing"})
    ingest(run)
    store = Path(settings.store, "intake", f"{name}+2")
    assert json.loads((store / "checked.json").read_bytes())["content"]["fit"] is False
    assert rejudge(run, name)["accepted"] == int(taken)
    kept = json.loads((store / "checked.json").read_bytes())["content"]
    assert (kept["fit"], kept["rules"]) == (True, judging_digest(run.settings, Dataset(settings).patient_key()))
    files = {path.name for path in store.iterdir()}
    assert files == {"checked.json", "table.parquet"} | (
        {"drift.json", "expectations.json", "page.html"} if taken else set()
    )
    if taken:
        assert json.loads((store / "expectations.json").read_bytes())["success"] is True
        assert "Rejected" not in (store / "page.html").read_text()


# all of it


def test_verify_tells_a_radiograph_that_was_taken_twice(committed: Run) -> None:
    assert verify(committed.settings) == (True, "6 files of 1 deliveries, each accepted or quarantined once")
    dataset = Dataset(committed.settings)
    assert dataset.append("other", dataset.store.read("manifests/first.parquet"), 1)
    assert verify(committed.settings) == (False, "2 files or radiographs were accepted more than once")


def test_the_written_rules_are_those_of_the_code() -> None:
    kept = (ROOT / "docs" / "intake-rules.md").read_text()
    assert kept == rules_page.page(), "run `xray rules > docs/intake-rules.md`"
