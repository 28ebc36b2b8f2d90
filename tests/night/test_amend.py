"""Labels corrected, radiographs, patients, deliveries withdrawn, and undone: what snapshots and intake make of it."""

from __future__ import annotations

import itertools
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from laid import ingest, lay
from samples import dicom, jpeg, picture, png

from xray_pipeline.base.errors import AmendmentError, Damaged, DatasetError, RegistryError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import books
from xray_pipeline.night import amend, intake_steps, kept_rows
from xray_pipeline.night.amend import By, Named
from xray_pipeline.night.run import Run

WHY = "a radiologist looked at it"
MONDAY = {
    **{f"NORMAL/patient{n}_1.png": png(picture(n, 200, 180)) for n in (1, 2, 3)},
    "NORMAL/patient1_2.jpg": jpeg(picture(1, 200, 180), quality=60),  # a near copy of patient1_1
    "PNEUMONIA/patient4_1.png": png(picture(4, 200, 180)),
    "PNEUMONIA/named.dcm": dicom(picture(5, 200, 180), PatientID="4711^Ada"),
}


@pytest.fixture
def run(settings: Settings) -> Run:
    """Monday's delivery, committed."""
    rules = IntakeRules(max_quarantined_share=1, max_leak_share=1)
    one = Run(settings.model_copy(update={"rules": rules}), who="Ada")
    lay(one.settings, "mon", MONDAY)
    ingest(one)
    return one


def made(run: Run, *named: tuple[Any, ...], why: str = WHY) -> dict[str, Any]:
    return amend.amend(run, [Named(*one) for one in named], why)


