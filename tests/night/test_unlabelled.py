"""Files that nobody has labelled, those first that would teach the model in production most."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from phantoms import deliver
from samples import dicom, picture, png
from small_models import small_classifier

from xray_pipeline.base import records
from xray_pipeline.base.errors import ObjectNotFound
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.labelled import Given, give
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.night import amend, erasing, intake_steps, review, unlabelled, worklist
from xray_pipeline.night.run import Run

ODD = png(picture(3, 200, 180))  # of no chest at all


@pytest.fixture
def run(settings: Settings) -> Run:
    """A committed delivery of 20 phantoms, with four files without a class: a chest, noise, a copy and no image."""
    rules = IntakeRules(max_quarantined_share=1)
    one = Run(Settings(home=settings.home, settle_seconds=0, rules=rules, patient_key="demo key, not a secret"))
    deliver(one.settings, "mon", range(21), side=96)
    mon = Path(one.settings.incoming, "mon")
    chest = sorted((mon / "NORMAL").iterdir())[0]
    (mon / "patient0800_1.png").write_bytes(sorted((mon / "NORMAL").iterdir())[1].read_bytes())
    chest.rename(mon / "patient0801_1.png")
    (mon / "patient0802_1.png").write_bytes(ODD)
    (mon / "letter.png").write_bytes(b"dear colleague")
    intake_steps.check_deliveries(one, ["mon"])
    intake_steps.commit_deliveries(one, ["mon"])
    return one


@pytest.fixture
def model() -> Classifier:
    return replace(small_classifier(), digest="a" * 64)


def names(run: Run, files: tuple[review.Unlabelled, ...]) -> list[str]:
    return [review.table_of(Dataset(run.settings), one.delivery)["file"][one.row] for one in files]


def test_what_is_unlike_all_that_is_known_comes_first(run: Run, model: Classifier) -> None:
    found = unlabelled.rank(run, model)
    assert sorted(names(run, found.files)) == ["patient0801_1.png", "patient0802_1.png"]  # no copy, no letter
    by_name = dict(zip(names(run, found.files), found.files, strict=True))
    chest, odd = by_name["patient0801_1.png"], by_name["patient0802_1.png"]
    assert odd.distance > chest.distance > 0
    assert [one.score for one in found.files] == sorted((one.score for one in found.files), reverse=True)
    assert all(one.thumbnail and one.says in run.settings.classes and 0.5 <= one.p <= 1 for one in found.files)
    assert review.to_label(run.store()) == found
    assert review.file_pixels(Dataset(run.settings), odd.delivery, odd.row).shape == (200, 180)


def test_it_is_ranked_anew_when_the_model_or_the_files_change(
    run: Run, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = unlabelled.rank(run, model)
    read: list[int] = []
    real = unlabelled._read
    monkeypatch.setattr(unlabelled, "_read", lambda *given: read.append(1) or real(*given))
    assert unlabelled.rank(run, model) == found
    assert read == []
    unlabelled.rank(run, replace(model, digest="b" * 64))
    deliver(run.settings, "tue", range(40, 50), side=96)
    Path(run.settings.incoming, "tue", "patient0900_1.png").write_bytes(png(picture(5, 200, 180)))
    intake_steps.check_deliveries(run, ["tue"])  # it waits, and counts
    later = unlabelled.rank(run, replace(model, digest="b" * 64))
    assert len(read) == 2
    assert {one.delivery for one in later.files} == {"mon", "tue"}


def test_what_is_withdrawn_or_may_not_be_read_is_left_out(run: Run, model: Classifier) -> None:
    odd = next(one for one in unlabelled.rank(run, model).files if one.source_digest == records.digest_of(ODD))
    Path(run.settings.incoming, "mon", "patient0802_1.png").chmod(0)
    if os.geteuid():  # root reads it all the same
        assert names(run, unlabelled.rank(run, replace(model, digest="b" * 64)).files) == ["patient0801_1.png"]
    Path(run.settings.incoming, "mon", "patient0802_1.png").chmod(0o644)
    amend.amend(run, [amend.Named("withdraw", "delivery", "mon")], "a delivery by mistake")
    assert odd not in unlabelled.rank(run, replace(model, digest="c" * 64)).files


def test_a_withdrawn_patient_is_not_shown_to_readers(run: Run, model: Classifier, tmp_path: Path) -> None:
    """Also one whom only the file itself names, or its name; and what lies there once more is not ranked again."""
    deliver(run.settings, "tue", range(40, 50), side=96)
    Path(run.settings.incoming, "tue", "named.dcm").write_bytes(dicom(picture(7, 200, 180), PatientID="4711"))
    intake_steps.check_deliveries(run, ["tue"])
    found = {name: one for one in unlabelled.rank(run, model).files for name in names(run, (one,))}
    assert set(found) == {"patient0801_1.png", "patient0802_1.png", "named.dcm"}
    asked = [
        amend.Named("withdraw", "patient", "4711", erase=True),
        amend.Named("withdraw", "patient", "patient0802"),
    ]
    before = review.to_label(run.store())
    amend.amend(run, asked, "asked for by the patients")
    assert before is not None
    review.keep_to_label(run.store(), before)  # of a night that was running
    worklist.export(run, tmp_path / "out", ("to-label",))
    assert [path.stem for path in (tmp_path / "out").glob("*.png")] == [found["patient0801_1.png"].digest]
    for name in ("patient0802_1.png", "named.dcm"):
        with pytest.raises(ObjectNotFound):
            review.file_pixels(Dataset(run.settings), found[name].delivery, found[name].row)
    assert not erasing.verify(run)[0]
    assert names(run, unlabelled.rank(run, replace(model, digest="b" * 64)).files) == ["patient0801_1.png"]
    assert erasing.verify(run)[0]


def test_a_rejected_delivery_is_judged_anew_once_its_files_have_labels(run: Run) -> None:
    strict = replace(run, settings=run.settings.model_copy(update={"rules": IntakeRules()}))
    deliver(strict.settings, "tue", range(40, 50), side=96)
    given = {}
    for number in range(6):
        data = png(picture(50 + number, 200, 180))
        Path(strict.settings.incoming, "tue", f"patient09{number:02d}_1.png").write_bytes(data)
        given[records.digest_of(data)] = Given("NORMAL", "ann", "2026-03-01T00:00:00+00:00", "read")
    assert not intake_steps.check_delivery(strict, "tue").fit
    for source, label in given.items():
        give(strict.store(), source, label)
    anew = intake_steps.check_delivery(strict, "tue")
    assert anew.fit, anew.why
    assert "no-class" not in anew.quarantined


def test_a_file_that_went_away_is_left_out(run: Run, model: Classifier) -> None:
    Path(run.settings.incoming, "mon", "patient0802_1.png").unlink()
    assert names(run, unlabelled.rank(run, model).files) == ["patient0801_1.png"]
