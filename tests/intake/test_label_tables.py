"""Tables of labels, read by a mapping: the published datasets' own, a hospital's, and hostile ones."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import (
    CHEXPERT_HEAD,
    MIMIC_LABELS_HEAD,
    MIMIC_METADATA_HEAD,
    NIH_HEAD,
    PADCHEST_HEAD,
    RSNA_HEAD,
    VINDR_TEST_HEAD,
    VINDR_TRAIN_HEAD,
    chexpert,
    mimic,
    nih,
    padchest,
    table,
    votes,
)
from samples import dicom, jpeg

from xray_pipeline.base.errors import ConfigError, DeliveryError, StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.shipped import names
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.intake import deliveries
from xray_pipeline.intake.check import check
from xray_pipeline.intake.label_mapping import named
from xray_pipeline.intake.rules import judging_digest
from xray_pipeline.intake.verdicts import Intake

KEY = b"key of the tests"
OUT, NONE, CONFLICT = "left-out", "unlabelled", "label-conflict"


def lay(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def judged(folder: Path, settings: Settings, key: bytes = KEY) -> Intake:
    delivery = deliveries.at(str(folder), settings, EMPTY, time.time() + 1_000_000)
    return check(delivery, settings, EMPTY, key)


def outcomes(result: Intake) -> dict[str, str]:
    return {row.file: row.reason or row.label for row in result.table.itertuples()}


def reads(settings: Settings, labels: str | Path) -> Settings:
    return settings.model_copy(update={"labels": str(labels)})


PRESETS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nih-cxr14": (
        {
            "Data_Entry_2017_v2020.csv": table(
                NIH_HEAD,
                nih("00000001_000.png", "No Finding", "1"),
                nih("00000001_001.png", "Infiltration|Pneumonia", "1"),
                nih("00000002_000.png", "Effusion", "2"),
            )
        },
        {
            "images_001/images/00000001_000.png": "NORMAL",
            "images_001/images/00000001_001.png": "PNEUMONIA",
            "images_002/images/00000002_000.png": OUT,
            "images_002/images/00000003_000.png": NONE,
        },
    ),
    "chexpert": (
        {
            "train.csv": table(
                CHEXPERT_HEAD,
                chexpert("train/patient00001/study1/view1_frontal.jpg", No_Finding="1.0"),
                chexpert("train/patient00002/study1/view1_frontal.jpg", Pneumonia="1.0", Lung_Opacity="1.0"),
                chexpert("train/patient00002/study1/view2_lateral.jpg", "Lateral", Pneumonia="1.0"),
                chexpert("train/patient00003/study1/view1_frontal.jpg", Pneumonia="-1.0"),
                chexpert("train/patient00004/study1/view1_frontal.jpg", Edema="1.0"),
            ),
            "valid.csv": table(
                CHEXPERT_HEAD,
                chexpert("valid/patient64541/study1/view1_frontal.jpg", No_Finding="1.0", Pneumonia="0.0"),
            ),
        },
        {
            "train/patient00001/study1/view1_frontal.jpg": "NORMAL",
            "train/patient00002/study1/view1_frontal.jpg": "PNEUMONIA",
            "train/patient00002/study1/view2_lateral.jpg": OUT,
            "train/patient00003/study1/view1_frontal.jpg": OUT,
            "train/patient00004/study1/view1_frontal.jpg": OUT,
            "valid/patient64541/study1/view1_frontal.jpg": "NORMAL",
        },
    ),
    "mimic-cxr": (
        {
            "mimic-cxr-2.0.0-metadata.csv": table(
                MIMIC_METADATA_HEAD,
                mimic("02aa804e-bde0afdd", "50414267"),
                mimic("174413ec-4ec4c1f7", "50414267", "LATERAL"),
                mimic("2a2277a9-b0ded155", "53189527", "AP"),
                mimic("e084de3b-be89b11e", "53911762"),
            ),
            "mimic-cxr-2.0.0-chexpert.csv": table(
                MIMIC_LABELS_HEAD,
                {"subject_id": "10000001", "study_id": "50414267", "No Finding": "1.0"},
                {"subject_id": "10000001", "study_id": "53189527", "Pneumonia": "1.0"},
            ),
        },
        {
            "files/p10/p10000001/s50414267/02aa804e-bde0afdd.jpg": "NORMAL",
            "files/p10/p10000001/s50414267/174413ec-4ec4c1f7.jpg": OUT,
            "files/p10/p10000001/s53189527/2a2277a9-b0ded155.jpg": "PNEUMONIA",
            "files/p10/p10000001/s53911762/e084de3b-be89b11e.jpg": NONE,
        },
    ),
    "rsna-pneumonia": (
        {
            "stage_2_detailed_class_info.csv": table(
                RSNA_HEAD,
                {"patientId": "0004cfab", "class": "No Lung Opacity / Not Normal"},
                {"patientId": "00313ee0", "class": "Normal"},
                {"patientId": "00436515", "class": "Lung Opacity"},
                {"patientId": "00436515", "class": "Lung Opacity"},
            ),
            "stage_2_train_labels.csv": "patientId,x,y,width,height,Target\n0004cfab,,,,,0\n",
        },
        {
            "stage_2_train_images/0004cfab.dcm": OUT,
            "stage_2_train_images/00313ee0.dcm": "NORMAL",
            "stage_2_train_images/00436515.dcm": "PNEUMONIA",
            "stage_2_test_images/000e3a7d.dcm": NONE,
        },
    ),
    "vindr-cxr": (
        {
            "annotations/image_labels_train.csv": table(
                VINDR_TRAIN_HEAD,
                *votes("50a418190bc3fb1ef1633bf9678929b3", "No finding", "No finding", "Pneumonia"),
                *votes("21a10246a5ec7af151081d0cd6d65dc9", "Pneumonia", "Pneumonia", "Cardiomegaly"),
                *votes("9a5094b2563a1ef3ff50dc5c7ff71345", "Cardiomegaly", "Cardiomegaly", "No finding"),
                *votes("051132a778e61a86eb147c7c6f564dfe", "No finding", "Pneumonia", "ILD"),
            ),
            "annotations/image_labels_test.csv": table(
                VINDR_TEST_HEAD, {"image_id": "002a34c58c5b758217ed1f584ccbcfe9", "No finding": "1"}
            ),
        },
        {
            "train/50a418190bc3fb1ef1633bf9678929b3.dicom": "NORMAL",
            "train/21a10246a5ec7af151081d0cd6d65dc9.dicom": "PNEUMONIA",
            "train/9a5094b2563a1ef3ff50dc5c7ff71345.dicom": OUT,
            "train/051132a778e61a86eb147c7c6f564dfe.dicom": CONFLICT,
            "test/002a34c58c5b758217ed1f584ccbcfe9.dicom": "NORMAL",
        },
    ),
    "padchest": (
        {
            "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": table(
                PADCHEST_HEAD,
                padchest("20536686640136348236148679891455886468.png", "['normal']"),
                padchest("135803415504923515076821959678074435083.png", "['pneumonia', 'infiltrates']"),
                padchest("313572750430997347502932654319389875966.png", "['normal']", "L"),
                padchest("48575129319920412518600042138391209149.png", "['COPD signs']"),
                padchest("113855343774216031107737439268243531979.png", ""),
            )
        },
        {
            "0/20536686640136348236148679891455886468.png": "NORMAL",
            "0/135803415504923515076821959678074435083.png": "PNEUMONIA",
            "1/313572750430997347502932654319389875966.png": OUT,
            "1/48575129319920412518600042138391209149.png": OUT,
            "1/113855343774216031107737439268243531979.png": NONE,
        },
    ),
    "kermany": (
        {},
        {
            "train/NORMAL/IM-0115-0001.jpeg": "NORMAL",
            "train/PNEUMONIA/person1_bacteria_1.jpeg": "PNEUMONIA",
            "test/NORMAL/NORMAL2-IM-0035-0001.jpeg": "NORMAL",
        },
    ),
}


def test_each_preset_has_a_table_here() -> None:
    assert sorted(PRESETS) == names("intake", "mappings")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_read_the_published_tables(tmp_path: Path, settings: Settings, preset: str) -> None:
    tables, wanted = PRESETS[preset]
    images = {
        file: dicom(seed=n) if file.endswith(("dcm", "dicom")) else jpeg(seed=n) for n, file in enumerate(wanted, 1)
    }
    result = judged(lay(tmp_path / "in", {**tables, **images}), reads(settings, preset))
    assert outcomes(result) == wanted
    assert set(result.result["bookkeeping"]) == set(tables)
    if tables:
        labels = result.result["labels"]
        assert labels["unlabelled"] == list(wanted.values()).count(NONE)
        assert labels["left_out"] == list(wanted.values()).count(OUT)
        assert labels["digest"][:12] in result.page
    accepted = result.table[result.table["verdict"] == "accepted"]
    if preset == "nih-cxr14":
        assert accepted["patient"].nunique() == 1  # by the table
    if preset == "chexpert":
        assert set(accepted["view"]) == {"FRONTAL"}


RIS = """
table = "ris.csv"
[key]
by = "accession"
columns = ["Accession"]
[label]
column = "Diagnosis"
left_out = ["uncertain"]
[label.classes]
NORMAL = ["o.B.", "normal"]
PNEUMONIA = ["Pneumonie"]
"""


def ris(tmp_path: Path, text: str = RIS) -> Path:
    path = tmp_path / "ris.toml"
    path.write_text(text, encoding="utf-8")
    return path


def accession(number: str, seed: int, **tags: str) -> bytes:
    return dicom(seed=seed, AccessionNumber=number, **tags)


FOUR = {
    "a": accession("0012", 1),
    "b": accession("0013", 2),
    "c": accession("0014", 3),
    "d": accession("0015", 4),
}
ROWS = "Accession;Diagnosis\n0012;o.B.\n0013;PNEUMONIE\n0014;uncertain\n"


@pytest.mark.parametrize(
    "text",
    [
        ROWS.encode(),
        b"\xef\xbb\xbf" + ROWS.encode(),
        ROWS.encode("utf-16"),
        ROWS.replace(";", "\t").encode(),
        ROWS.replace(";", ",").encode(),
        (ROWS + "0012;o.B.\n").encode(),
        ROWS.replace("0012", '="0012"').encode(),
        (ROWS + ";normal\n=CMD();normal\n0015;\n9999;normal\n").encode(),
    ],
    ids=["utf-8", "bom", "utf-16", "tabs", "commas", "twice alike", "excel's zeros", "rows of nothing"],
)
def test_a_table_in_any_usual_form_is_matched_by_accession_number(
    tmp_path: Path, settings: Settings, text: bytes
) -> None:
    result = judged(lay(tmp_path / "in", {**FOUR, "ris.csv": text}), reads(settings, ris(tmp_path)))
    assert outcomes(result) == {"a": "NORMAL", "b": "PNEUMONIA", "c": OUT, "d": NONE}
    assert result.fit
    assert result.result["labels"]["matched"] == 3
    assert result.result["labels"]["key"] == "accession"


def test_a_table_may_be_latin_1_when_that_is_told(tmp_path: Path, settings: Settings) -> None:
    text = "Accession;Diagnosis\n0012;unauffällig\n".encode("latin-1")
    lay(tmp_path / "in", {**FOUR, "ris.csv": text})
    mapped = RIS.replace('"o.B."', '"unauffällig"')
    with pytest.raises(DeliveryError, match=r"line 2 of ris\.csv .* is not UTF-8; .*say its encoding"):
        judged(tmp_path / "in", reads(settings, ris(tmp_path, mapped)))
    told = f'encoding = "latin-1"\n{mapped}'
    assert outcomes(judged(tmp_path / "in", reads(settings, ris(tmp_path, told))))["a"] == "NORMAL"


def test_a_table_may_be_utf_16_without_a_mark_when_that_is_told(tmp_path: Path, settings: Settings) -> None:
    told = reads(settings, ris(tmp_path, f'encoding = "utf-16"\n{RIS}'))
    for order in ("utf-16-le", "utf-16-be"):
        lay(tmp_path / "in", {**FOUR, "ris.csv": ROWS.encode(order)})
        assert outcomes(judged(tmp_path / "in", told))["a"] == "NORMAL"
    lay(tmp_path / "in", {"ris.csv": ROWS})
    with pytest.raises(DeliveryError, match="is not UTF-16, as its mapping says"):
        judged(tmp_path / "in", told)


def test_a_table_may_be_parquet(tmp_path: Path, settings: Settings) -> None:
    out = io.BytesIO()
    frame = pd.DataFrame({"Accession": ["0012", "0013"], "Diagnosis": ["normal", None], "other": [1, 2]})
    frame.to_parquet(out)
    mapped = RIS.replace("ris.csv", "ris.parquet")
    lay(tmp_path / "in", {**FOUR, "ris.parquet": out.getvalue()})
    found = outcomes(judged(tmp_path / "in", reads(settings, ris(tmp_path, mapped))))
    assert found == {"a": "NORMAL", "b": NONE, "c": NONE, "d": NONE}


@pytest.mark.parametrize(
    ("numbers", "labels", "wanted"),
    [
        (pa.array([12, 13]), pa.array(["normal", "normal"]), "2 with leading zeros left aside"),
        (pa.array([12.0, None]), pa.array(["normal", "normal"]), "1 with leading zeros left aside"),
        (pa.array(["0012", "0013"]), pa.array(["normal", None]).dictionary_encode(), "NORMAL"),
        (pa.array([b"0012", None]), pa.array(["normal", None]), "NORMAL"),
        (pa.array(["0012", "0013"]), pa.nulls(2), NONE),
        (pa.array(["0012", "0013"]), pa.array([["normal"], []]), "lists or records in Diagnosis"),
        (pa.array([{"a": "0012"}, None]), pa.array(["normal", None]), "lists or records in Accession"),
        (pa.array(["0\x0012", ""]), pa.array(["normal", None]), r"row 1 of ris\.parquet .* holds a NUL"),
        (pa.array([b"00\xff12", b""]), pa.array(["normal", None]), "not Parquet that can be read"),
    ],
    ids=["int", "float", "choices", "bytes", "nothing", "list", "struct", "NUL", "no text"],
)
def test_parquet_of_other_types_is_read_as_people_write_it_or_refused(
    tmp_path: Path, settings: Settings, numbers: pa.Array, labels: pa.Array, wanted: str
) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"Accession": numbers, "Diagnosis": labels, "other": [{"a": 1}, None]}), out)
    lay(tmp_path / "in", {**FOUR, "ris.parquet": out.getvalue()})
    mapped = reads(settings, ris(tmp_path, RIS.replace("ris.csv", "ris.parquet")))
    if wanted not in ("NORMAL", NONE) and "left aside" not in wanted:
        with pytest.raises(DeliveryError, match=wanted):
            judged(tmp_path / "in", mapped)
        return
    result = judged(tmp_path / "in", mapped)
    assert outcomes(result)["a"] == ("NORMAL" if wanted == "NORMAL" else NONE)
    assert result.result["labels"]["mismatches"] == ([wanted] if "left aside" in wanted else [])


def test_tables_that_contradict_each_other_are_a_conflict(tmp_path: Path, settings: Settings) -> None:
    head = "Accession;Diagnosis\n"
    tables = {"one.csv": f"{head}0012;normal\n0013;normal\n", "two.csv": f"{head}0012;Pneumonie\n0014;normal\n"}
    mapped = RIS.replace('"ris.csv"', '["one.csv", "two.csv"]')
    result = judged(lay(tmp_path / "in", {**FOUR, **tables}), reads(settings, ris(tmp_path, mapped)))
    assert outcomes(result) == {"a": CONFLICT, "b": "NORMAL", "c": "NORMAL", "d": NONE}
    assert result.table["detail"][0].endswith("last in line 2 of two.csv")


def test_what_a_spreadsheet_did_to_numbers_is_said(tmp_path: Path, settings: Settings) -> None:
    text = "Accession;Diagnosis\n1,23E+11;normal\n12;normal\n"
    result = judged(lay(tmp_path / "in", {**FOUR, "ris.csv": text}), reads(settings, ris(tmp_path)))
    assert set(outcomes(result).values()) == {NONE}
    said = " ".join(result.warnings)
    assert "1 with leading zeros left aside" in said
    assert "1 rows of ris.csv have a number that a spreadsheet shortened" in said


def test_a_cell_may_hold_line_ends_in_quotes(tmp_path: Path, settings: Settings) -> None:
    text = 'Accession;Report;Diagnosis\n0012;"one\ntwo\r\nthree";normal\n0013;x;norml\n'
    lay(tmp_path / "in", {**FOUR, "ris.csv": text})
    with pytest.raises(DeliveryError, match=r"line 5 of ris\.csv .*did you mean NORMAL"):
        judged(tmp_path / "in", reads(settings, ris(tmp_path)))
    lay(tmp_path / "in", {"ris.csv": text.replace("norml", "normal")})
    assert outcomes(judged(tmp_path / "in", reads(settings, ris(tmp_path))))["b"] == "NORMAL"


@pytest.mark.parametrize(
    ("by", "columns", "row", "tags"),
    [
        ("sop-uid", '["id"]', "1.2.3", {"SOPInstanceUID": "1.2.3"}),
        ("series-uid", '["id"]', "1.2.4", {"SeriesInstanceUID": "1.2.4"}),
        ("study-uid", '["id"]', "1.2.5", {"StudyInstanceUID": "1.2.5"}),
        ("patient-and-date", '["id", "day"]', "P1,2026-11-30", {"PatientID": "P1", "StudyDate": "20261130"}),
        ("patient-and-date", '["id", "day"]', "P1,30.11.2026", {"PatientID": "P1", "StudyDate": "20261130"}),
        ("patient-and-date", '["id", "day"]', "P1,20261130", {"PatientID": "P1", "StudyDate": "20261130"}),
        ("name", '["id"]', "x", {}),
        ("path", '["id"]', "ward/x.dcm", {}),
    ],
)
def test_keys(tmp_path: Path, settings: Settings, by: str, columns: str, row: str, tags: dict[str, str]) -> None:
    text = f'table = "t.csv"\n[key]\nby = "{by}"\ncolumns = {columns}\n[label]\ncolumn = "label"\n'
    files = {"ward/x.dcm": dicom(seed=1, **tags), "ward/y.dcm": dicom(seed=2)}
    head = "id,day,label" if "," in row else "id,label"
    lay(tmp_path / "in", {**files, "t.csv": f"{head}\n{row},normal\n", "labels.toml": text})
    assert outcomes(judged(tmp_path / "in", settings)) == {"ward/x.dcm": "NORMAL", "ward/y.dcm": NONE}


def test_a_pattern_finds_the_key_in_a_path(tmp_path: Path, settings: Settings) -> None:
    text = """
