"""`xray amend` and `xray affected`: what is asked wrongly, what is printed, and that no patient's name is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Run
from samples import dicom, jpeg, lay_files

DELIVERY = {
    **{f"NORMAL/patient{n}_1.jpg": jpeg(seed=n) for n in range(1, 6)},
    "PNEUMONIA/named.dcm": dicom(seed=9, PatientID="PLANTED^Grace"),
}


@pytest.fixture
def home(xray: Run, tmp_path: Path) -> Path:
    """A home in which one delivery is committed."""
    lay_files(tmp_path / "home" / "incoming" / "mon", DELIVERY)
    assert xray("ingest").returncode == 0
    return tmp_path / "home"


@pytest.mark.parametrize(
    "arguments",
    [
        ("relabel", "--file", "mon/0", "--reason", "it is wrong"),
        ("relabel", "--label", "NORMAL", "--reason", "it is wrong"),
        ("relabel", "--file", "mon/0", "--radiograph", "0123456789", "--label", "NORMAL", "--reason", "it is wrong"),
        ("withdraw", "--reason", "it is wrong"),
        ("withdraw", "--file", "mon/0", "--from", "list.csv", "--reason", "it is wrong"),
        ("withdraw", "--file", "mon/0"),
        ("undo", "two", "--reason", "it is wrong"),
    ],
)
def test_wrong_usage_ends_with_2(xray: Run, arguments: tuple[str, ...]) -> None:
    assert xray("amend", *arguments).returncode == 2


def test_what_a_table_says_otherwise_is_proposed_and_taken_by_a_person(xray: Run, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "incoming" / "tue"
    files = {f"{n}.jpg": jpeg(seed=n) for n in range(1, 4)}
    lay_files(folder, {**files, "labels.csv": b"file,label\n1.jpg,NORMAL\n2.jpg,NORMAL\n3.jpg,PNEUMONIA\n"})
    assert xray("ingest").returncode == 0
    assert xray("amend", "proposed").stdout == "no label table says another class\n"
    lay_files(folder, {"labels.csv": b"file,label\n1.jpg,NORMAL\n2.jpg,PNEUMONIA\n3.jpg,PNEUMONIA\n"})
    said = xray("ingest")
    assert said.returncode == 0
    assert "another class of 1 radiographs" in said.stderr
    (tmp_path / "list.csv").write_text(proposed := xray("amend", "proposed").stdout)
    assert proposed.splitlines()[0] == "radiograph,label"
    assert xray("amend", "relabel", "--from", tmp_path / "list.csv", "--reason", "looked at").returncode == 0
    assert xray("amend", "proposed").stdout == "no label table says another class\n"


def test_what_is_amended_is_told_and_names_no_patient(xray: Run, home: Path) -> None:
    done = xray(
        "amend", "relabel", "--file", "mon/1", "--label", "PNEUMONIA", "--reason", "seen by two readers", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changes"][0]["label"] == "PNEUMONIA"
    done = xray("amend", "withdraw", "--patient", "PLANTED^Grace", "--reason", "consent withdrawn")
    assert done.stdout.startswith("amendment 3: withdraw patient, "), done.stderr
    assert ", 1 radiographs" in done.stdout
    assert xray("amend", "undo", "2", "--reason", "the second reader was wrong").returncode == 0
    refused = xray("amend", "withdraw", "--patient", "PLANTED^Grace", "--reason", "consent withdrawn")
    assert refused.returncode == 1
    assert "amendment 3 withdrew it" in refused.stderr
    lines = xray("amend", "list").stdout.splitlines()
    assert ["(undone)" in line for line in lines] == [True, False, False]
    told = json.loads(xray("amend", "list", "--json").stdout)
    assert [one["changes"][0]["action"] for one in told] == ["relabel", "withdraw", "undo"]
    kept = [path for path in (home / "store").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"PLANTED" in path.read_bytes()]


def test_a_list_is_amended_as_one_or_not_at_all(xray: Run, home: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("file,label\nmon/0,PNEUMONIA\nmon/99,PNEUMONIA\n")
    asked = ("amend", "relabel", "--from", listed, "--reason", "read again")
    done = xray(*asked)
    assert (done.returncode, "row 99 of delivery mon" in done.stderr) == (1, True)
    assert xray("amend", "list").stdout.strip() == "no amendment was ever made"
    listed.write_text("file,label\nmon/0,PNEUMONIA\nmon/1,PNEUMONIA\n")
    assert xray(*asked).stdout.count("amendment 2: relabel radiograph") == 2
    assert xray("affected", "--delivery", "mon").stdout.strip().startswith("no candidate learned from it")
    assert xray("affected").returncode == 2
    assert xray("amend", "relabel", "--from", tmp_path / "none.csv", "--reason", "read again").returncode == 1