def rows(run: Run) -> pd.DataFrame:
    """The newest snapshot's radiographs."""
    dataset = Dataset(run.settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    return dataset.rows(snapshot)


def row(file: str, key: str = "mon", run: Run | None = None) -> str:
    names = sorted(MONDAY) if run is None else list(Dataset(run.settings).manifest(key)["file"])
    return f"{key}/{names.index(file)}"


def digest(run: Run, file: str, key: str = "mon") -> str:
    table = Dataset(run.settings).manifest(key)
    return str(table.loc[table["file"] == file, "digest"].iloc[0])


# what snapshots make of it


def test_a_relabelled_radiograph_and_its_near_copies_have_the_new_label_from_the_next_snapshot_on(run: Run) -> None:
    dataset = Dataset(run.settings)
    before = dataset.snapshot()
    assert before is not None
    old = dataset.rows(before)
    ours = [digest(run, f"NORMAL/patient1_{n}.{kind}") for n, kind in ((1, "png"), (2, "jpg"))]
    answer = made(run, ("relabel", "radiograph", ours[0][:12], "PNEUMONIA"))
    assert (answer["number"], answer["who"], answer["why"]) == (2, "Ada", WHY)
    assert answer["changes"][0]["radiographs"] == 2
    now = rows(run)
    expected = old.assign(label=old["label"].where(~old["digest"].isin(ours), "PNEUMONIA"))
    pd.testing.assert_frame_equal(now, expected)
    pd.testing.assert_frame_equal(Dataset(run.settings).rows(before), old)  # the older one stays what it was
    assert Dataset(run.settings).history().labels(ours[1]) == "PNEUMONIA"


@pytest.mark.parametrize(
    ("by", "name", "gone"),
    [
        ("file", row("NORMAL/patient1_2.jpg"), ["NORMAL/patient1_1.png", "NORMAL/patient1_2.jpg"]),
        ("patient", "patient4", ["PNEUMONIA/patient4_1.png"]),
        ("patient", "4711^Ada", ["PNEUMONIA/named.dcm"]),
        ("patient", "named.dcm", ["PNEUMONIA/named.dcm"]),
        ("patient-of", row("PNEUMONIA/named.dcm"), ["PNEUMONIA/named.dcm"]),
        ("delivery", "mon", list(MONDAY)),
    ],
)
def test_what_is_withdrawn_is_in_no_later_snapshot_until_that_is_undone(
    run: Run, by: By, name: str, gone: list[str]
) -> None:
    before, digests = Dataset(run.settings).snapshot(), {digest(run, file) for file in gone}
    answer = made(run, ("withdraw", by, name))
    assert answer["changes"][0]["radiographs"] == len(gone)
    assert not digests & set(rows(run)["digest"])
    assert len(rows(run)) == len(MONDAY) - len(gone)
    assert "4711" not in str(answer)
    made(run, ("undo", "amendment", "2"))
    assert Dataset(run.settings).snapshot() == before  # by name, too: nothing is trained anew
    assert [one["stands"] for one in amend.listed(run)] == [False, True]


def test_a_withdrawn_delivery_leaves_what_others_brought_and_says_so(run: Run) -> None:
    lay(run.settings, "tue", {"NORMAL/patient2_5.jpg": jpeg(picture(2, 200, 180), quality=55)})
    ingest(run)
    change = made(run, ("withdraw", "delivery", "tue"))["changes"][0]
    assert (change["radiographs"], change["left"]) == (1, [digest(run, "NORMAL/patient2_1.png")])
    assert set(rows(run)["delivery"]) == {"mon"}


def test_a_withdrawn_delivery_leaves_an_exact_copy_that_another_one_brought_whatever_became_of_it(run: Run) -> None:
    ours = digest(run, "NORMAL/patient2_1.png")
    again = {"NORMAL/patient2_1.png": MONDAY["NORMAL/patient2_1.png"], "NORMAL/patient8_1.png": png(seed=8)}
    lay(run.settings, "tue", again)
    ingest(run)
    assert Dataset(run.settings).manifest("tue")["reason"].tolist() == ["duplicate", ""]
    change = made(run, ("withdraw", "delivery", "mon"))["changes"][0]
    assert (change["radiographs"], change["left"]) == (len(MONDAY) - 1, [ours])
    assert ours in set(rows(run)["digest"])


def test_what_is_added_to_a_withdrawn_delivery_is_quarantined(run: Run) -> None:
    made(run, ("withdraw", "delivery", "mon"))
    lay(run.settings, "mon", {f"NORMAL/patient{n}_1.png": png(seed=n) for n in (40, 41)})
    ingest(run)
    assert Dataset(run.settings).manifest("mon+2")["reason"].tolist() == ["withdrawn"] * 2
    assert books.amended(run.settings)[0]
    dataset = Dataset(run.settings)
    table = dataset.manifest("mon").assign(digest="0" * 64, patient="", file="x")
    assert dataset.append("mon+3", to_parquet(table.head(1), {"delivery": "mon", "fingerprint": ""}), 3)
    assert books.amended(run.settings)[0] is False


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("4712^Bea", dicom(picture(60, 200, 180), PatientID="4712^Bea")),
        ("patient61", png(picture(61, 200, 180))),
        ("patient61_5.png", png(picture(61, 200, 180))),
    ],
)
def test_a_patient_is_withdrawn_before_the_first_delivery(run: Run, name: str, file: bytes) -> None:
    change = made(run, ("withdraw", "patient", name))["changes"][0]
    assert (change["radiographs"], change["name"]) == (0, "")
    lay(run.settings, "tue", {"NORMAL/patient61_1.png": file, "NORMAL/patient62_1.png": png(seed=62)})
    ingest(run)
    assert Dataset(run.settings).manifest("tue")["reason"].tolist() == ["withdrawn", ""]


def test_an_id_that_looks_like_a_file_of_another_patient_is_that_ids(run: Run) -> None:
    """patient2_1 is what the files of patient2 are called, too; as a PatientID it is somebody else's."""
    files = {"NORMAL/a.dcm": dicom(picture(63, 200, 180), PatientID="patient2_1"), "NORMAL/b_1.png": png(seed=64)}
    lay(run.settings, "tue", files)
    ingest(run)
    made(run, ("withdraw", "patient", "patient2_1"))
    left = set(rows(run)["digest"])
    assert digest(run, "NORMAL/patient2_1.png") in left
    assert digest(run, "NORMAL/a.dcm", "tue") not in left


def test_a_file_name_that_several_patients_have_leads_to_their_radiographs(run: Run) -> None:
    lay(run.settings, "tue", {"NORMAL/named.dcm": dicom(picture(65, 200, 180), PatientID="4713")})
    ingest(run)
    with pytest.raises(AmendmentError, match=r"knows 2 patients .* `--patient-of`"):
        made(run, ("withdraw", "patient", "named.dcm"))
    made(run, ("withdraw", "patient-of", "tue/0"))
    assert digest(run, "PNEUMONIA/named.dcm") in set(rows(run)["digest"])


