"""Labels that come after their files, and labels that change: over whole nights of the intake."""

from __future__ import annotations

from pathlib import Path

import pytest
from laid import ingest, lay
from planted import files as planted
from s3_server import BUCKET, S3Server
from samples import dicom, jpeg

from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import late, placing
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

RIS = """
table = "{place}"
[key]
by = "{by}"
columns = ["id"]
[label]
column = "label"
left_out = ["uncertain"]
"""


def site(settings: Settings, tmp_path: Path, place: str = "../ris.csv", by: str = "accession") -> Run:
    """A site whose labels come from a table; its rows are written by `write`."""
    (tmp_path / "ris.toml").write_text(RIS.format(place=place, by=by))
    Path(settings.incoming).mkdir(parents=True, exist_ok=True)
    return Run(settings.model_copy(update={"labels": str(tmp_path / "ris.toml")}))


def write(run: Run, *rows: str, place: str = "ris.csv") -> None:
    Path(run.settings.incoming, place).write_text("\n".join(["id,label", *rows, ""]))


def four(run: Run) -> None:
    lay(
        run.settings, "mon", {f"{n}.dcm": dicom(seed=n, AccessionNumber=f"A77{n}", PatientID=f"p{n}") for n in range(4)}
    )


def standing(run: Run) -> dict[str, str]:
    """What became of each file, by the newest part of its delivery that has it."""
    dataset = Dataset(run.settings)
    tables = {key: dataset.manifest(key) for key in sorted(dataset.manifests())}
    return {row.file: row.reason or row.label for table in tables.values() for row in table.itertuples()}


def test_files_are_judged_when_their_label_arrives_nights_later(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path)
    four(run)
    write(run)
    ingest(run)
    assert set(standing(run).values()) == {"unlabelled"}
    assert intake_steps.find_deliveries(run) == []
    write(run, "A770,normal", "A771,uncertain")
    ingest(run)
    assert standing(run) == {"0.dcm": "NORMAL", "1.dcm": "unlabelled", "2.dcm": "unlabelled", "3.dcm": "unlabelled"}
    assert intake_steps.find_deliveries(run) == []
    write(run, "A770,normal", "A771,pneumonia", "A772,normal")
    ingest(run)
    assert standing(run) == {"0.dcm": "NORMAL", "1.dcm": "PNEUMONIA", "2.dcm": "NORMAL", "3.dcm": "unlabelled"}
    assert Dataset(run.settings).manifests() == ["mon", "mon+2", "mon+3"]


def test_a_table_beside_deliveries_may_have_any_name(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path, "../labels.csv")
    four(run)
    write(run, "A770,normal", place="labels.csv")
    left_out: list[str] = []
    assert intake_steps.find_deliveries(run, left_out) == ["mon"]
    assert left_out == []
    ingest(run)
    assert standing(run)["0.dcm"] == "NORMAL"


@pytest.mark.parametrize("by", ["accession", "name"])
def test_a_table_in_the_delivery_may_grow(settings: Settings, tmp_path: Path, by: str) -> None:
    run = site(settings, tmp_path, "ris.csv", by)
    ids = ["A770", "A771"] if by == "accession" else ["0", "1"]
    four(run)
    write(run, f"{ids[0]},normal", place="mon/ris.csv")
    ingest(run)
    write(run, f"{ids[0]},normal", f"{ids[1]},pneumonia", place="mon/ris.csv")
    ingest(run)
    assert standing(run) == {"0.dcm": "NORMAL", "1.dcm": "PNEUMONIA", "2.dcm": "unlabelled", "3.dcm": "unlabelled"}


def test_labels_csv_may_grow(settings: Settings) -> None:
    run = Run(settings)
    files = {f"{n}.jpg": jpeg(seed=n) for n in range(9)}
    listed = "file,label\n" + "".join(f"{n}.jpg,NORMAL\n" for n in range(8))
    lay(settings, "mon", {**files, "labels.csv": listed.encode()})
    ingest(run)
    assert standing(run)["8.jpg"] == "not-listed"
    lay(settings, "mon", {"labels.csv": f"{listed}8.jpg,PNEUMONIA\n".encode()})
    ingest(run)
    assert standing(run)["8.jpg"] == "PNEUMONIA"


def test_what_was_left_out_is_judged_once_it_has_a_class(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path)
    four(run)
    write(run, "A770,uncertain", "A771,normal")
    ingest(run)
    assert standing(run)["0.dcm"] == "left-out"
    write(run, "A770,pneumonia", "A771,normal")
    ingest(run)
    assert standing(run)["0.dcm"] == "PNEUMONIA"


def test_a_mapping_that_changes_is_looked_at_like_a_table(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path, "ris.csv")
    four(run)
    write(run, "A770,uncertain", "A771,normal", place="mon/ris.csv")
    ingest(run)
    assert intake_steps.find_deliveries(run) == []
    text = (tmp_path / "ris.toml").read_text().replace('left_out = ["uncertain"]', "")
    (tmp_path / "ris.toml").write_text(f'{text}[label.classes]\nNORMAL = ["normal"]\nPNEUMONIA = ["uncertain"]\n')
    ingest(run)
    assert standing(run)["0.dcm"] == "PNEUMONIA"


def test_a_label_that_changes_is_proposed_and_not_taken(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path)
    four(run)
    write(run, "A770,normal", "A771,normal")
    ingest(run)
    before = Dataset(run.settings).snapshot()
    write(run, "A770,pneumonia", "A771,normal")
    ingest(run)
    assert Dataset(run.settings).snapshot() == before
    (one,) = late.proposals(run.store(), Dataset(run.settings).history())
    assert (one.manifest, one.row, one.label, one.says) == ("mon", 0, "NORMAL", "PNEUMONIA")
    write(run, "A770,normal", "A771,normal")
    ingest(run)
    assert late.proposals(run.store(), Dataset(run.settings).history()) == []