table = "t.csv"
[key]
columns = ["patient", "study"]
pattern = 'p(\\d+)/s(\\d+)/'
[label]
column = "label"
"""
    files = {"p1/s1/a.jpg": jpeg(seed=1), "p1/s1/b.jpg": jpeg(seed=2), "p1/s2/a.jpg": jpeg(seed=3)}
    lay(tmp_path / "in", {**files, "t.csv": "patient,study,label\n1,1,normal\n"})
    found = outcomes(judged(tmp_path / "in", reads(settings, ris(tmp_path, text))))
    assert found == {"p1/s1/a.jpg": "NORMAL", "p1/s1/b.jpg": "NORMAL", "p1/s2/a.jpg": NONE}


def test_a_table_may_lie_beside_all_deliveries(tmp_path: Path, settings: Settings) -> None:
    text = RIS.replace("ris.csv", "../ris.csv")
    lay(tmp_path, {"ris.csv": ROWS})
    lay(tmp_path / "in", FOUR)
    lay(tmp_path / "folders", {"NORMAL/a.jpg": jpeg(seed=7)})
    mapped = reads(settings, ris(tmp_path, text))
    assert outcomes(judged(tmp_path / "in", mapped)) == {"a": "NORMAL", "b": "PNEUMONIA", "c": OUT, "d": NONE}
    assert outcomes(judged(tmp_path / "folders", mapped)) == {"NORMAL/a.jpg": "NORMAL"}
    (tmp_path / "ris.csv").unlink()
    with pytest.raises(StorageUnavailable, match="label table that XRAY_LABELS names"):
        judged(tmp_path / "in", mapped)


def test_a_delivery_with_no_label_yet_is_fit(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path / "in", {**FOUR, "ris.csv": "Accession;Diagnosis\n"})
    result = judged(tmp_path / "in", reads(settings, ris(tmp_path)))
    assert set(outcomes(result).values()) == {NONE}
    assert result.fit


def test_only_what_is_sound_waits_for_a_label(tmp_path: Path, settings: Settings) -> None:
    lay(tmp_path / "in", {**FOUR, "e": b"no image", "ris.csv": ROWS})
    assert outcomes(judged(tmp_path / "in", reads(settings, ris(tmp_path))))["e"] == "not-an-image"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (("12", "13"), "2 with leading zeros left aside"),
        (("ACC-0012", "ACC-0013"), "2 with a prefix of letters left aside"),
        (("00 12", "00-13"), "2 with blanks and punctuation left aside"),
        (("0012.dcm", "0013.dcm"), "2 with the extension left aside"),
    ],
)
def test_mismatches_are_said_by_kind_and_never_taken(
    tmp_path: Path, settings: Settings, numbers: tuple[str, str], said: str
) -> None:
    files = {"a": FOUR["a"], "b": FOUR["b"]}
    text = f"Accession;Diagnosis\n{numbers[0]};normal\n{numbers[1]};normal\n"
    result = judged(lay(tmp_path / "in", {**files, "ris.csv": text}), reads(settings, ris(tmp_path)))
    assert set(outcomes(result).values()) == {NONE}
    assert result.result["labels"]["mismatches"] == [said]
    assert said in " ".join(result.warnings)
    assert not any(number in result.page for number in ("0012", "0013", *numbers) if len(number) > 2)


def test_mismatches_of_case_are_said(tmp_path: Path, settings: Settings) -> None:
    files = {"a": accession("ab12", 1)}
    lay(tmp_path / "in", {**files, "ris.csv": "Accession;Diagnosis\nAB12;normal\n"})
    result = judged(tmp_path / "in", reads(settings, ris(tmp_path)))
    assert result.result["labels"]["mismatches"] == ["1 with upper and lower case left aside"]


def parquet(columns: dict[str, list[object]]) -> bytes:
    out = io.BytesIO()
    pd.DataFrame(columns).to_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS.encode() + b"0016;nor\0mal\n", r"line 5 of ris\.csv .* holds a NUL"),
        (ROWS.encode("utf-16-le"), "holds a NUL: it is damaged, or UTF-16"),
        (b"PK\3\4 a workbook", "is a spreadsheet or a zip; save it as CSV"),
        (b"\x1f\x8b\x08 gzip", "is compressed; unpack it"),
        (b"\x28\xb5\x2f\xfd zstd", "is compressed; unpack it"),
        (b"PAR1 nonsense PAR1", "is not Parquet"),
        (parquet({"Accession": [["0012"]], "Diagnosis": ["normal"]}), "holds lists or records in Accession"),
        (parquet({"Accession": ["0012"], "Diagnosis": [{"is": "normal"}]}), "holds lists or records in Diagnosis"),
        (b"", r"must start with the columns Accession,Diagnosis"),
        (b"Number;Diagnosis\n0012;normal\n", r"not there, or more than once: Accession"),
        (b"Accession;Diagnosis\n0012;=HYPERLINK(1)\n", "line 2 .*like no class"),
        (b"Accession;Diagnosis\n0012;Anna Berg\n", "line 2 .*like no class"),
        (b"Accession;Diagnosis\n0012;normal;more\n", "line 2 .* has 3 columns, not 2; quote a cell"),
        (b"Acession;Diagnosis\n0012;normal\n", r"not there, or more than once: Accession; did you mean Acession"),
        (ROWS.encode() + ROWS.encode(), r"line 5 of ris\.csv .* repeats the head"),
        (ROWS.encode() + b'0016;"normal\n0017;normal\n', r"is not CSV: .*each quote must be closed"),
        (ROWS.encode() + b"0016;" + b"x" * 200_000, "line 5 .*is not CSV: .*over 131,072 characters left out"),
        (ROWS.encode() + b"0016;unauff\xe4llig\n", r"line 5 .* is not UTF-8; .* \(encoding = \"latin-1\"\)"),
        (b"Accession;Diagnosis\n0012;Pneumoni\n", "did you mean PNEUMONIA.* say in the mapping what the value means"),
    ],
)
def test_tables_that_can_not_be_read_as_told_are_refused(
    tmp_path: Path, settings: Settings, text: bytes, message: str
) -> None:
    lay(tmp_path / "in", {**FOUR, "ris.csv": text})
    with pytest.raises(DeliveryError, match=message) as caught:
        judged(tmp_path / "in", reads(settings, ris(tmp_path)))
    assert "Anna" not in str(caught.value)


def test_a_table_of_50_megabytes_that_only_its_delivery_answers_for_is_refused(
    tmp_path: Path, settings: Settings
) -> None:
    text = ROWS.encode() + b"x" * 50_000_000
    lay(tmp_path / "in", {**FOUR, "ris.csv": text, "labels.toml": RIS})
    with pytest.raises(DeliveryError, match=r"has 50,\d+,\d+ bytes, 32,000,000 are allowed"):
        judged(tmp_path / "in", settings)


def test_several_tables_are_told_by_name_and_one_that_is_not_there_too(tmp_path: Path, settings: Settings) -> None:
    several = reads(settings, ris(tmp_path, RIS.replace('"ris.csv"', '["ris.csv", "old.csv"]')))
    result = judged(lay(tmp_path / "in", {**FOUR, "ris.csv": ROWS}), several)
    assert any("names, old.csv is not there" in line for line in result.warnings)
    lay(tmp_path / "in", {"old.csv": "Accession;Diagnosis\n0012;Pneumonie\n0015;normal\n"})
    result = judged(tmp_path / "in", several)
    assert "5 rows of ris.csv and old.csv" in result.warnings[0]
    assert outcomes(result) == {"a": CONFLICT, "b": "PNEUMONIA", "c": OUT, "d": "NORMAL"}


def test_a_row_that_says_nothing_yet_is_no_mismatch(tmp_path: Path, settings: Settings) -> None:
    files = {**FOUR, "ris.csv": "Accession;Diagnosis\n0012;\n13;normal\n"}
    result = judged(lay(tmp_path / "in", files), reads(settings, ris(tmp_path)))
    assert result.result["labels"]["mismatches"] == ["1 with leading zeros left aside"]


def test_rows_that_contradict_each_other_are_a_conflict(tmp_path: Path, settings: Settings) -> None:
    text = ROWS + "0012;Pneumonie\n0013;uncertain\n0014;uncertain\n"
    found = outcomes(judged(lay(tmp_path / "in", {**FOUR, "ris.csv": text}), reads(settings, ris(tmp_path))))
    assert found == {"a": CONFLICT, "b": CONFLICT, "c": OUT, "d": NONE}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RIS.replace("ris.csv", "/etc/passwd"), "names a table outside it"),
        (RIS.replace("ris.csv", "../ris.csv"), "names a table outside it"),
        (RIS.replace("ris.csv", "a/../../ris.csv"), "names a table outside it"),
        (RIS.replace("ris.csv", "s3://other/ris.csv"), "names a table outside it"),
        (RIS + "[patient]\ncolumn = 'Diagnosis'\npattern = '(a+)+$'\n", "regular expression; only XRAY_LABELS may"),
        ("preset = '/etc/some.toml'", "is no name of a preset"),
        ("table = [", "labels.toml of delivery in"),
        (b"\xff\xfe", "labels.toml of delivery in"),
        (RIS.replace("NORMAL", "NORML"), "did you mean NORMAL"),
        (RIS + "[patiant]\ncolumn = 'x'\n", "did you mean patient"),
        (RIS.replace("table =", "tabel ="), "tabel is no value of a label mapping; did you mean table"),
        (RIS.replace("column =", "colum ="), "label.colum is no value .*did you mean column"),
        (RIS.replace('"accession"', '"acession"'), "key.by 'acession' is none of .*did you mean accession"),
        (f'encoding = "latin1"\n{RIS}', "encoding 'latin1' is none of .*did you mean latin-1"),
        (RIS.replace('["uncertain"]', '"uncertain"'), "label.left_out must be a list"),
        (RIS.replace('"Pneumonie"', '"Normal"'), "'Normal' means both NORMAL and PNEUMONIA; leave one"),
        (RIS + "#" * 200_000, "bytes, 100,000 are allowed"),
        ("strict = true\n" + RIS, "strict is no value"),
        (RIS.replace('"ris.csv"', '"other.csv"'), r"has no other\.csv"),
    ],
)
def test_a_deliverys_own_mapping_is_not_believed_blindly(
    tmp_path: Path, settings: Settings, text: str | bytes, message: str
) -> None:
    lay(tmp_path / "in", {**FOUR, "ris.csv": ROWS, "labels.toml": text})
    with pytest.raises(DeliveryError, match=message):
        judged(tmp_path / "in", settings)


def test_a_delivery_may_name_a_preset_and_change_it(tmp_path: Path, settings: Settings) -> None:
    tables, wanted = PRESETS["rsna-pneumonia"]
    files = {file: dicom(seed=n) for n, file in enumerate(wanted, 1)}
    text = 'preset = "rsna-pneumonia"\n[label]\nleft_out = []\n[label.classes]\n'
    text += 'NORMAL = ["Normal", "No Lung Opacity / Not Normal"]\nPNEUMONIA = ["Lung Opacity"]\n'
    result = judged(lay(tmp_path / "in", {**tables, **files, "labels.toml": text}), settings)
    assert outcomes(result) == {**wanted, "stage_2_train_images/0004cfab.dcm": "NORMAL"}


def test_an_unknown_mapping_is_refused_with_what_there_is(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="did you mean nih-cxr14"):
        named("nih-cxr", settings.classes)


def test_names_of_several_files_are_refused(tmp_path: Path, settings: Settings) -> None:
    files = {"a/x.jpg": jpeg(seed=1), "b/x.jpg": jpeg(seed=2)}
    text = 'table = "t.csv"\n[key]\nby = "name"\ncolumns = ["id"]\n[label]\ncolumn = "label"\n'
    lay(tmp_path / "in", {**files, "t.csv": "id,label\nx.jpg,normal\n", "labels.toml": text})
    with pytest.raises(DeliveryError, match="1 files of delivery in have the name of another one"):
        judged(tmp_path / "in", settings)


def test_a_verdict_depends_on_the_mapping_and_the_table(tmp_path: Path, settings: Settings) -> None:
    path = ris(tmp_path)
    mapped = reads(settings, path)
    digests = {judging_digest(settings, KEY), judging_digest(mapped, KEY)}
    path.write_text(RIS.replace("uncertain", "unsicher"), encoding="utf-8")
    digests.add(judging_digest(mapped, KEY))
    assert len(digests) == 3
    path.write_text(RIS, encoding="utf-8")
    lay(tmp_path / "in", {**FOUR, "ris.csv": ROWS})
    first = judged(tmp_path / "in", mapped)
    lay(tmp_path / "in", {"ris.csv": ROWS + "0015;normal\n"})
    second = judged(tmp_path / "in", mapped)
    assert first.delivery.fingerprint != second.delivery.fingerprint
    assert first.result["labels"]["digest"] != second.result["labels"]["digest"]
    assert outcomes(second)["d"] == "NORMAL"


def test_no_identifier_is_in_what_is_kept(tmp_path: Path, settings: Settings) -> None:
    tags = {
        "PatientID": "P-774411",
        "StudyDate": "20260203",
        "StudyInstanceUID": "1.2.826.991",
        "AccessionNumber": "A998877",
    }
    files = {"a": dicom(seed=1, **tags), "b": dicom(seed=2, AccessionNumber="B112233")}
    lay(tmp_path / "in", {**files, "ris.csv": "Accession;Diagnosis\nA998877;normal\nC445566;normal\n"})
    result = judged(tmp_path / "in", reads(settings, ris(tmp_path)))
    kept = f"{result.table.to_csv()}{result.result}{result.page}{result.warnings}"
    assert not any(one in kept for one in (*tags.values(), "998877", "112233", "445566"))