def test_a_conflict_that_an_amendment_ends_between_check_and_commit_keeps_nothing_out(run: Run) -> None:
    ours = digest(run, "NORMAL/patient2_1.png")
    made(run, ("relabel", "radiograph", ours, "PNEUMONIA"))
    files = {f"NORMAL/patient{n}_9.png": png(picture(n + 50, 200, 180)) for n in (6, 7, 8, 9)}
    lay(run.settings, "tue", {"NORMAL/patient2_5.jpg": jpeg(picture(2, 200, 180), quality=55), **files})
    assert intake_steps.check_delivery(run, "tue").quarantined == {"label-conflict": 1}
    made(run, ("relabel", "radiograph", ours, "NORMAL"))
    intake_steps.commit_deliveries(run, ["tue"])
    tue = Dataset(run.settings).manifest("tue").set_index("file").loc["NORMAL/patient2_5.jpg"]
    mon = Dataset(run.settings).manifest("mon").set_index("file").loc["NORMAL/patient2_1.png"]
    assert (tue["verdict"], tue["side"], tue["near_copy"], tue["withdraws"]) == ("accepted", mon["side"], ours, "")
    assert set(rows(run).set_index("digest")["label"][[ours, tue["digest"]]]) == {"NORMAL"}


def test_copies_that_agreed_by_an_amendment_are_contested_once_it_is_undone(run: Run) -> None:
    ours = digest(run, "NORMAL/patient2_1.png")
    made(run, ("relabel", "radiograph", ours, "PNEUMONIA"))
    lay(run.settings, "tue", {"PNEUMONIA/patient2_5.jpg": jpeg(picture(2, 200, 180), quality=55)})
    ingest(run)
    copy = Dataset(run.settings).manifest("tue")["digest"][0]
    assert {ours, copy} <= set(rows(run)["digest"])
    made(run, ("undo", "amendment", "2"))
    assert not {ours, copy} & set(rows(run)["digest"])
    made(run, ("relabel", "radiograph", ours, "NORMAL"))
    assert set(rows(run).set_index("digest")["label"][[ours, copy]]) == {"NORMAL"}


def test_undoing_one_withdrawal_leaves_out_what_another_one_withdrew(run: Run) -> None:
    lay(run.settings, "tue", {"NORMAL/patient2_5.jpg": jpeg(picture(2, 200, 180), quality=55)})
    ingest(run)
    both = {digest(run, "NORMAL/patient2_1.png"), Dataset(run.settings).manifest("tue")["digest"][0]}
    made(run, ("withdraw", "delivery", "tue"))
    made(run, ("withdraw", "file", row("NORMAL/patient2_1.png")))
    made(run, ("undo", "amendment", "3"))
    assert not both & set(rows(run)["digest"])


def test_a_patient_of_whom_nothing_stands_is_withdrawn_all_the_same(run: Run) -> None:
    made(run, ("withdraw", "file", row("NORMAL/patient2_1.png")))
    made(run, ("withdraw", "patient", "patient2"))
    made(run, ("undo", "amendment", "2"))
    lay(run.settings, "tue", {f"NORMAL/patient{n}_9.png": png(picture(n + 50, 200, 180)) for n in (2, 6)})
    ingest(run)
    assert Dataset(run.settings).manifest("tue")["reason"].tolist() == ["withdrawn", ""]
    assert digest(run, "NORMAL/patient2_1.png") not in set(rows(run)["digest"])


def test_the_side_of_a_patient_who_was_withdrawn_stays(run: Run) -> None:
    side = Dataset(run.settings).history().side
    patients = Dataset(run.settings).manifest("mon").set_index("patient")["side"].to_dict()
    made(run, ("withdraw", "delivery", "mon"))
    assert {patient: side(patient) for patient in patients} == patients


def test_later_amendments_count_before_earlier_ones(run: Run) -> None:
    ours = digest(run, "NORMAL/patient2_1.png")
    for label in ("PNEUMONIA", "NORMAL", "PNEUMONIA"):
        made(run, ("relabel", "radiograph", ours, label))
    made(run, ("undo", "amendment", "4"))
    assert rows(run).set_index("digest")["label"][ours] == "NORMAL"
    made(run, ("undo", "amendment", "3"))
    assert rows(run).set_index("digest")["label"][ours] == "PNEUMONIA"


# what the intake makes of it