@pytest.mark.parametrize("place", ["../ris.csv", "ris.csv"])
def test_a_table_that_grows_between_check_and_commit_is_looked_at_by_the_next_night(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    run = site(settings, tmp_path, place)
    where = "ris.csv" if place.startswith("..") else "mon/ris.csv"
    four(run)
    write(run, "A770,normal", "A771,normal", place=where)
    assert intake_steps.check_delivery(run, "mon").fit
    write(run, "A770,pneumonia", "A771,normal", "A772,pneumonia", place=where)
    intake_steps.commit_deliveries(run, ["mon"])
    assert [standing(run)[file] for file in ("0.dcm", "2.dcm")] == ["NORMAL", "unlabelled"]
    ingest(run)
    assert [standing(run)[file] for file in ("0.dcm", "2.dcm")] == ["NORMAL", "PNEUMONIA"]
    (one,) = late.proposals(run.store(), Dataset(run.settings).history())
    assert (one.label, one.says) == ("NORMAL", "PNEUMONIA")


@pytest.mark.slow
def test_a_table_may_lie_in_s3(s3: S3Server, settings: Settings, tmp_path: Path) -> None:
    run = site(settings.model_copy(update={"s3_endpoint": s3.endpoint}), tmp_path, f"s3://{BUCKET}/tables/ris.csv")
    bucket = open_store(f"s3://{BUCKET}/tables", run.settings)
    four(run)
    with pytest.raises(StorageUnavailable, match="the label table that XRAY_LABELS names can't be read"):
        intake_steps.check_delivery(run, "mon")
    bucket.write("ris.csv", b"id,label\nA770,normal\n")
    assert [(place, size) for place, size, _ in placing.listed_outside(run.settings)] == [
        (f"s3://{BUCKET}/tables/ris.csv", 21)
    ]
    ingest(run)
    bucket.write("ris.csv", b"id,label\nA770,normal\nA771,pneumonia\n")
    ingest(run)
    assert standing(run) == {"0.dcm": "NORMAL", "1.dcm": "PNEUMONIA", "2.dcm": "unlabelled", "3.dcm": "unlabelled"}


def test_a_table_that_did_not_change_is_not_read_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = site(settings, tmp_path)
    four(run)
    write(run, "A770,normal")
    ingest(run)
    assert intake_steps.find_deliveries(run) == []
    monkeypatch.setattr(placing.label_table, "read", None)
    assert intake_steps.find_deliveries(run) == []


def test_a_rejected_delivery_is_judged_anew_when_the_table_beside_it_changes(
    settings: Settings, tmp_path: Path
) -> None:
    run = site(settings, tmp_path)
    four(run)
    write(run, "A770,norml")
    assert not intake_steps.check_delivery(run, "mon").fit
    write(run, "A770,normal")
    assert intake_steps.check_delivery(run, "mon").fit


def test_a_table_that_can_not_be_read_stops_no_other_delivery(settings: Settings, tmp_path: Path) -> None:
    run = site(settings, tmp_path)
    lay(run.settings, "folders", {"NORMAL/a.jpg": jpeg(seed=8)})
    ingest(run)
    assert standing(run) == {"NORMAL/a.jpg": "NORMAL"}


KEYS = {
    "accession": "AccessionNumber",
    "sop-uid": "SOPInstanceUID",
    "series-uid": "SeriesInstanceUID",
    "study-uid": "StudyInstanceUID",
    "patient-and-date": "PatientID",
}


@pytest.mark.parametrize("by", KEYS)
def test_no_identifier_is_anywhere_in_store_cache_or_log(
    settings: Settings, tmp_path: Path, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither of a table's rows nor of the files, whether they match or not, now or nights later."""
    caplog.set_level("DEBUG")
    run = site(settings, tmp_path, by=by)
    dated = by == "patient-and-date"
    if dated:
        mapping = tmp_path / "ris.toml"
        mapping.write_text(mapping.read_text().replace('["id"]', '["id", "day"]'))
    everywhere = {
        "StudyDate": "20260203",
        "AccessionNumber": "A5566",
        "PatientID": "P-7744",
        "StudyInstanceUID": "1.2.826.0.9",
    }
    names = [f"1.2.826.0.991.{n}{n}88" for n in range(4)]
    files = {f"{n}": dicom(seed=n, **everywhere | {KEYS[by]: name}) for n, name in enumerate(names[:3])}
    lay(run.settings, "mon", files)

    def rows(*said: tuple[int, str]) -> None:
        head = "id,day,label" if dated else "id,label"
        lines = [",".join([names[n], *(["2026-02-03"] if dated else []), label]) for n, label in said]
        Path(run.settings.incoming, "ris.csv").write_text("\n".join([head, *lines, ""]))

    rows((0, "normal"), (3, "pneumonia"))
    ingest(run)
    rows((0, "pneumonia"), (1, "normal"))
    ingest(run)
    assert {"mon", "mon+2"} <= set(Dataset(run.settings).manifests())
    words = [word.encode() for word in (*everywhere.values(), *names, "2026-02-03")]
    kept = list(planted(run.settings.home, without=("incoming",)))
    assert any("looked.json" in name for name, _ in kept)
    assert any(name.endswith("mon+2.parquet") for name, _ in kept)
    for name, data in [*kept, ("the log", caplog.text.encode())]:
        assert [word for word in words if word in data] == [], name
