"""Labels that people gave to files of which their delivery says no class: found whenever the file is judged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from laid import FILES, ingest, lay
from samples import picture, png

from xray_pipeline.base.errors import Damaged
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.labelled import Given, Labels, give
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

LOOSE = png(picture(9, 200, 180))
DIGEST = hashlib.sha256(LOOSE).hexdigest()


@pytest.fixture
def run(settings: Settings) -> Run:
    """A delivery with a file in no class folder, committed."""
    one = Run(settings.model_copy(update={"rules": IntakeRules(max_quarantined_share=1)}))
    lay(one.settings, "mon", {**FILES, "patient9_1.png": LOOSE})
    ingest(one)
    return one


def label(run: Run, name: str) -> None:
    give(open_store(run.settings.store), DIGEST, Given(name, "ann", "2026-03-03T10:00:00+00:00", "the list of March"))


def test_a_label_that_was_given_is_found_when_the_file_is_judged_anew(run: Run) -> None:
    assert intake_steps.rejudge(run, "mon")["accepted"] == 0
    label(run, "PNEUMONIA")
    assert intake_steps.rejudge(run, "mon")["accepted"] == 1
    table = Dataset(run.settings).manifest("mon+2")
    assert table[["file", "label", "verdict"]].to_numpy().tolist() == [["patient9_1.png", "PNEUMONIA", "accepted"]]


def test_what_the_delivery_says_comes_first(run: Run) -> None:
    label(run, "NORMAL")
    lay(run.settings, "tue", {"PNEUMONIA/patient9_1.png": LOOSE})
    ingest(run)
    assert Dataset(run.settings).manifest("tue")["label"].tolist() == ["PNEUMONIA"]


def test_without_any_label_unlabelled_files_are_not_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Labels, "of", None)
    assert intake_steps.rejudge(run, "mon")["quarantined"] == {"no-class": 1}


def test_a_file_that_nobody_labelled_or_can_read_stays_out(run: Run) -> None:
    label(run, "PNEUMONIA")
    path = Path(run.settings.incoming, "mon", "patient9_1.png")
    path.write_bytes(png(picture(8, 200, 180)))
    (path.parent / "link.png").symlink_to(path)
    lay(run.settings, "wed", {"NORMAL/patient7_1.png": png(picture(7, 200, 180)), "patient8_1.png": path.read_bytes()})
    ingest(run)
    assert Dataset(run.settings).manifest("wed")["reason"].tolist() == ["", "no-class"]


def test_a_damaged_label_is_not_believed(run: Run) -> None:
    label(run, "PNEUMONIA")
    run.store().write(f"labelled/{DIGEST}.json", b"torn")
    with pytest.raises(Damaged, match="labelled/"):
        intake_steps.rejudge(run, "mon")