@pytest.mark.parametrize("label", ["NORMAL", "PNEUMONIA"])
def test_relabelling_settles_a_conflict_of_all_connected_copies(run: Run, label: str) -> None:
    """b is a near copy of a, and was delivered under another label: both are out until somebody says which is right."""
    copy = {"PNEUMONIA/patient2_7.jpg": jpeg(picture(2, 200, 180), quality=60)}
    lay(run.settings, "tue", {**copy, "NORMAL/patient30_1.png": png(picture(30, 200, 180))})
    ingest(run)
    ours, theirs = digest(run, "NORMAL/patient2_1.png"), digest(run, next(iter(copy)), "tue")
    assert ours not in set(rows(run)["digest"])
    change = made(run, ("relabel", "radiograph", theirs, label))["changes"][0]
    assert (change["radiographs"], change["quarantined"]) == (2, ["tue"])
    assert rows(run).set_index("digest")["label"][ours] == label
    assert intake_steps.rejudge(run, "tue")["accepted"] == 1
    now = rows(run).set_index("digest")["label"]
    assert (now[ours], now[theirs]) == (label, label)
    assert books.verify(run.settings)[0]
    # A third copy under the other label can't put them in doubt again.
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}[label]
    third = {f"{other}/patient2_8.jpg": jpeg(picture(2, 200, 180), quality=50)}
    lay(run.settings, "wed", {**third, "NORMAL/patient31_1.png": png(picture(31, 200, 180))})
    ingest(run)
    assert set(Dataset(run.settings).manifest("wed")["reason"]) == {"label-conflict", ""}
    assert {ours, theirs} <= set(rows(run)["digest"])


@pytest.mark.parametrize(
    ("by", "name"), [("patient", "patient2"), ("file", row("NORMAL/patient2_1.png")), ("delivery", "mon")]
)
def test_what_was_withdrawn_and_is_delivered_again_is_quarantined(run: Run, by: By, name: str) -> None:
    made(run, ("withdraw", by, name))
    again = {
        "NORMAL/patient2_1.png": MONDAY["NORMAL/patient2_1.png"],
        "NORMAL/patient2_2.jpg": jpeg(picture(2, 200, 180), quality=60),  # a near copy
        "NORMAL/patient9_1.png": png(picture(9, 200, 180)),
        **({"NORMAL/patient2_3.png": png(picture(99, 200, 180))} if by == "patient" else {}),
    }
    lay(run.settings, "tue", again)
    ingest(run)
    table = Dataset(run.settings).manifest("tue").set_index("file")
    out = table[table.index != "NORMAL/patient9_1.png"]
    assert set(out["reason"]) == {"withdrawn"}
    assert (out[["phash", "thumbnail", "statistics", "sex", "scanner"]] == "").all(axis=None)
    assert table["verdict"]["NORMAL/patient9_1.png"] == "accepted"
    assert intake_steps.rejudge(run, "tue")["accepted"] == 0
    made(run, ("undo", "amendment", "2"))
    assert intake_steps.rejudge(run, "tue")["accepted"] == (2 if by == "patient" else 1)  # not the exact copy
    assert books.verify(run.settings)[0]


@pytest.mark.parametrize("file", ["NORMAL/patient2_1.png", "NORMAL/patient2_2.jpg"])
def test_a_withdrawal_that_is_undone_between_check_and_commit_keeps_nothing_out(run: Run, file: str) -> None:
    made(run, ("withdraw", "file", row("NORMAL/patient2_1.png", run=run)))
    again = {
        "NORMAL/patient2_1.png": MONDAY["NORMAL/patient2_1.png"],
        "NORMAL/patient2_2.jpg": jpeg(picture(2, 200, 180), quality=60),  # a near copy
    }
    lay(run.settings, "tue", {file: again[file], "NORMAL/patient9_1.png": png(picture(9, 200, 180))})
    assert intake_steps.check_delivery(run, "tue").quarantined == {"withdrawn": 1}
    made(run, ("undo", "amendment", "2"))
    assert intake_steps.commit_deliveries(run, ["tue"]).changed == ("tue",)
    ingest(run)
    table = Dataset(run.settings).manifest("tue").set_index("file")
    assert table["reason"][file] == ("duplicate" if file == "NORMAL/patient2_1.png" else "")
    assert table["verdict"]["NORMAL/patient9_1.png"] == "accepted"


