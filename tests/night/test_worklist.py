"""A worklist for readers who work elsewhere: pictures and a table out, what they say back in."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import reviewed
from phantoms import deliver
from PIL import Image
from samples import picture, png
from typer.testing import CliRunner

from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.labelled import Labels
from xray_pipeline.night import amend, intake_steps, review, worklist
from xray_pipeline.night.review import ToLabel, Unlabelled
from xray_pipeline.night.run import Run
from xray_pipeline.night.worklist import Table

LOOSE = png(picture(9, 200, 180))
SOURCE = hashlib.sha256(LOOSE).hexdigest()


@pytest.fixture
def run(settings: Settings) -> Run:
    """A delivery of 30 phantoms and a file without a class, and what there is to review of it."""
    rules = IntakeRules(max_quarantined_share=1)
    one = Run(
        Settings(home=settings.home, settle_seconds=0, rules=rules, patient_key="demo key, not a secret"), who="ann"
    )
    deliver(one.settings, "mon", range(30), side=96)
    Path(one.settings.incoming, "mon", "patient0999_1.png").write_bytes(LOOSE)
    intake_steps.check_deliveries(one, ["mon"])
    intake_steps.commit_deliveries(one, ["mon"])
    reviewed.draw(one.settings)
    out = review.kept_out(Dataset(one.settings), "mon")
    row = int(out.index[out["reason"] == "no-class"][0])
    file = Unlabelled("mon", row, SOURCE, "d" * 64, "", "NORMAL", 0.51, 3.0, 0.9)
    review.keep_to_label(one.store(), ToLabel("a" * 64, (("mon", row),), (file,)))
    return one


def exported(folder: Path) -> list[dict[str, str]]:
    with (folder / worklist.TABLE).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(reader: str, said: dict[str, str], column: bool = False) -> Table:
    out = io.StringIO()
    lines = csv.writer(out)
    lines.writerow(["digest", "label", *(["reader"] if column else [])])
    lines.writerows([digest, label, *([reader] if column else [])] for digest, label in said.items())
    return Table("list" if column else reader, out.getvalue())


def take(run: Run, *tables: Table) -> dict[str, Any]:
    return worklist.take_in(run, tables, "the readers of March")


def test_what_is_worth_reading_goes_out_by_digest(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "list"
    assert worklist.export(run, folder)["pictures"] == 6
    lines = exported(folder)
    assert [line["list"] for line in lines] == [*["suspects"] * 3, *["disagreements"] * 2, "to-label"]
    assert {line["digest"] for line in lines} == {path.stem for path in folder.glob("*.png")}
    assert all(line["label"] == line["reader"] == "" for line in lines)
    assert Image.open(folder / f"{lines[0]['digest']}.png").size == (96, 96)
    assert "patient0" not in (folder / worklist.TABLE).read_text()
    with pytest.raises(AmendmentError, match="is not empty"):
        worklist.export(run, folder)
    assert worklist.export(run, tmp_path / "few", ["suspects"], first=2)["pictures"] == 2


def test_readers_who_agree_correct_confirm_and_label(run: Run, tmp_path: Path) -> None:
    worklist.export(run, tmp_path / "list")
    wrong, right, _, differ, _, loose = (line["digest"] for line in exported(tmp_path / "list"))
    both = {wrong: "NORMAL", right: "PNEUMONIA", loose: "PNEUMONIA"}
    done = take(run, table("ann", {**both, differ: "NORMAL"}), table("bob", {**both, differ: "PNEUMONIA"}, column=True))
    assert (done["relabelled"], done["agreed"], done["labelled"]) == (1, 1, {"mon": 1})
    assert done["differ"] == {differ: {"ann": "NORMAL", "bob": "PNEUMONIA"}}
    [amendment] = amend.listed(run)
    assert (amendment["number"], amendment["why"]) == (done["amendment"], "the readers of March")
    said = review.readings(run.store(), [right, differ])
    assert (said[right].label, said[differ].label) == ("PNEUMONIA", "")
    assert done["waiting"] == []
    assert intake_steps.rejudge(run, "mon")["accepted"] == 1
    assert Dataset(run.settings).manifest("mon+2")["label"].tolist() == ["PNEUMONIA"]


def test_a_reader_who_comes_later_is_compared_with_the_first(run: Run) -> None:
    one = next(iter(reviewed.draw(run.settings).explained))
    assert take(run, table("ann", {one: "NORMAL"}))["relabelled"] == 1
    assert take(run, table("bob", {one: "PNEUMONIA"}))["differ"] == {one: {"ann": "NORMAL", "bob": "PNEUMONIA"}}
    assert len(amend.listed(run)) == 1
    assert take(run, table("bob", {one: "NORMAL"}))["agreed"] == 1  # he looked once more


def test_readers_who_differ_on_an_unlabelled_file_take_its_label_back(run: Run) -> None:
    assert take(run, table("ann", {"d" * 64: "NORMAL"}))["labelled"] == {"mon": 1}
    assert Labels(run.store()).of(SOURCE) == "NORMAL"
    assert take(run, table("bob", {"d" * 64: "PNEUMONIA"}))["differ"] == {
        "d" * 64: {"ann": "NORMAL", "bob": "PNEUMONIA"}
    }
    assert Labels(run.store()).of(SOURCE) == ""
    assert intake_steps.rejudge(run, "mon")["accepted"] == 0


def test_who_agreed_on_the_page_counts_as_a_reader(run: Run) -> None:
    one = next(iter(reviewed.draw(run.settings).explained))
    label = review.overview(Dataset(run.settings)).labels()[one]
    other = next(name for name in run.settings.classes if name != label)
    review.agree(run, one, "a clear chest, as it says", seen=label)
    assert take(run, table("bob", {one: other}))["differ"] == {one: {"ann": label, "bob": other}}
    assert amend.listed(run) == []
    with pytest.raises(AmendmentError, match=f"is {label} by now, not {other}"):
        review.agree(run, one, "a clear chest, as it says", seen=other)


def test_what_was_withdrawn_meanwhile_is_left_out_and_named(run: Run) -> None:
    one, two, *_ = reviewed.draw(run.settings).explained
    amend.amend(run, [amend.Named("withdraw", "radiograph", one)], "asked for by the patient")
    done = take(run, table("ann", {one: "NORMAL", two: "NORMAL"}))
    assert done["gone"] == [one]
    assert done["relabelled"] + done["agreed"] == 1


def test_what_was_decided_is_not_exported_again(run: Run, tmp_path: Path) -> None:
    worklist.export(run, tmp_path / "list")
    lines = exported(tmp_path / "list")
    take(run, table("ann", {line["digest"]: line["labelled"] or "NORMAL" for line in lines}))
    assert worklist.export(run, tmp_path / "again")["pictures"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "digest;label;reader\n{};NORMAL;Müller\n",
        "\ufeffDigest\tLabel \treader\r\n{}\tNORMAL \tMüller\r\n",
        "digest,label,reader\n{},NORMAL,Müller\n",
    ],
)
def test_a_table_as_spreadsheets_save_it(run: Run, text: str) -> None:
    one = next(iter(reviewed.draw(run.settings).explained))
    done = take(run, Table("worklist", text.format(one)))
    assert done["relabelled"] + done["agreed"] == 1
    assert set(review.readings(run.store(), [one])[one].readings) == {"Müller"}


def test_it_is_taken_in_whole_or_not_at_all(run: Run) -> None:
    first, second, *_ = reviewed.draw(run.settings).explained
    wrong = [
        (table("ann", {first: "NORMAL", "0" * 64: "NORMAL"}), "on no list and not in the dataset"),
        (table("ann", {first: "NORMAL", second: "FRACTURE"}), "line 3 of the table of ann"),
        (table("ann", {first: "NORMAL", second[:12]: "NORMAL"}), "no digest of 64 digits"),
        (Table("ann", f"digest,label\n{first},NORMAL\n{first},PNEUMONIA\n"), "NORMAL and PNEUMONIA"),
        (Table("worklist", f"digest,label,reader\n{first},NORMAL,\n"), "line 2 names no reader"),
        (Table("ann", "file,label\na.png,NORMAL\n"), "needs the columns digest and label"),
    ]
    for given, says in wrong:
        with pytest.raises(AmendmentError, match=says):
            take(run, given)
    with pytest.raises(AmendmentError, match="say which readers"):
        worklist.take_in(run, [table("ann", {first: "NORMAL"})], "")
    assert amend.listed(run) == []
    assert review.readings(run.store(), [first, second]) == {}


def test_the_verbs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"HOME": run.settings.home, "SETTLE_SECONDS": 0, "PATIENT_KEY": "demo key, not a secret"}
    for name, value in values.items():
        monkeypatch.setenv(f"XRAY_{name}", str(value))
    monkeypatch.setenv("XRAY_RULES__MAX_QUARANTINED_SHARE", "1")

    def xray(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["review", *arguments])

    done = xray("export", str(tmp_path / "list"), "--list", "suspects", "--json")
    assert json.loads(done.output)["pictures"] == 3
    assert xray("export", str(tmp_path / "other"), "--list", "all").exit_code == 2
    [first, *_] = exported(tmp_path / "list")
    for reader, label in {"ann": "NORMAL", "bob": "PNEUMONIA"}.items():
        (tmp_path / f"{reader}.csv").write_text(f"digest,label\n{first['digest']},{label}\n")
    done = xray("import", str(tmp_path / "ann.csv"), str(tmp_path / "bob.csv"), "--reason", "both")
    assert (done.exit_code, "ann says NORMAL, bob says PNEUMONIA" in done.output) == (3, True)
    assert "0 relabelled, 0 agreed with" in done.output
    assert isinstance(xray("import", str(tmp_path / "no.csv"), "--reason", "both").exception, Exception)
