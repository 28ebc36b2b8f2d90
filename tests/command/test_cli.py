from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run
from samples import jpeg, picture, png
from small_models import small_classifier

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.command import answers


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "incoming" / "first"
    for label, seeds in (("NORMAL", range(6)), ("PNEUMONIA", range(10, 16))):
        (folder / label).mkdir(parents=True)
        for seed in seeds:
            (folder / label / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(seed=seed))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_classifier().save(tmp_path / "model")
    return tmp_path / "model"


def test_check_says_yes_and_writes_nothing(xray: Run, delivery: Path, tmp_path: Path) -> None:
    done = xray("check", delivery, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["fit"], said["files"], said["accepted"]) == (True, 12, 12)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["incoming"]


def test_check_writes_data_docs_on_request(xray: Run, delivery: Path, tmp_path: Path) -> None:
    done = xray("check", delivery, "--data-docs", "docs", XRAY_RULES__MIN_FILES="13")
    assert done.returncode == 3, done.stderr
    folder = tmp_path / "docs"
    index = (folder / "index.html").read_text()
    pages = {path.name.partition("-")[2]: path for path in folder.glob("validations/*/first/*/*.html")}
    assert sorted(pages) == ["accepted.html", "summary.html"]
    assert all(str(page.relative_to(folder)) in index for page in pages.values())
    assert "Failed" in pages["summary.html"].read_text()
    assert "Succeeded" in pages["accepted.html"].read_text()
    assert not any(b"patient0000" in path.read_bytes() for path in folder.rglob("*.html"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "home"]
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["incoming"]
    again = xray("check", delivery, "--data-docs", "docs")
    assert again.returncode == 1
    assert "docs is not empty; name a new or empty folder outside the deliveries" in again.stderr


def test_data_docs_are_not_written_into_a_delivery(xray: Run, delivery: Path) -> None:
    done = xray("check", delivery, "--data-docs", delivery / "docs")
    assert done.returncode == 1
    assert "lies among the deliveries, which are never written to" in done.stderr
    assert not (delivery / "docs").exists()
    beside = delivery.parent / "another" / "docs"
    assert xray("check", delivery, "--data-docs", beside).returncode == 1
    assert not beside.exists()


def test_a_misspelt_class_is_a_no_that_names_the_nearest(xray: Run, delivery: Path) -> None:
    (delivery / "PNEUMONIA").rename(delivery / "PNEUMONA")
    done = xray("check", delivery)
    assert done.returncode == 3
    assert "PNEUMONIA" in done.stdout


def test_ingest_counts_every_file(xray: Run, delivery: Path) -> None:
    (delivery / "NORMAL" / "empty.jpeg").write_bytes(b"")
    done = xray("ingest", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["deliveries"][0]["accepted"] == 12
    assert said["deliveries"][0]["quarantined"] == {"empty": 1}
    assert said["dataset"]["images"] == 12
    again = json.loads(xray("ingest", "--json").stdout)
    assert again["deliveries"] == []
    assert again["dataset"]["snapshot"] == said["dataset"]["snapshot"]


def test_check_and_ingest_print_how_the_files_add_up(xray: Run, delivery: Path) -> None:
    (delivery / "NORMAL" / "empty.jpeg").write_bytes(b"")
    checked = json.loads(xray("check", delivery, "--json").stdout)["accounting"]
    assert (checked["files"], checked["accepted"], checked["quarantined"], checked["holds"]) == (13, 12, 1, True)
    said = xray("ingest").stdout
    assert f"13 files = 12 accepted + 1 quarantined, each once; digest {checked['digest'][:12]}" in said
    listed = xray("quarantine", "--reason", "empty")
    assert listed.stdout.strip() == "first row 0: empty, the file has no bytes"
    anew = json.loads(xray("rejudge", "first", "--json").stdout)
    assert (anew["judged"], anew["accepted"]) == (1, 0)


def test_the_bad_file_of_a_rejected_delivery_is_named(xray: Run, delivery: Path) -> None:
    for n in range(9):
        (delivery / "NORMAL" / f"bad{n}.jpeg").write_bytes(b"")
    assert xray("ingest", "first").returncode == 3
    said = xray("quarantine", "--delivery", "first", "--paths").stdout.splitlines()
    assert said[:2] == [
        "delivery first is rejected: nothing of it is committed",
        "first row 0: empty, the file has no bytes, NORMAL/bad0.jpeg",
    ]


def test_check_ends_with_the_command_that_lists_what_is_refused(xray: Run, delivery: Path) -> None:
    (delivery / "NORMAL" / "empty.jpeg").write_bytes(b"")
    last = xray("check", delivery).stdout.splitlines()[-1]
    assert last == f"  its refused files, one by one: xray check {delivery} --paths"
    listed = xray(*shlex.split(last)[-3:])
    assert listed.stdout.splitlines()[0] == "row 0: empty, the file has no bytes, NORMAL/empty.jpeg"
    (row,) = json.loads(xray("check", delivery, "--paths", "--json").stdout)["refused"]
    assert row == {"row": 0, "reason": "empty", "detail": "the file has no bytes", "file": "NORMAL/empty.jpeg"}
    last = xray("ingest").stdout.splitlines()[-2]
    assert last == "  its refused files, one by one: xray quarantine --delivery first --paths"
    assert "NORMAL/empty.jpeg" in xray(*shlex.split(last)[-4:]).stdout


def test_check_of_a_whole_delivery_names_no_list(xray: Run, delivery: Path) -> None:
    assert "refused" not in xray("check", delivery).stdout


@pytest.mark.parametrize("fault", ["files", "folder"])
@pytest.mark.parametrize("verb", ["check", "ingest", "retrain"])
def test_a_rejected_delivery_is_told_once(xray: Run, delivery: Path, verb: str, fault: str) -> None:
    for n in range(9):
        (delivery / "NORMAL" / f"bad{n}.jpeg").write_bytes(b"")
    if fault == "folder":
        (delivery / "NORMAL").rename(delivery / "NORML")
    done = xray(verb, *([delivery] if verb == "check" else []))
    assert done.returncode == 3, done.stderr
    said = done.stdout + done.stderr
    assert said.count("did you mean NORMAL" if fault == "folder" else "Few files are quarantined") == 1
    assert len(re.findall("delivery first:? rejected", said.lower())) == 1
    assert done.stderr == ""


def test_what_is_left_out_is_in_the_json_of_an_ingest(xray: Run, delivery: Path) -> None:
    (delivery.parent / "more.zip").write_bytes(b"x")
    done = xray("ingest", "--json")
    assert "1 archives are left out" in json.loads(done.stdout)["left_out"][0]
    assert done.stderr == ""


def test_folders_that_can_not_be_looked_at_are_in_the_json_and_the_quarantine(xray: Run, delivery: Path) -> None:
    deep = ["sh", "-c", "for n in $(seq 18); do mkdir $(printf 'x%.0s' $(seq 250)); cd -P x*; done; echo > lost.jpeg"]
    subprocess.run(deep, cwd=delivery / "NORMAL", check=True)
    odd = os.fsencode(delivery / "NORMAL") + b"/latin-\xe9\n"
    os.mkdir(odd)
    (Path(os.fsdecode(odd)) / "patient0099_1.jpeg").write_bytes(b"")
    done = xray("ingest", "--json")
    subprocess.run(["rm", "-rf", str(delivery)], check=True)
    (told,) = json.loads(done.stdout)["deliveries"]
    assert (done.returncode, done.stderr) == (0, "")
    assert told["quarantined"] == {"empty": 1, "unreadable": 1}
    assert told["accounting"] | {"digest": ""} == {
        **{"files": 14, "accepted": 12, "quarantined": 2, "missing": 0, "litter": 0, "digest": "", "holds": True}
    }
    listed = json.loads(xray("quarantine", "--paths", "--json").stdout)
    assert [row["reason"] for row in listed] == ["empty", "unreadable"]
    assert listed[0]["file"] == "NORMAL/latin-\\xe9\\x0a/patient0099_1.jpeg"


def test_a_delivery_named_while_it_is_copied_is_refused(xray: Run, delivery: Path) -> None:
    done = xray("ingest", "first", XRAY_SETTLE_SECONDS="600")
    assert done.returncode == 1
    assert "may still be arriving" in done.stderr
    assert "_SUCCESS" in done.stderr


def test_acknowledging_without_an_alarm_is_an_error(xray: Run, delivery: Path) -> None:
    xray("ingest")
    done = xray("acknowledge", "first", "--reason", "looked")
    assert done.returncode == 1
    assert "no drift alarm of delivery first stands" in done.stderr


def test_evaluate_gives_each_metric_with_its_interval(xray: Run, delivery: Path, model: Path) -> None:
    done = xray("evaluate", model, "--data", delivery, "--json")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["n"] == 12
    assert 0 <= said["threshold"] <= 1
    for name in ("accuracy", "auc", "sensitivity", "specificity"):
        assert said[name]["low"] <= said[name]["value"] <= said[name]["high"]


def test_a_class_named_like_a_field_is_a_class(xray: Run, delivery: Path, tmp_path: Path) -> None:
    classes = ("high", "low", "value")
    for old, new in (("NORMAL", "high"), ("PNEUMONIA", "low")):
        (delivery / old).rename(delivery / new)
    (delivery / "value").mkdir()
    for seed in range(20, 26):
        (delivery / "value" / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(seed=seed))
    small_classifier(classes=classes).save(tmp_path / "three")
    done = xray("evaluate", tmp_path / "three", "--data", delivery)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^accuracy +0\.\d{3}  \(0\.\d{3} to [01]\.\d{3}\)$", done.stdout, re.MULTILINE)


def test_evaluate_counts_copies_too(xray: Run, delivery: Path, model: Path) -> None:
    (delivery / "NORMAL" / "copy.jpeg").write_bytes(jpeg(seed=0))
    assert json.loads(xray("evaluate", model, "--data", delivery, "--json").stdout)["n"] == 13


def test_evaluate_says_what_it_leaves_out_and_why(xray: Run, delivery: Path, model: Path) -> None:
    (delivery / "NORMAL" / ".DS_Store").write_bytes(b"x")  # counts as no file
    (delivery / "NORMAL" / "deep.png").write_bytes(png(picture(50).astype(np.uint16) * 16))
    done = xray("evaluate", model, "--data", delivery)
    assert done.returncode == 0, done.stderr
    assert "0 of 13 files are left out" in done.stdout
    assert "16-bit PNGs that hold fewer bits, scaled to the whole range: 1 of 12 bits" in done.stdout
    (delivery / "NORMAL" / "page.jpeg").write_text("<html>")
    for number in range(2):
        (delivery / "PNEUMONIA" / f"cut{number}.jpeg").write_bytes(jpeg(seed=40 + number)[:-40])
    done = xray("evaluate", model, "--data", delivery)
    assert done.returncode == 3
    assert "3 of 16 files are left out" in done.stdout
    assert "  1 not-an-image: the content is not JPEG, PNG or DICOM, whatever the name says" in done.stdout
    assert "  2 truncated: " in done.stdout
    assert "page.jpeg" not in done.stdout


def test_16_bit_pngs_of_fewer_bits_are_answered_and_scored_as_the_picture_they_show(
    settings: Settings, model: Path, tmp_path: Path
) -> None:
    said, scores = {}, {}
    for bits in (16, 12, 10):
        folder = tmp_path / f"of{bits}"
        for seed in range(8):
            file = folder / ("NORMAL", "PNEUMONIA")[seed % 2] / f"{seed}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(np.rint(picture(seed) * ((2**bits - 1) / 255)).astype(np.uint16)))
        said[bits] = answered(settings, model, folder)
        scores[bits] = answers.evaluate_folder(settings, str(model), str(folder))
        assert scores[bits]["png_bits"] == {str(bits): 8}
    told = settings.model_copy(update={"rules": IntakeRules(png_bits=16)})  # they are as dark as they look
    dark = np.abs(np.subtract(answered(told, model, tmp_path / "of10"), said[16])).max()
    for bits in (12, 10):
        assert 20 * np.abs(np.subtract(said[bits], said[16])).max() < dark
        assert scores[bits]["confusion"] == scores[16]["confusion"]


def answered(settings: Settings, model: Path, folder: Path) -> list[float]:
    found = answers.predict_files(settings, str(model), sorted(folder.rglob("*.png")))
    return [row["probabilities"]["NORMAL"] for row in found]


def test_settings_of_a_depth_that_is_none_are_refused(xray: Run) -> None:
    done = xray("history", XRAY_RULES__PNG_BITS="4")
    assert done.returncode == 1
    assert "XRAY_RULES__PNG_BITS" in done.stderr


def test_predict_answers_each_file(xray: Run, delivery: Path, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.jpeg"
    page.write_text("<html>")
    done = xray("predict", model, delivery / "NORMAL" / "patient0000_1.jpeg", page, "--json")
    assert done.returncode == 3
    good, bad = json.loads(done.stdout)
    assert sum(good["probabilities"].values()) == pytest.approx(1)
    assert "not-an-image" in bad["error"]


def test_history_of_nothing(xray: Run) -> None:
    done = xray("history", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"champion": None, "challenger": None, "entries": [], "removed": {}}


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("evaluate", "models:/chest-xray@champion", "--data", "."), {}, "chest-xray"),
        (("check", "nowhere"), {}, "does it exist?"),
        (("history", "--at", "yesterday"), {}, "'yesterday' is not a time"),
        (("history",), {"XRAY_SPLIT_HELD_OUT": "2"}, "XRAY_SPLIT_HELD_OUT"),
        (("retrain", "--recipe", "haed"), {}, "no recipe 'haed'"),
        (("retrain", "--set", "backbone=resnet1"), {}, "backbone 'resnet1' is not known"),
        (("compare", "1", "2"), {}, "version 1 was never registered; there are: none"),
        (("reopen", "4", "--reason", "because"), {}, "version 4 is not in the ledger"),
        (("history",), {"XRAY_CLASSES": "A"}, "XRAY_CLASSES"),
        (("health",), {"XRAY_CLASSES": '["A", "B"'}, "XRAY_CLASSES"),
        (("check", "."), {"XRAY_RULES": '{"min_side": 3'}, "XRAY_RULES"),
        (("verify",), {"XRAY_PATIENT_KEY": "hunter2"}, "XRAY_PATIENT_KEY: Value error, needs 22 characters"),
        (("ingest",), {"XRAY_TRACKING_URI": "http://ops:hunter2/x@host:5000"}, "XRAY_TRACKING_URI"),
        (("history",), {"XRAY_AIRFLOW_URL": "http://ops:hunter2@host"}, "XRAY_AIRFLOW_URL"),
        (("retrain",), {"XRAY_DEVICE": "gpu"}, "XRAY_DEVICE"),
        (("retrain",), {"XRAY_INCOMING": "/nowhere/incoming"}, "is it mounted?"),
        (("ingest",), {"XRAY_INCOMING": "/nowhere/incoming"}, "is it mounted?"),
        (("retrain",), {"XRAY_SCHEDULE": "0 2 31 2 *"}, "XRAY_SCHEDULE"),
        (("retrain",), {"XRAY_POLICY": "of-mine"}, "of-mine"),
        (("ingest",), {"XRAY_STORE": "s3://bucket/x", "XRAY_S3_ENDPOINT": "not an address"}, "XRAY_S3_ENDPOINT"),
    ],
)
def test_errors_are_one_line_and_exit_1(
    xray: Run, delivery: Path, arguments: tuple[str, ...], settings: dict[str, str], message: str
) -> None:
    done = xray(*arguments, **settings)
    assert done.returncode == 1
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("xray: ")]) == 1
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_misspelt_value_of_the_recipe_stops_the_night_before_its_intake(
    xray: Run, delivery: Path, tmp_path: Path
) -> None:
    done = xray("retrain", "--incoming", delivery.parent, "--set", "learnig_rate=1")
    assert done.returncode == 1
    assert "learnig_rate" in done.stderr
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_lists_are_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for classes, approvers in (("A, B", "2"), ('["A", "B"]', '["2"]')):
        monkeypatch.setenv("XRAY_CLASSES", classes)
        monkeypatch.setenv("XRAY_APPROVERS", approvers)
        assert (Settings().classes, Settings().approvers) == (("A", "B"), ("2",))


def test_the_written_rules_need_no_settings(xray: Run) -> None:
    done = xray("rules", XRAY_RULES__MIN_SIDE="-1", XRAY_CLASSES="[]")
    assert (done.returncode, done.stderr) == (0, "")
    assert "| NORMAL, PNEUMONIA |" in done.stdout


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("retrain", "--promotion", "maybe"), ("evaluate", "x"), ("compare", "1")]
)
def test_wrong_usage_exits_2(xray: Run, arguments: tuple[str, ...]) -> None:
    assert xray(*arguments).returncode == 2