def test_what_came_in_although_it_was_withdrawn_is_noticed(run: Run) -> None:
    assert books.amended(run.settings) == (True, "0 amendments; of 0 withdrawn radiographs none came in again")
    old = Dataset(run.settings).snapshot()
    assert old is not None
    made(run, ("withdraw", "patient", "patient2"))
    made(run, ("relabel", "file", row("NORMAL/patient1_1.png"), "PNEUMONIA"))
    assert books.amended(run.settings) == (True, "2 amendments; of 1 withdrawn radiographs none came in again")
    assert Dataset(run.settings).since(old) == (2, 1, 0)
    dataset = Dataset(run.settings)
    table = dataset.manifest("mon")
    assert dataset.append("tue", to_parquet(table, {"delivery": "tue", "fingerprint": ""}), 3)  # as nobody commits
    assert books.amended(run.settings) == (
        False,
        "1 radiographs were accepted after they, or their patients or deliveries, were withdrawn",
    )


def test_a_delivery_of_nothing_but_a_withdrawn_patient_is_fit(settings: Settings) -> None:
    run = Run(settings, who="Ada")
    lay(settings, "mon", MONDAY)
    ingest(run)
    made(run, ("withdraw", "patient", "patient2"))
    lay(settings, "tue", {f"NORMAL/patient{n}_9.png": png(picture(n + 50, 200, 180)) for n in (2, 6, 7, 8)})
    ingest(run)
    assert Dataset(settings).manifest("tue")["reason"].tolist() == ["withdrawn", "", "", ""]
    assert intake_steps.find_deliveries(run) == []


def test_a_report_on_a_snapshot_older_than_an_undo_says_what_came_back(run: Run) -> None:
    made(run, ("relabel", "file", row("NORMAL/patient1_1.png"), "PNEUMONIA"))
    made(run, ("withdraw", "patient", "patient2"))
    old = Dataset(run.settings).snapshot()
    assert old is not None
    for number in ("2", "3"):
        made(run, ("undo", "amendment", number))
    assert Dataset(run.settings).since(old) == (2, 0, 1)


def test_a_rejected_delivery_is_judged_anew_once_an_amendment_may_let_its_files_in(settings: Settings) -> None:
    run = Run(settings, who="Ada")
    lay(settings, "mon", MONDAY)
    ingest(run)
    copies = {f"PNEUMONIA/patient{n}_7.jpg": jpeg(picture(n, 200, 180), quality=55) for n in (1, 2, 3)}
    lay(settings, "tue", copies)
    assert not intake_steps.check_delivery(run, "tue").fit
    before = Path(settings.store, "intake", "tue", "checked.json").stat().st_mtime_ns
    assert not intake_steps.check_delivery(run, "tue").fit
    assert Path(settings.store, "intake", "tue", "checked.json").stat().st_mtime_ns == before
    made(run, *(("relabel", "file", row(f"NORMAL/patient{n}_1.png"), "PNEUMONIA") for n in (1, 2, 3)))
    assert intake_steps.check_delivery(run, "tue").quarantined == {}


def test_what_an_amendment_could_not_do_any_more_is_said_of_one_that_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run: Run) -> None:
        raise RegistryError("MLflow refused")

    monkeypatch.setattr(amend, "vouch", away)
    answer = made(run, ("withdraw", "patient", "patient2"))
    assert answer["warnings"] == [
        "the amendment is made, but MLflow does not know of the newest commit yet, the next night tells it: MLflow "
        "refused"
    ]
    assert amend.listed(run)[0]["stands"]


def test_the_answer_to_a_form_holds_no_hash_of_a_patient(run: Run) -> None:
    """Airflow keeps what a task returns."""
    patients = set(Dataset(run.settings).manifest("mon")["patient"])
    answer = amend.from_form(run, "withdraw-patient", row("PNEUMONIA/named.dcm"), "", WHY)
    assert not [patient for patient in patients if patient in str(answer)]


