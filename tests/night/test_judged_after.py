"""A commit compares what a check found with the dataset once more, unless that is still the one the check saw."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from samples import jpeg, lay_files, picture

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.commits import state_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.places import VERDICT, intake_key
from xray_pipeline.intake.verdicts import Checked, checked_table
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

MONDAY = {
    f"{c}/patient{n}{c}_1.jpg": jpeg(seed=n + 50 * (c == "NORMAL")) for n in range(4) for c in ("NORMAL", "PNEUMONIA")
}
TUESDAY = {
    **{
        f"{c}/patient{n}{c}_1.jpg": jpeg(seed=n + 50 * (c == "NORMAL"))
        for n in range(6, 30)
        for c in ("NORMAL", "PNEUMONIA")
    },
    "NORMAL/patient20_1.jpg": MONDAY["NORMAL/patient0NORMAL_1.jpg"],
    "NORMAL/patient21_1.jpg": jpeg(picture(51), quality=60),
    "NORMAL/patient22_1.jpg": jpeg(picture(2), quality=60),
}


@pytest.fixture
def run(settings: Settings) -> Run:
    for name, files in (("mon", MONDAY), ("tue", TUESDAY)):
        lay_files(Path(settings.incoming, name), files)
    return Run(settings)


def say(run: Run, verdict: Checked) -> None:
    records.write(run.store(), intake_key(verdict.key, VERDICT), verdict.to_dict())


def outcomes(settings: Settings, key: str) -> dict[str, str]:
    table = Dataset(settings).manifest(key)
    return dict(zip(table["file"], table["reason"], strict=True))


def test_what_was_compared_with_this_very_dataset_is_committed_as_when_it_is_compared_again(
    run: Run, tmp_path: Path
) -> None:
    intake_steps.check_delivery(run, "mon")
    intake_steps.commit_deliveries(run, ["mon"])
    verdict = intake_steps.check_delivery(run, "tue")
    assert verdict.judged_after == state_of(Dataset(run.settings).finish()) == Dataset(run.settings).commits.head()
    other = Run(run.settings.model_copy(update={"home": tmp_path / "other"}))
    shutil.copytree(run.settings.home, other.settings.home)
    say(other, replace(verdict, judged_after=""))  # as an earlier version left it
    for each in (run, other):
        intake_steps.commit_deliveries(each, ["tue"])
    one, two = Dataset(run.settings), Dataset(other.settings)
    assert one.manifest("tue").equals(checked_table(run.store(), verdict).assign(thumbnail=""))
    assert one.commits.head() == two.commits.head()
    found = outcomes(run.settings, "tue")
    assert found["NORMAL/patient20_1.jpg"] == "duplicate"
    assert found["NORMAL/patient22_1.jpg"] == "label-conflict"  # patient 2 has pneumonia


@pytest.mark.parametrize("said", ["this", "another", "other rules"])
def test_a_verdict_is_taken_at_its_word_only_for_the_dataset_it_names(run: Run, said: str) -> None:
    """On Tuesday's files before Monday's were there: all were new then."""
    verdict = intake_steps.check_delivery(run, "tue")
    assert verdict.judged_after == ""
    intake_steps.check_delivery(run, "mon")
    intake_steps.commit_deliveries(run, ["mon"])
    now = state_of(Dataset(run.settings).finish())
    rules = "0" * 64 if said == "other rules" else verdict.rules
    say(run, replace(verdict, judged_after="0" * 64 if said == "another" else now, rules=rules))
    intake_steps.commit_deliveries(run, ["tue"])
    expected = "" if said == "this" else "duplicate"
    assert outcomes(run.settings, "tue")["NORMAL/patient20_1.jpg"] == expected


def test_deliveries_checked_side_by_side_are_compared_with_each_other(run: Run) -> None:
    for key in ("mon", "tue"):
        intake_steps.check_delivery(run, key)
    intake_steps.commit_deliveries(run, ["mon", "tue"])
    assert outcomes(run.settings, "tue")["NORMAL/patient20_1.jpg"] == "duplicate"