# what is refused


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ([("relabel", "radiograph", "0123456789ab", "PNEUMONIA")], "knows 0 radiographs"),
        ([("relabel", "radiograph", "0123", "PNEUMONIA")], "8 to 64 of its digits"),
        ([("relabel", "radiograph", "../../etc/passwd", "PNEUMONIA")], "no digest"),
        ([("relabel", "file", row("NORMAL/patient1_1.png"), "FRACTURE")], "classes NORMAL, PNEUMONIA"),
        ([("relabel", "file", row("NORMAL/patient1_1.png"), "NORMAL")], "labelled NORMAL already"),
        ([("relabel", "file", "mon/99", "NORMAL")], "shows no radiograph"),
        ([("relabel", "file", "tue/1", "NORMAL")], "no row of a committed delivery"),
        ([("relabel", "patient", "patient2", "PNEUMONIA")], "name a radiograph"),
        ([("relabel", "patient", "4711^Ada", "PNEUMONIA")], "name a radiograph"),
        ([("relabel", "radiograph", "0123456789", "PNEUMONIA")], "knows 0 radiographs"),
        ([("withdraw", "delivery", "tue")], "knows 0 deliveries"),
        ([("undo", "amendment", "1")], "no amendment 1 stands"),
        ([("undo", "amendment", "x")], "no amendment of that number stands"),
        (
            [
                ("relabel", "file", row("NORMAL/patient1_1.png"), "PNEUMONIA"),
                ("relabel", "file", row("NORMAL/patient1_2.jpg"), "NORMAL"),
            ],
            "already|both",
        ),
        ([("withdraw", "patient", "patient2"), ("withdraw", "patient-of", "mon/99")], "shows no radiograph"),
        ([("withdraw", "patient", "nobody^here"), ("withdraw", "patient-of", "mon/99")], "shows no radiograph"),
        ([], "name one or more"),
    ],
)
def test_what_cant_be_done_changes_nothing_and_repeats_no_name(run: Run, named: list[Any], why: str) -> None:
    before = Dataset(run.settings).snapshot()
    with pytest.raises(AmendmentError, match=why) as raised:
        made(run, *named)
    assert [name for _, by, name, *_ in named if by == "patient" and name in str(raised.value)] == []
    assert amend.listed(run) == []
    assert Dataset(run.settings).snapshot() == before


def test_an_amendment_asks_for_a_reason_and_is_made_once(run: Run) -> None:
    with pytest.raises(AmendmentError, match="a reason"):
        made(run, ("withdraw", "patient", "patient2"), why="  ")
    made(run, ("withdraw", "patient", "patient2"))
    with pytest.raises(AmendmentError, match="amendment 2 withdrew it"):
        made(run, ("withdraw", "patient", "patient2"))
    with pytest.raises(AmendmentError, match="amendment 2 withdrew it"):
        made(run, ("relabel", "file", row("NORMAL/patient2_1.png"), "PNEUMONIA"))
    made(run, ("undo", "amendment", "2"))
    with pytest.raises(AmendmentError, match="there are: none"):
        made(run, ("undo", "amendment", "2"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("who,label\nx,NORMAL\n", "correct line 1"),
        ("", "correct line 1"),
        ("file,label\nmon/1,\n", "line 2"),
        ("file,label\nmon/1,NORMAL\n,NORMAL\n", "line 3"),
        ("radiograph,file,label\nabcdef0123,mon/1,NORMAL\n", "line 2"),
        ("file,label\nmon/1,NORMAL,more\n", "line 2"),
    ],
)
def test_a_list_that_is_not_clear_is_refused_by_its_line(text: str, why: str) -> None:
    with pytest.raises(AmendmentError, match=why):
        amend.of_table("relabel", text)


def test_a_line_of_a_list_that_cant_be_done_is_named(run: Run) -> None:
    for text, why in (
        ("file\nmon/1\nmon/99\n", "line 3 of the list: row 99"),
        ("radiograph\n0123456789\n", "line 2 of the list: the dataset knows 0"),
    ):
        with pytest.raises(AmendmentError, match=why):
            amend.amend(run, amend.of_table("withdraw", text), WHY)
    both = f"file,label\n{row('NORMAL/patient1_1.png')},PNEUMONIA\n{row('NORMAL/patient2_1.png')},NORMAL\n"
    with pytest.raises(AmendmentError, match=r"line 3 of the list: .* labelled NORMAL already"):
        amend.amend(run, amend.of_table("relabel", both), WHY)


def test_a_list_is_one_amendment(run: Run) -> None:
    text = f"\ufefffile,patient\n{row('NORMAL/patient1_1.png')},\n,4711^Ada\n"
    answer = amend.amend(run, amend.of_table("withdraw", text), WHY)
    assert [change["radiographs"] for change in answer["changes"]] == [2, 1]
    assert len(rows(run)) == 3
    made(run, ("undo", "amendment", str(answer["number"])))
    assert len(rows(run)) == len(MONDAY)


def test_an_amendment_is_a_link_of_the_chain(run: Run) -> None:
    for label in ("PNEUMONIA", "NORMAL"):
        made(run, ("relabel", "file", row("NORMAL/patient2_1.png"), label))
    place = Path(run.settings.store, "dataset", "commits", "00000002.json")
    place.write_text(place.read_text().replace(WHY, "nobody looked"))
    with pytest.raises(Damaged, match=r"chain of commits .* breaks at commits/00000003\.json"):
        Dataset(run.settings).amended()


# at once


def _relabel(settings: Settings, file: str, labels: list[str]) -> None:
    for label in labels:
        amend.amend(Run(settings, who="Ada"), [Named("relabel", "file", file, label)], WHY)


def _ingest(settings: Settings) -> None:
    ingest(Run(settings))


@pytest.mark.slow
def test_amendments_and_commits_at_once_take_one_place_each(run: Run) -> None:
    """Two people correct two radiographs ten times each, while a night takes in three deliveries that copy them."""
    labels = list(itertools.islice(itertools.cycle(["PNEUMONIA", "NORMAL"]), 10))
    for number in range(3):
        copies = {f"NORMAL/patient{n}_{number + 3}.jpg": _copy(n, number) for n in (1, 2)}
        lay(run.settings, f"tue{number}", {**copies, f"NORMAL/patient{20 + number}_1.png": png(seed=20 + number)})
    context = multiprocessing.get_context("spawn")
    tasks = [
        context.Process(target=_relabel, args=(run.settings, row("NORMAL/patient1_1.png"), labels)),
        context.Process(target=_relabel, args=(run.settings, row("NORMAL/patient2_1.png"), labels)),
        context.Process(target=_ingest, args=(run.settings,)),
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(300)
    assert [task.exitcode for task in tasks] == [0, 0, 0]
    dataset = Dataset(run.settings)
    assert len(dataset.commits.read()) == 24
    assert len(dataset.commits.manifests()) == 4
    now = rows(run)
    assert now["digest"].is_unique
    assert set(now["label"][now["digest"].isin([digest(run, f"NORMAL/patient{n}_1.png") for n in (1, 2)])]) == {
        "NORMAL"
    }
    # Each delivery was judged against the amendments before it, and against no other.
    said = {commit.number: commit for commit in dataset.commits.read()}
    for commit in dataset.commits.manifests():
        for n in (1, 2):
            table = dataset.manifest(commit.manifest)
            mine = table[table["file"].str.startswith(f"NORMAL/patient{n}_")]
            earlier = [one.amendment for number, one in said.items() if number < commit.number and one.amendment]
            last = [
                c.label for a in earlier for c in a.changes if digest(run, f"NORMAL/patient{n}_1.png") in c.radiographs
            ]
            settled = (last or ["NORMAL"])[-1]
            assert set(mine["verdict"]) == ({"accepted"} if settled == "NORMAL" else {"quarantined"})


def _copy(patient: int, number: int) -> bytes:
    return jpeg(np.asarray(picture(patient, 200, 180)), quality=50 + 7 * number)


def test_classes_that_are_not_the_datasets_are_refused(run: Run) -> None:
    other = replace(run, settings=run.settings.model_copy(update={"classes": ("NORMAL", "PNEUMONIA", "COVID")}))
    with pytest.raises(DatasetError, match="another setting: classes"):
        made(other, ("relabel", "file", row("NORMAL/patient1_1.png"), "COVID"))


def test_one_flipped_bit_of_the_newest_amendment_is_named_or_read(run: Run) -> None:
    """By themselves commits can't tell that the last one was changed (the registry can); none is half understood."""
    store = Dataset(run.settings).store
    for number, named in enumerate(
        [
            ("relabel", "radiograph", digest(run, "NORMAL/patient2_1.png"), "PNEUMONIA"),
            ("undo", "amendment", "2"),
            ("withdraw", "patient", "patient3", "", True),
        ],
        start=2,
    ):
        made(run, named)
        place, said = f"commits/{number:08d}.json", list[str]()
        data = store.read(place)
        for flipped in range(0, 8 * len(data), 11):
            changed = bytearray(data)
            changed[flipped // 8] ^= 1 << flipped % 8
            store.write(place, bytes(changed))
            try:
                amend.listed(run)
                rows(run)
                kept_rows.drop_erased(Dataset(run.settings))
            except (Damaged, DatasetError) as error:
                said.append(str(error))
        store.write(place, data)
        assert len(said) > 0
        assert [text for text in said if place not in text] == []
